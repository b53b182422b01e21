"""The parts of leaving files out that need no guest: what was written is found exactly, and no more than allowed."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lamella.base.errors import SourceAtRisk, SourceError, UsageError
from lamella.base.extents import Extent
from lamella.operations.access.moment_disk import MomentDisk
from lamella.operations.access.overlay import thrown_away
from lamella.operations.access.scrub import CACHE_PATTERNS, _changes, scrub_patterns
from lamella.sources.driver import OpenVolume
from lamella.sources.editing import can_be_edited, edited, write_changes
from lamella.sources.registry import open_source

KIB = 1024
SIZE = 1024 * KIB + 512


class Volume(OpenVolume):
    """A file with holes, frozen."""

    checkpoint = ""

    def allocated(self) -> Iterator[Extent]:
        at = 0
        while at < self.size:
            try:
                start = os.lseek(self._fd, at, os.SEEK_DATA)
            except OSError:
                return
            at = os.lseek(self._fd, start, os.SEEK_HOLE)
            yield Extent(start, at)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[MomentDisk]:
    """Data in the first and the last quarter, nothing between."""
    content = random.Random(1).randbytes(SIZE)
    with (tmp_path / "disk").open("w+b") as file:
        file.write(content[: 256 * KIB])
        file.seek(768 * KIB)
        file.write(content[768 * KIB :])
        file.flush()
        os.fsync(file.fileno())
        yield MomentDisk(Volume(tmp_path / "disk", file.fileno(), SIZE))  # type: ignore[arg-type]


def test_any_writes_come_out_as_changes(disk: MomentDisk, tmp_path: Path) -> None:
    """What a clone holds after the changes is what the guest saw, and blocks that are as before are not among them."""
    moves = random.Random(2)
    overlay = thrown_away(disk, tmp_path)
    expected = bytearray(disk.read(0, SIZE))
    overlay.room = 64 << 20
    for _ in range(60):
        start = moves.randrange(SIZE)
        length = min(moves.choice([1, 512, 4096, 20_000, 100_000]), SIZE - start)
        kind = moves.randrange(4)
        if kind == 0:
            overlay.write(start, memoryview(bytes(expected[start : start + length])))  # the same once more
        elif kind == 1:
            overlay.zero(start, length, allocate=moves.random() < 0.5)
            expected[start : start + length] = bytes(length)
        elif kind == 2:
            overlay.trim(start, length)
            low, high = -(-start // 4096) * 4096, (start + length) // 4096 * 4096
            expected[low:high] = bytes(max(0, high - low))
        else:
            content = moves.randbytes(length)
            overlay.write(start, memoryview(content))
            expected[start : start + length] = content
    clone = tmp_path / "clone"
    clone.write_bytes(disk.read(0, SIZE))
    before = clone.read_bytes()
    changes = list(_changes(disk, overlay))
    for offset, change in changes:
        if isinstance(change, bytes):
            for at in range(0, len(change), 4096):
                assert change[at : at + 4096] != before[offset + at : offset + at + 4096]
    with clone.open("r+b") as file:
        write_changes(file.fileno(), changes)
    assert clone.read_bytes() == bytes(expected) == overlay.read(0, SIZE)
    overlay.close()


def test_no_more_is_written_than_there_is_room_for(disk: MomentDisk, tmp_path: Path) -> None:
    overlay = thrown_away(disk, tmp_path)
    overlay.room = 10 * KIB
    overlay.write(0, memoryview(bytes(8 * KIB)))
    with pytest.raises(OSError) as full:
        overlay.write(64 * KIB, memoryview(b"x" * 4 * KIB))
    assert full.value.errno == errno.ENOSPC
    overlay.zero(0, SIZE, allocate=True)  # takes no space, whatever was asked for
    assert os.fstat(overlay._fd).st_blocks * 512 <= 16 * KIB
    overlay.write(0, memoryview(b"y" * 2 * KIB))
    overlay.close()


def test_a_frozen_disk_tells_its_holes(disk: MomentDisk) -> None:
    assert [(one.length, one.hole) for one in disk.extents(0, SIZE)] == [
        (256 * KIB, False),
        (512 * KIB, True),
        (SIZE - 768 * KIB, False),
    ]
    assert [one.length for one in disk.extents(0, SIZE, 1)] == [256 * KIB]
    assert disk.is_hole(256 * KIB, 512 * KIB) and not disk.is_hole(256 * KIB - 1, 2)
    assert disk.read(SIZE - 1, 100) == disk.read(SIZE - 1, 1) and disk.read(SIZE, 1) == b""


def test_what_cannot_be_cloned_is_refused(disk: MomentDisk, tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"x")
    source = open_source(str(tmp_path / "plain"), machine="0" * 16, driver="file")
    with source.freeze() as frozen, ExitStack() as held:
        assert not can_be_edited(source, frozen)
        with pytest.raises(SourceError, match="the file driver makes no clone here"):
            edited(source, frozen, [], held)
    with Path("/dev/full").open("wb") as full, pytest.raises(SourceAtRisk, match="cannot be changed"):
        write_changes(full.fileno(), [(0, b"x")])


@pytest.mark.parametrize("text", ["", "/", ".", "..", "../x", "x/../y", "./x", "@", "@all", "a\nb", "a\0b"])
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(UsageError):
        scrub_patterns([text])


def test_patterns() -> None:
    assert scrub_patterns(["@caches", "*.iso", "home/me/tmp/", "*.iso"]) == (*CACHE_PATTERNS, "*.iso", "home/me/tmp")
