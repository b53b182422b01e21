"""The image every program backs up, made from this machine's own files, and its states s0, s1 and s2.

s1 is s0 with about 1 % of its data changed in scattered places, s2 is s1 with 8 MiB of random bytes in one place. The
states are made by writing into the one image: a volume is known by its path, and a copy would be another volume.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.measure import MIB, BenchError, run

BLOCK = 4096
PLACES = ("/usr/lib", "/usr/bin", "/usr/share", "/usr/include", "/usr/local", "/opt")
_COPY = 4 * MIB
_FILE_MAX = 64 * MIB
# Mostly single blocks, some longer stretches: what a running system leaves, with a tenth of the touched 64 KiB pieces
# holding most of the changed bytes.
_STRETCHES = (1, 1, 1, 1, 1, 2, 2, 4, 16, 48)


@dataclass(frozen=True, slots=True)
class Patch:
    """Places of the image, ascending, and the file that holds what is written there, one after the other."""

    places: tuple[tuple[int, int], ...]
    content: Path

    def apply(self, image: Path) -> None:
        """Write it into the image, durably."""
        with self.content.open("rb") as source, image.open("r+b") as target:
            for offset, length in self.places:
                target.seek(offset)
                target.write(source.read(length))
            target.flush()
            os.fsync(target.fileno())

    @property
    def length(self) -> int:
        """Bytes it changes."""
        return sum(length for _, length in self.places)


@dataclass(frozen=True, slots=True)
class Workload:
    """The image and the ways between its states; `dense` holds its allocated data without holes, in state s0."""

    image: Path
    dense: Path
    data_bytes: int
    made_by: str
    to_s1: Patch
    to_s2: Patch
    back: Patch

    @property
    def size(self) -> int:
        """Apparent bytes of the image."""
        return self.image.stat().st_size


def make(work: Path, data_bytes: int) -> Workload:
    """Make the image with about `data_bytes` of real data below the directory `work`. Raises BenchError."""
    image, dense = work / "disk.img", work / "dense.raw"
    made_by = _file_system(work, image, data_bytes) if shutil.which("mkfs.ext4") else _plain(image, data_bytes)
    extents = list(data_extents(image))
    with image.open("rb") as source, dense.open("wb") as target:
        for start, end in extents:
            _copy(source.fileno(), target.fileno(), start, end - start)
        os.fsync(target.fileno())
    scattered = _scattered(work, image, extents)
    block = _eight(work, image, extents)
    places = tuple(sorted({*scattered.places, *block.places}))
    back = _save(work / "back.bin", image, places, ((place[0], place[1]) for place in places))
    return Workload(image, dense, dense.stat().st_size, made_by, scattered, block, back)


def data_extents(path: Path) -> Iterator[tuple[int, int]]:
    """Ranges of a sparse file that hold data. Raises OSError where the file system cannot tell."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        size, offset = os.fstat(descriptor).st_size, 0
        while offset < size:
            try:
                start = os.lseek(descriptor, offset, os.SEEK_DATA)
            except OSError:
                return
            offset = os.lseek(descriptor, start, os.SEEK_HOLE)
            yield start, offset
    finally:
        os.close(descriptor)


def real_files(wanted: int) -> Iterator[tuple[Path, int]]:
    """Readable files of this machine, the same ones every time, up to `wanted` bytes together."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for place in PLACES:
        for folder, folders, names in os.walk(place):
            folders.sort()
            for path in (Path(folder, name) for name in sorted(names)):
                facts = path.lstat()
                unwanted = not stat.S_ISREG(facts.st_mode) or not 0 < facts.st_size <= _FILE_MAX
                if unwanted or (facts.st_dev, facts.st_ino) in seen or not os.access(path, os.R_OK):
                    continue
                seen.add((facts.st_dev, facts.st_ino))
                total += facts.st_size
                yield path, facts.st_size
                if total >= wanted:
                    return


def _file_system(work: Path, image: Path, data_bytes: int) -> str:
    """An ext4 image, half as large again as its data, filled by mkfs itself: that needs no root."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        count = 0
        for path, _ in real_files(data_bytes):
            target = Path(folder, *path.parts[1:])
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            count += 1
        size = data_bytes * 3 // 2 // MIB * MIB + 64 * MIB
        image.unlink(missing_ok=True)
        with image.open("wb") as file:
            file.truncate(size)
        options = "lazy_itable_init=0,lazy_journal_init=0"
        run(["mkfs.ext4", "-q", "-F", "-i", "8192", "-E", options, "-d", folder, image])
    return f"ext4 made by mkfs.ext4 -d from {count} files of this machine"


def _plain(image: Path, data_bytes: int) -> str:
    """Where mkfs is missing: the files one after the other, each at a block's start, 1 MiB of hole after each 4 MiB."""
    count = 0
    with image.open("wb") as target:
        until_hole = 4 * MIB
        for path, size in real_files(data_bytes):
            with path.open("rb") as source:
                shutil.copyfileobj(source, target, _COPY)
            target.seek(-(-target.tell() // BLOCK) * BLOCK)
            until_hole -= size
            if until_hole <= 0:
                target.seek(MIB, os.SEEK_CUR)
                until_hole = 4 * MIB
            count += 1
        target.truncate(target.tell() + 64 * MIB)
    return f"{count} files of this machine one after the other (no mkfs.ext4 here)"


def _copy(source: int, target: int, offset: int, length: int) -> None:
    while length:
        piece = os.pread(source, min(length, _COPY), offset)
        if not piece:
            raise BenchError("the image became shorter while it was copied")
        os.write(target, piece)
        offset += len(piece)
        length -= len(piece)


def _scattered(work: Path, image: Path, extents: list[tuple[int, int]]) -> Patch:
    """1 % of the data: stretches of blocks all over it, overwritten with data from elsewhere in it."""
    chance = random.Random(1)
    pieces = [(start, end) for start, end in extents if end - start >= 64 * BLOCK]
    if not pieces:
        raise BenchError("the image has no data to change")
    weights = [end - start for start, end in pieces]
    wanted = sum(end - start for start, end in extents) // 100
    taken: dict[int, int] = {}
    used: set[int] = set()
    while wanted > 0:
        start, end = chance.choices(pieces, weights)[0]
        count = chance.choice(_STRETCHES)
        first = chance.randrange(-(-start // BLOCK), end // BLOCK - count + 1)
        blocks = range(first, first + count)
        if not used.isdisjoint(blocks):
            continue
        used.update(blocks)
        taken[first * BLOCK] = count * BLOCK
        wanted -= count * BLOCK
    places = tuple(sorted(taken.items()))
    # One odd shift for all: no piece may equal what a whole chunk already was.
    origins = list(places)
    chance.shuffle(origins)
    last = image.stat().st_size
    shifted = (
        (min(max(0, origins[number][0] - 1777), last - length), length) for number, (_, length) in enumerate(places)
    )
    return _save(work / "s1.bin", image, places, shifted)


def _save(path: Path, image: Path, places: tuple[tuple[int, int], ...], origins: Iterator[tuple[int, int]]) -> Patch:
    with image.open("rb") as source, path.open("wb") as target:
        for offset, length in origins:
            source.seek(offset)
            target.write(source.read(length))
    return Patch(places, path)


def _eight(work: Path, image: Path, extents: list[tuple[int, int]]) -> Patch:
    """8 MiB of random bytes at the end of the longest hole, as a new file would be; over data where there is none."""
    length = 8 * MIB
    edges = [0, *(edge for extent in extents for edge in extent), image.stat().st_size]
    holes = [(end - start, start) for start, end in zip(edges[::2], edges[1::2], strict=True)]
    room, start = max(holes)
    offset = (start + room // 2 if room >= 2 * length else image.stat().st_size // 2) // BLOCK * BLOCK
    path = work / "s2.bin"
    chance = random.Random(2)
    places = tuple((start, MIB) for start in range(offset, offset + length, MIB))
    with path.open("wb") as target:
        for _ in places:
            target.write(chance.randbytes(MIB))
    return Patch(places, path)
