"""A real process on a real copy-on-write file system, stopped and killed in the middle of a first backup."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.program import COMMAND, SECONDS, Lamella, environment
from tests.system import loop_fs

MIB = 1 << 20
SIZE = 48 * MIB


@pytest.fixture(scope="module", params=["xfs", "btrfs"])
def top(request: pytest.FixtureRequest) -> Iterator[Path]:
    with loop_fs.make(request.param) as mount:
        yield mount


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_the_next_run_goes_on(top: Path, tmp_path: Path, number: signal.Signals) -> None:
    image = top / f"vm-{number}" / "vm.img"
    image.parent.mkdir()
    image.write_bytes(os.urandom(SIZE))
    os.sync()
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    places = {"LAMELLA_STATE_DIR": str(tmp_path / "state"), "LAMELLA_CACHE_DIR": str(tmp_path / "cache")}
    lamella = Lamella({**places, "LAMELLA_REPO": str(tmp_path / "R")}, ["--keyfile", str(key)])
    lamella.ok("init", "-q")
    points = ["backup", str(image), "--point-every", "4M", "--json"]
    process = subprocess.Popen(
        [*COMMAND, *lamella.options, *points, "--json-lines", "--read-rate", "8M"],
        env=environment(lamella.env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        event = json.loads(line)
        if event["event"] == "progress" and event["done_bytes"] >= 20 * MIB:
            process.send_signal(number)
            break
    try:
        process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == (130 if number == signal.SIGTERM else -number)
    with image.open("r+b") as file:  # the machine goes on
        file.write(b"changed meanwhile")
    os.sync()
    planned = lamella.ok("backup", image, "-n")
    assert "continues after" in planned.out
    (row,) = lamella.ok(*points).json["volumes"]
    assert row["resumed_bytes"] >= 12 * MIB
    assert row["read_bytes"] - row["sampled_bytes"] <= SIZE - row["resumed_bytes"] + MIB
    lamella.ok("restore", "vm", "--to", tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes() == image.read_bytes()
    again = lamella.ok(*points).json["volumes"][0]
    assert (again["mode"], again["resumed_bytes"]) == ("incremental", 0)
