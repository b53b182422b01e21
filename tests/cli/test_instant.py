"""`lamella restore --instant` from the outside: killed, ended and taken up again, while a client writes."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from lamella_kit.image_files import mounted
from tests.cli.program import Lamella, environment
from tests.features import require
from tests.unit.nbd_client import FLUSH, FUA, NbdClient, Refused

MIB = 1 << 20
SIZE = 24 * MIB
SECTOR = 512
SECONDS = 60
KILLS = 3


class Restore:
    """A running `lamella restore --instant`."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log
        assert process.stdout is not None
        self.uri = process.stdout.readline().strip()
        assert self.uri, log.read_text()

    def document(self) -> dict[str, Any]:
        """What --json prints; `uri` is its first line then."""
        lines = [self.uri]
        assert self.process.stdout is not None
        while lines[-1].rstrip() != "}":
            lines.append(self.process.stdout.readline())
        return dict(json.loads("".join(lines)))

    @property
    def said(self) -> str:
        return self._log.read_text()

    def client(self) -> NbdClient:
        return NbdClient(self.uri.partition("socket=")[2]).go()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


@contextmanager
def restoring(lamella: Lamella, tmp_path: Path, target: Path, *words: str | Path) -> Iterator[Restore]:
    log = tmp_path / "restore.log"
    arguments = ["restore", "disk", "--to", target, "--instant", "--socket", tmp_path / "s", *words]
    with log.open("w") as err:
        process = subprocess.Popen(
            [*lamella.command, *lamella.options, *map(str, arguments)],
            env=environment(lamella.env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            start_new_session=True,
        )
    try:
        yield Restore(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(SECONDS)
        assert process.stdout is not None
        process.stdout.close()
    assert "Traceback" not in log.read_text()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An image with data, holes and zeros, and a length that no chunk divides."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.write(random.Random(1).randbytes(SIZE // 2))
        file.seek(SIZE // 2 + 4 * MIB)
        file.write(random.Random(2).randbytes(4 * MIB))
        file.truncate(SIZE + 1000)
    return path


@pytest.fixture
def saved(empty: Lamella, disk: Path) -> Lamella:
    empty.ok("backup", f"disk={disk}", "--chunk-size", "64K")
    return empty


def write_for_a_while(
    restore: Restore, model: bytearray, moves: random.Random, seconds: float
) -> list[tuple[int, bytes]]:
    """Writes that were answered go into the model; what was sent last is returned: the answer may have got lost."""
    until = time.monotonic() + seconds
    last: list[tuple[int, bytes]] = []
    with suppress(EOFError, ConnectionError), restore.client() as client:
        while time.monotonic() < until:
            offset = moves.randrange(SIZE // SECTOR - 400) * SECTOR
            new = moves.randbytes(moves.choice([1, 8, 8, 128, 300]) * SECTOR)
            last = [(offset, new)]
            client.write(offset, new, FUA if moves.random() < 0.1 else 0)
            model[offset : offset + len(new)] = new
            last = []
            # What is read has to arrive, and there must be something left to be killed in: mostly what was written.
            at, length = (offset, len(new)) if moves.random() < 0.8 else (moves.randrange(SIZE - MIB), 70_000)
            assert client.read(at, length) == model[at : at + length]
            time.sleep(0.03)
    return last


def test_killed_again_and_again_it_loses_no_answered_write(saved: Lamella, disk: Path, tmp_path: Path) -> None:
    moves, target = random.Random(7), tmp_path / "out.img"
    model = bytearray(disk.read_bytes())
    for number in range(KILLS):
        with restoring(saved, tmp_path, target, "--limit-rate", "512K") as restore:
            write_for_a_while(restore, model, moves, 0.5 + moves.random())
            restore.process.kill()
            restore.process.wait(SECONDS)
            assert not target.exists(), number
    with restoring(saved, tmp_path, target) as restore:
        with restore.client() as client:
            assert client.read(0, 30 * MIB if len(model) > 30 * MIB else len(model)) == model
            client.write(0, b"x" * SECTOR)
            model[:SECTOR] = b"x" * SECTOR
            until = time.monotonic() + SECONDS
            while not target.exists() and time.monotonic() < until:
                time.sleep(0.05)
            # All is in, and who uses it goes on under the final name.
            client.write(SECTOR, b"y" * SECTOR)
            client.do(FLUSH)
            model[SECTOR : 2 * SECTOR] = b"y" * SECTOR
        assert restore.process.wait(SECONDS) == 0
        assert "complete" in restore.said
    assert target.read_bytes() == model
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("out")) == ["out.img"]


def test_without_a_client_it_ends_when_it_is_complete(saved: Lamella, disk: Path, tmp_path: Path) -> None:
    """Nobody came, or somebody came and stays: the restore ends when it is complete and nobody needs it."""
    target = tmp_path / "alone.img"
    with restoring(saved, tmp_path, target) as restore:
        assert restore.process.wait(SECONDS) == 0, restore.said
        assert "complete, and no longer served" in restore.said
    assert target.read_bytes() == disk.read_bytes() and not list(tmp_path.glob("alone.img.*"))
    target = tmp_path / "used.img"
    with restoring(saved, tmp_path, target) as restore:
        with restore.client() as client:
            until = time.monotonic() + SECONDS
            while not target.exists():
                assert time.monotonic() < until, restore.said
                time.sleep(0.05)
            time.sleep(0.5)
            assert restore.process.poll() is None, "somebody uses it"
            client.write(0, b"late" * 128, flags=FUA)
        assert restore.process.wait(SECONDS) == 0, restore.said
    assert target.read_bytes()[:4] == b"late"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_everything_and_says_how_to_go_on(
    saved: Lamella, disk: Path, tmp_path: Path, number: int
) -> None:
    target = tmp_path / "out.img"
    with restoring(saved, tmp_path, target, "--limit-rate", "4M") as restore, restore.client() as client:
        client.write(5 * MIB, b"mine" * 1000)
        assert restore.end(number) == 130
        assert "is not complete yet" in restore.said and "go on with the same command" in restore.said
    assert not target.exists()
    # A backup meanwhile does not make `latest` another disk.
    with disk.open("r+b") as file:
        file.write(b"new" * 1000)
    before = bytearray(random.Random(1).randbytes(SIZE // 2))
    before[5 * MIB : 5 * MIB + 4000] = b"mine" * 1000
    saved.ok("backup", f"disk={disk}")
    with restoring(saved, tmp_path, target, "--json") as restore:
        assert restore.document()["resumed"] is True
        with NbdClient(str(tmp_path / "s")).go() as client:
            assert client.read(0, SIZE // 2) == before
        assert restore.process.wait(SECONDS) == 0
    assert target.read_bytes()[: SIZE // 2] == before
    names = [row["snapshot"] for row in saved.json("list")["snapshots"]]
    saved.ok("restore", f"disk@{max(names)}", "--to", tmp_path / "other.img")
    target.unlink()
    with restoring(saved, tmp_path, target, "--limit-rate", "4M") as restore:
        restore.end()
    done = saved.run("restore", f"disk@{min(names)}", "--to", target, "--instant", "--socket", tmp_path / "s")
    assert done.code == 2 and "belongs to another restore" in done.err


def test_a_device_needs_a_journal_and_is_restored(saved: Lamella, disk: Path, tmp_path: Path) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(os.urandom(SIZE + 2 * MIB))
    done = subprocess.run(["losetup", "-f", "--show", backing], capture_output=True, text=True, check=False)
    require("loop", done.returncode == 0, done.stderr)
    device = Path(done.stdout.strip())
    try:
        words: list[str | Path] = ["restore", "disk", "--to", device, "--instant", "--socket", tmp_path / "s"]
        assert "--overwrite" in saved.run(*words, "--journal", tmp_path / "j").err
        assert "--journal" in saved.run(*words, "--overwrite").err
        more: list[str | Path] = ["--overwrite", "--yes", "--journal", tmp_path / "j"]
        model = bytearray(disk.read_bytes())
        moves = random.Random(3)
        with restoring(saved, tmp_path, device, *more, "--limit-rate", "1M") as restore:
            write_for_a_while(restore, model, moves, 1)
            restore.process.kill()
        with restoring(saved, tmp_path, device, *more) as restore:
            with restore.client() as client:
                assert client.read(0, len(model)) == model
            assert restore.process.wait(SECONDS) == 0
        assert device.read_bytes()[: len(model)] == model
        assert not (tmp_path / "j").exists()
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def test_a_full_disk_is_told_the_guest_and_gone_on_with(saved: Lamella, disk: Path, tmp_path: Path) -> None:
    top = tmp_path / "full"
    top.mkdir()
    require("mount", os.geteuid() == 0, "mounting needs root")
    with mounted("tmpfs", top, kind="tmpfs", options="size=40m"):
        target, ballast = top / "out.img", top / "ballast"
        with restoring(saved, tmp_path, target, "--limit-rate", "4M") as restore, restore.client() as client:
            with ballast.open("wb") as file, suppress(OSError):
                while True:
                    file.write(bytes(MIB))
            with pytest.raises(Refused) as refused:
                for number in range(SIZE // MIB):
                    client.write(number * MIB, os.urandom(MIB))
            assert refused.value.number == errno.ENOSPC
            ballast.unlink()
            client.write(0, b"again" * 1000)
            client.do(FLUSH)
            restore.end()
        with restoring(saved, tmp_path, target) as restore:
            with restore.client() as client:
                assert client.read(0, 5000) == b"again" * 1000
            assert restore.process.wait(SECONDS) == 0
        assert target.stat().st_size == disk.stat().st_size


def test_options_that_do_not_go_together_are_refused(saved: Lamella, tmp_path: Path) -> None:
    out, place = tmp_path / "out.img", tmp_path / "s"
    for words in (
        ["--socket", place],
        ["--instant"],
        ["--instant", "--socket", place, "--in-place"],
        ["--instant", "--socket", place, "--document", "x"],
    ):
        assert saved.run("restore", "disk", "--to", out, *words).code == 2, words
    done = saved.ok("restore", "disk", "--to", out, "--instant", "--socket", place, "-n")
    assert "while it is used" in done.out and not list(tmp_path.glob("out*"))
