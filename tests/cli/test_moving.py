"""A disk that is written while it is saved: one word everywhere, and not saved where one moment is required."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.cli.program import COMMAND, Lamella

SIZE = 32 << 20
"""So much is read for longer than a busy machine keeps a writer waiting."""


@contextmanager
def written(image: Path) -> Iterator[None]:
    """Write to an image, which is large, all the time."""
    if image.stat().st_size < SIZE:
        image.write_bytes(os.urandom(SIZE))
    over = threading.Event()

    def write() -> None:
        with image.open("r+b", buffering=0) as file:
            while not over.wait(0.001):
                file.seek(4096)
                file.write(os.urandom(4096))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


def test_a_moving_disk_is_never_called_complete(empty: Lamella, image: Path) -> None:
    with written(image):
        said = empty.ok("backup", image)
    assert "changed while it was read" in said.err and "complete" not in said.out, said
    with written(image):
        document = empty.json("backup", image)
    (row,) = document["volumes"]
    assert (document["result"], row["result"], row["consistency"]) == ("changed", "changed", "changed")
    assert {one["result"] for one in empty.json("list")["snapshots"]} == {"changed"}
    listed = empty.ok("list").out
    assert "changed" in listed and "INCOMPLETE" not in listed, listed
    assert empty.json("info", "disk@latest")["consistency"] == "changed"
    assert empty.ok("info", "disk@latest").out.split("consistency")[1].split()[0] == "changed"


def test_where_one_moment_is_required_the_others_are_saved(empty: Lamella, image: Path) -> None:
    other = image.with_name("other.img")
    other.write_bytes(b"still" * 1000)
    with written(image):
        alone = empty.run("backup", "--require-consistent", image)
        assert alone.code == 3 and "a consistent state is required" in alone.err, alone
        both = empty.run("backup", "--require-consistent", image, other)
    assert both.code == 3 and "disk" in both.err, both
    listed = empty.json("list")
    assert [one["volumes"] for one in listed["snapshots"]] == [["other"]]
    assert empty.json("backup", "--require-consistent", image)["volumes"][0]["consistency"] == "live"


def test_what_is_no_single_moment_is_told_wherever_it_is_used(empty: Lamella, image: Path, tmp_path: Path) -> None:
    other = image.with_name("other.img")
    other.write_bytes(b"still" * 1000)
    with written(image):
        empty.ok("backup", image, other)
    (run,) = empty.json("list")["snapshots"]
    assert (run["result"], run["consistency"]) == ("changed", "changed"), "a still neighbour hides nothing"
    empty.ok("verify", "--level", "full")
    status = empty.run("status")
    states = {row["volume"]: row["state"] for row in empty.run("--json", "status").json["volumes"]}
    assert status.code == 3 and "the newest snapshot changed while it was read" in status.out, status
    assert states == {"disk": "warn", "other": "ok"}
    uses = [
        ("restore", "disk", "--to", tmp_path / "restored"),
        ("restore", "-n", "disk", "--to", tmp_path / "planned"),
        ("export", "disk", "--to", tmp_path / "image"),
        ("export", "--all", _made(tmp_path / "all")),
    ]
    for command in uses:
        assert "warning: disk@" in (said := empty.run(*command)).err, (command, said)
        assert "changed while it was read, and may not start" in said.err and said.code == 0, said
    serving = replace(empty, command=["timeout", "-s", "INT", "2", *COMMAND])
    assert "may not start" in serving.run("export", "disk", "--socket", tmp_path / "s").err
    kernel = tmp_path / "no-kernel"
    kernel.write_bytes(bytes(0x202) + b"HdrS" + bytes(0x100))
    asked = empty.run("files", "list", "--kernel", kernel, "disk", "/")
    assert "warning: disk@" in asked.err and "may not start" in asked.err, asked
    still = empty.ok("restore", "other", "--to", tmp_path / "still")
    assert "warning" not in still.err, still


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
