"""A guest that boots from an instant restore while it arrives: its files are there after every kill of either program.

LAMELLA_INSTANT_KILLS says how often both are killed (2; by hand 20).
"""

from __future__ import annotations

import hashlib
import os
import random
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamella_kit.image_files import mounted
from tests.cli.boot_disk import MIB, SIZE, START, make_boot_disk
from tests.cli.program import Lamella
from tests.cli.test_instant import SECONDS, Restore, restoring

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("LAMELLA_INSTANT_KILLS", "2"))
BOOT_SECONDS = 120
BALLAST = (200 + 20 * KILLS) * MIB
"""Behind the guest's partition: this arrives for longer than all the kills take."""

# It says which files it finds, and of each new one when it is durable.
WRITING = r"""
$B mount -t ext4 /dev/vda1 /mnt && $B mkdir -p /mnt/w || echo "BAD mount" >/dev/ttyS0
n=0
while [ -f /mnt/w/$n ]; do
    [ "$($B cat /mnt/w/$n)" = "content $n" ] || { echo "BAD $n" >/dev/ttyS0; break; }
    n=$((n+1))
done
echo "found $n" >/dev/ttyS0
while :; do
    echo "content $n" | $B dd of=/mnt/w/$n conv=fsync 2>/dev/null && echo "wrote $n" >/dev/ttyS0
    n=$((n+1))
done
"""


class Machine:
    """A QEMU that boots the disk at a URI."""

    def __init__(self, uri: str) -> None:
        words = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults"]
        words += ["-display", "none", "-vga", "none", "-nic", "none", "-no-reboot", "-serial", "stdio"]
        words += ["-drive", f"file={uri},if=virtio,format=raw,cache=writeback"]
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._buffer = b""

    def lines(self, seconds: float) -> Iterator[str]:
        """What it says on its serial port, until that time is over or it ends."""
        assert self.process.stdout is not None
        until = time.monotonic() + seconds
        waiting = select.poll()
        waiting.register(self.process.stdout, select.POLLIN)
        while (left := until - time.monotonic()) > 0:
            if not waiting.poll(left * 1000) or not (piece := os.read(self.process.stdout.fileno(), 4096)):
                return
            *whole, self._buffer = (self._buffer + piece).split(b"\n")
            yield from (line.decode(errors="replace").strip() for line in whole)

    def number(self, word: str) -> int:
        """The number that it says after this word."""
        seen: list[str] = []
        for line in self.lines(BOOT_SECONDS):
            seen.append(line)
            assert "BAD" not in line, seen
            if line.startswith(f"{word} "):
                return int(line.split()[1])
        raise AssertionError(f"no {word!r} in {seen}")


@contextmanager
def machine(uri: str) -> Iterator[Machine]:
    found = Machine(uri)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait(SECONDS)
        assert found.process.stdout is not None
        found.process.stdout.close()


@contextmanager
def running(empty: Lamella, tmp_path: Path, target: Path, *words: str) -> Iterator[tuple[Restore, Machine]]:
    """A restore and a guest of it."""
    with restoring(empty, tmp_path, target, *words) as restore, machine(restore.uri) as guest:
        yield restore, guest


def outside(path: Path) -> str:
    """A digest of what no guest writes to: the boot sector and its gap, and the ballast."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        found.update(file.read(START * 512))
        file.seek(SIZE)
        while piece := file.read(MIB):
            found.update(piece)
    return found.hexdigest()


@pytest.mark.timeout(BOOT_SECONDS * (KILLS + 3))
def test_a_guest_boots_while_the_rest_arrives_and_loses_no_durable_file(empty: Lamella, tmp_path: Path) -> None:
    moves, image, target = random.Random(11), tmp_path / "vm.img", tmp_path / "out.img"
    make_boot_disk(image, tmp_path, WRITING)
    with image.open("ab") as file:
        for _ in range(BALLAST // MIB):
            file.write(os.urandom(MIB))
    empty.ok("backup", f"disk={image}")
    durable = 0
    for number in range(KILLS):
        # What a boot reads is there after the first one.
        with running(empty, tmp_path, target, "--limit-rate", "512K" if number else "3M") as (restore, guest):
            assert guest.number("found") >= durable
            durable = guest.number("wrote") + 1
            for line in guest.lines(moves.random() * 2):
                if line.startswith("wrote "):
                    durable = int(line.split()[1]) + 1
            assert not target.exists(), "everything arrived before the kill: it needs more ballast"
            kills = [restore.process.kill, guest.process.kill]
            moves.shuffle(kills)
            for kill in kills:
                kill()
            restore.process.wait(SECONDS)
    with restoring(empty, tmp_path, target) as restore:
        with machine(restore.uri) as guest:
            assert guest.number("found") >= durable > 0
            until = time.monotonic() + BOOT_SECONDS
            while not target.exists() and time.monotonic() < until:
                durable = guest.number("wrote") + 1  # it goes on while the file takes its name
            durable = guest.number("wrote") + 1
        assert restore.process.wait(SECONDS) == 0, restore.said
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.img"]
    assert outside(target) == outside(image)
    place = tmp_path / "mounted"
    place.mkdir()
    with mounted(str(target), place, kind="ext4", options=f"loop,offset={START * 512}"):
        for number in range(durable):
            assert (place / "w" / str(number)).read_text() == f"content {number}\n"
