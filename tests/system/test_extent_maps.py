"""The readers of extent maps on real file systems: whatever was done to an image, no byte outside a delta differs."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from lamella.base.delta import Delta
from lamella.base.errors import SourceError
from lamella.sources.reflink import btrfs_tree, fiemap, maps
from lamella.sources.reflink.maps import Piece, ReadMap, compare, guarded
from lamella_kit.image_changes import BLOCK, ImageChanges
from tests.system import loop_fs

KIB = 1024
FICLONE = 0x40049409  # linux/fs.h

READERS: dict[str, ReadMap] = {"tree": btrfs_tree.pieces, "fiemap": fiemap.pieces}
ON: dict[str, list[str]] = {"btrfs": ["tree", "fiemap"], "xfs": ["fiemap"]}


@contextmanager
def opened(*paths: Path) -> Iterator[list[int]]:
    """Open files for reading."""
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def delta_of(read_map: ReadMap, old: Path, new: Path, grain: int = BLOCK) -> Delta:
    """The guarded delta; the unguarded one of the same still files must be the same."""
    base_size, size = old.stat().st_size, new.stat().st_size
    with opened(old, new) as (old_fd, new_fd):
        delta = guarded(read_map, old_fd, new_fd, base_size, size, grain)
        plain = compare(read_map(old_fd, base_size), read_map(new_fd, size), base_size, size, grain)
    assert plain == delta
    return delta


def wrong(delta: Delta, old: bytes, new: bytes) -> list[int]:
    """Chunks of which the delta says too little: they differ and are not in it, or are not the zeros it promises."""
    found = []
    for chunk, at in enumerate(range(0, len(new), delta.grain)):
        now = new[at : at + delta.grain]
        if chunk in delta.changed:
            continue
        if now != (bytes(len(now)) if chunk in delta.zeroed else old[at : at + delta.grain]):
            found.append(chunk)
    return found


def differing(old: bytes, new: bytes, grain: int) -> int:
    return sum(new[at : at + grain] != old[at : at + grain] for at in range(0, len(new), grain))


@dataclass
class Soak:
    """Rounds of random changes with a reflink copy after each; three copies are kept, so that space is reused."""

    mount: Path
    kind: str
    seed: int
    most: int = 2 << 20
    without: tuple[str, ...] = ()
    balance: float = 0
    marked: Counter[str] = field(default_factory=Counter)
    changed: int = 0

    def run(self, rounds: int) -> ImageChanges:
        chance = Random(self.seed)
        with ImageChanges(self.mount / f"image-{self.seed}", chance, self.most) as changes:
            changes.without(*self.without)
            copies = [changes.copy(self.mount / f"copy-{self.seed}-0")]
            for number in range(1, rounds + 1):
                changes.change(chance.choice((1, 3, 10, 30)), earlier=copies[max(len(copies) - 2, 0)])
                if chance.random() < self.balance:
                    balance(self.mount)
                copies.append(changes.copy(self.mount / f"copy-{self.seed}-{number}"))
                self.check(copies[-2], copies[-1], chance.choice((BLOCK, BLOCK, 64 * KIB)), number)
                while len(copies) > 3:
                    copies.pop(0).unlink()
            for path in (*copies, changes.path):
                path.unlink()
        return changes

    def check(self, old: Path, new: Path, grain: int, number: int) -> None:
        deltas = {name: delta_of(READERS[name], old, new, grain) for name in ON[self.kind]}
        before, after = old.read_bytes(), new.read_bytes()
        self.changed += differing(before, after, grain)
        for name, delta in deltas.items():
            assert wrong(delta, before, after) == [], f"{name}: seed {self.seed}, round {number}, grain {grain}"
            self.marked[name] += len(delta.changed) + len(delta.zeroed)


def balance(mount: Path) -> None:
    """Move every extent elsewhere."""
    command = ["btrfs", "balance", "start", "-d", str(mount)]
    subprocess.run(command, check=False, capture_output=True, timeout=120)


# Last: how many blocks each reader may mark for one that differs. A reader that marks everything misses nothing either.
CASES = [
    pytest.param("btrfs", "", {"tree": 1.5, "fiemap": 1.5}, id="btrfs"),
    pytest.param("btrfs", "compress=zstd", {"tree": 1.5, "fiemap": 2.5}, id="btrfs-compress"),
    pytest.param("btrfs", "compress-force=zstd", {"tree": 1.5, "fiemap": 2.5}, id="btrfs-compress-force"),
    pytest.param("btrfs", "nodatacow", {"tree": 1.5, "fiemap": 1.5}, id="btrfs-nodatacow"),
    pytest.param("xfs", "", {"fiemap": 1.8}, id="xfs"),
]
MOVING = ("defragment", "defragment, compress")


@pytest.mark.parametrize(("kind", "options", "most_marked"), CASES)
def test_nothing_differs_outside_the_delta(kind: str, options: str, most_marked: dict[str, float]) -> None:
    with loop_fs.make(kind, options) as mount:
        still = Soak(mount, kind, seed=1, without=MOVING)
        still.run(100)
        for name, limit in most_marked.items():
            assert still.marked[name] <= limit * still.changed, name
        Soak(mount, kind, seed=2).run(100)


def test_nothing_differs_outside_the_delta_after_a_balance() -> None:
    with loop_fs.make("btrfs", "compress=zstd") as mount:
        Soak(mount, "btrfs", seed=3, balance=0.2).run(60)


def test_nothing_differs_outside_the_delta_of_small_files() -> None:
    with loop_fs.make("btrfs") as mount:
        Soak(mount, "btrfs", seed=4, most=8 * BLOCK).run(100)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "options", "most_marked"), CASES)
@pytest.mark.parametrize("seed", range(100, 120))
def test_long_soak(kind: str, options: str, most_marked: dict[str, float], seed: int) -> None:
    """10,000 rounds in all."""
    del most_marked
    with loop_fs.make(kind, options) as mount:
        Soak(mount, kind, seed, most=16 << 20, balance=0.02 if kind == "btrfs" else 0).run(100)


def clone(source: Path, target: Path) -> Path:
    with source.open("rb") as there, target.open("wb") as here:
        fcntl.ioctl(here, FICLONE, there.fileno())
    return target


def overwrite(path: Path, offset: int, content: bytes, *, sync: bool = True) -> Path:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, content, offset)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)
    return path


def raw_map(path: Path) -> list[tuple[int, int, int, int]]:
    with opened(path) as (fd,):
        return list(fiemap._extents(fd, path.stat().st_size, 0))


def compressed_pairs(mount: Path, tries: int) -> Iterator[tuple[Path, Path]]:
    """Two versions of files that were one compressed extent on one block, then all but the first block overwritten.

    The new extent is put into the next free block: by address and length as FIEMAP tells them the two look like one.
    """
    for number in range(tries):
        length = (12 * KIB, 128 * KIB)[number % 2]
        image = overwrite(mount / f"image{number}", 0, b"A" * length)
        old = clone(image, mount / f"old{number}")
        overwrite(image, BLOCK, b"B" * (length - BLOCK))
        yield old, clone(image, mount / f"new{number}")


COMPRESSING = ["compress-force=zstd", "compress-force=lzo", "compress=zstd"]


@pytest.mark.parametrize("options", COMPRESSING)
def test_neighbouring_compressed_extents_are_told_apart(options: str) -> None:
    look_alike = 0
    with loop_fs.make("btrfs", options) as mount:
        for old, new in compressed_pairs(mount, 50):
            look_alike += raw_map(old) == raw_map(new)
            for name, read_map in READERS.items():
                assert wrong(delta_of(read_map, old, new), old.read_bytes(), new.read_bytes()) == [], name
    assert look_alike == 50, "the trap was not set"


def test_a_reader_that_believes_compressed_addresses_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fiemap, "_PLAIN", fiemap._PLAIN | 0x0008)  # FIEMAP_EXTENT_ENCODED
    with loop_fs.make("btrfs", "compress=zstd") as mount:
        for old, new in compressed_pairs(mount, 2):
            assert wrong(delta_of(fiemap.pieces, old, new), old.read_bytes(), new.read_bytes()) != []


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in ON.items() for name in names])
def test_what_is_not_on_disk_yet_is_in_the_map(kind: str, name: str) -> None:
    """Maps are read of still files only. Should one not be still, the map is no silent look at an earlier moment."""
    with loop_fs.make(kind) as mount:
        image = overwrite(mount / "image", 0, b"x" * 8 * BLOCK)
        old = clone(image, mount / "old")
        overwrite(image, 2 * BLOCK, b"y" * 2 * BLOCK, sync=False)
        assert list(delta_of(READERS[name], old, image).changed.runs()) == [(2, 4)]


def preallocated(image: Path) -> None:
    fd = os.open(image, os.O_RDWR)
    os.posix_fallocate(fd, 0, 64 * BLOCK)
    os.close(fd)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in ON.items() for name in names])
def test_holes_and_preallocated_ranges_are_both_zeros(kind: str, name: str) -> None:
    with loop_fs.make(kind) as mount:
        image = overwrite(mount / "image", 16 * BLOCK, b"x" * BLOCK)
        os.truncate(image, 64 * BLOCK)
        old = clone(image, mount / "old")
        preallocated(image)
        # Not a clone: XFS leaves preallocation out of one.
        assert not delta_of(READERS[name], old, image).changed
        assert not delta_of(READERS[name], old, image).zeroed
        with opened(old, image) as (sparse, full):
            assert [(e.start, e.end) for e in fiemap.allocated(sparse, 64 * BLOCK)] == [(16 * BLOCK, 17 * BLOCK)]
            assert [(e.start, e.end) for e in fiemap.allocated(full, 64 * BLOCK)] == [(0, 64 * BLOCK)]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in ON.items() for name in names])
def test_what_was_discarded_is_zeroed_by_whole_chunks(kind: str, name: str) -> None:
    with loop_fs.make(kind) as mount:
        image = overwrite(mount / "image", 0, os.urandom(64 * BLOCK))
        old = clone(image, mount / "old")
        subprocess.run(["fallocate", "-p", "-o", str(8 * BLOCK), "-l", str(40 * BLOCK), image], check=True, timeout=60)
        delta = delta_of(READERS[name], old, image, 16 * BLOCK)
        assert (list(delta.changed.runs()), list(delta.zeroed.runs())) == ([(0, 1)], [(1, 3)])


def test_inline_data_is_never_equal() -> None:
    with loop_fs.make("btrfs") as mount:
        image = overwrite(mount / "image", 0, b"i" * 900)
        old = clone(image, mount / "old")
        for read_map in READERS.values():
            assert list(delta_of(read_map, old, image).changed.runs()) == [(0, 1)]


def fragmented(path: Path, blocks: int) -> Path:
    """A file with a hole before every block."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    for number in range(blocks):
        os.pwrite(fd, b"f" * BLOCK, (2 * number + 1) * BLOCK)
    os.close(fd)
    return path


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in ON.items() for name in names])
def test_maps_of_many_answers_are_complete(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More pieces than one answer of the kernel or one window holds, and a reading that begins in the middle."""
    monkeypatch.setattr(maps, "_WINDOW", 700)
    count = 5000
    expected = [(2 * number + 1) * BLOCK for number in range(count)]
    changed = [0, 5, 699, 700, 701, 2500, count - 1]
    with loop_fs.make(kind) as mount:
        image = fragmented(mount / "image", count)
        old = clone(image, mount / "old")
        for number in changed:
            overwrite(image, expected[number] + 7, b"changed")
        size = image.stat().st_size
        with opened(image) as (fd,):
            # XFS may preallocate in the holes.
            pieces = [piece for piece in READERS[name](fd, size) if piece.place]
            assert [piece.start for piece in pieces] == expected
            later = [piece for piece in READERS[name](fd, size, expected[3000]) if piece.place]
            assert later == pieces[3000:]
        delta = delta_of(READERS[name], old, image)
        assert [first * BLOCK for first, _ in delta.changed.runs()] == [expected[number] for number in changed]
        assert not delta.zeroed


def test_other_file_systems_and_files_are_refused(tmp_path: Path) -> None:
    def first(read_map: ReadMap, path: Path) -> Piece | None:
        with opened(path) as (fd,):
            return next(read_map(fd, 1 << 20), None)

    with pytest.raises(SourceError):
        first(btrfs_tree.pieces, tmp_path)
    with pytest.raises(SourceError):
        first(fiemap.pieces, Path("/proc/self/status"))
    with loop_fs.make("xfs") as mount, pytest.raises(SourceError):
        first(btrfs_tree.pieces, overwrite(mount / "image", 0, b"x"))


def as_nobody(work: Callable[[], object]) -> str:
    """Do something without privileges in a process of its own; return the name of the error it ended with."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            work()
            os.write(writing, b"none")
        except BaseException as error:  # noqa: BLE001
            os.write(writing, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as answer:
        return answer.read()


def test_without_privilege_the_tree_says_so_and_fiemap_works() -> None:
    with loop_fs.make("btrfs") as mount:
        image = overwrite(mount / "image", 0, os.urandom(8 * BLOCK))
        with opened(image) as (fd,):
            assert (
                as_nobody(lambda: guarded(btrfs_tree.pieces, fd, fd, 8 * BLOCK, 8 * BLOCK, BLOCK)) == "PermissionError"
            )
            assert as_nobody(lambda: guarded(fiemap.pieces, fd, fd, 8 * BLOCK, 8 * BLOCK, BLOCK)) == "none"
