"""Extent items as the kernel would hardly give them. Real answers are in tests/system/test_extent_maps.py."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.errors import SourceError
from lamella.sources.reflink import btrfs_tree
from lamella.sources.reflink.maps import Piece

SIZE = 1 << 30
INLINE, REGULAR, PREALLOCATED = 0, 1, 2
Item = tuple[int, bytes]


def regular(
    at: int, length: int, address: int, *, offset: int = 0, generation: int = 9, packing: int = 0, cipher: int = 0,
    other: int = 0, form: int = REGULAR,
) -> Item:  # fmt: skip
    """A btrfs_file_extent_item with its key offset."""
    head = struct.pack("<QQBBHB", generation, length, packing, cipher, other, form)
    return at, head + struct.pack("<QQQQ", address, length, offset, length)


def inline(at: int, data: bytes, in_memory: int) -> Item:
    return at, struct.pack("<QQBBHB", 9, in_memory, 0, 0, 0, INLINE) + data


def packed(items: list[Item], inode: int, kind: int = 108) -> bytes:
    return b"".join(struct.pack("=QQQLL", 5, inode, at, kind, len(item)) + item for at, item in items)


@contextmanager
def kernel(answer: Callable[[int, int], tuple[int, bytes]]) -> Iterator[None]:
    """Have every search answered by `answer(inode, first key offset)`: a number of items and their bytes."""

    def ioctl(fd: int, request: int, buffer: bytearray, mutate: bool) -> int:
        assert (request, mutate) == (0xC0709411, True)
        tree, inode, most_inode, start, _, _, _, kind, most_kind, _ = struct.unpack_from("=7QLLL", buffer)
        assert (tree, inode, most_inode, kind, most_kind) == (0, os.fstat(fd).st_ino, inode, 108, 108)
        count, content = answer(inode, start)
        struct.pack_into("=L", buffer, 64, count)
        buffer[112 : 112 + len(content)] = content[: len(buffer) - 112]
        return 0

    with patch("fcntl.ioctl", ioctl), patch.object(btrfs_tree, "flush"):
        yield


def read(size: int = SIZE, start: int = 0) -> list[Piece]:
    with Path(__file__).open("rb") as file:
        return list(btrfs_tree.pieces(file.fileno(), size, start))


def mapped(items: list[Item], size: int = SIZE, at_once: int = 2) -> list[Piece]:
    """Read items that are searched honestly, `at_once` with each answer."""

    def answer(inode: int, start: int) -> tuple[int, bytes]:
        found = [item for item in items if item[0] >= start][:at_once]
        return len(found), packed(found, inode)

    with kernel(answer):
        return read(size)


def test_everything_that_makes_bytes_what_they_are_is_in_the_place() -> None:
    same = mapped([regular(0, 8, 4096)])
    assert same == mapped([regular(0, 8, 4096)])
    others = [
        regular(0, 8, 8192), regular(0, 8, 4096, offset=4), regular(0, 8, 4096, generation=10),
        regular(0, 8, 4096, packing=3),
    ]  # fmt: skip
    for other in others:
        assert mapped([other])[0].place != same[0].place


def test_a_later_part_of_an_extent_has_its_place() -> None:
    whole, part = mapped([regular(100, 50, 4096)]), mapped([regular(120, 30, 4096, offset=20)])
    assert whole[0].place == part[0].place


@pytest.mark.parametrize("unknown", [regular(0, 8, 4096, cipher=1), regular(0, 8, 4096, other=1), inline(0, b"abc", 3)])
def test_what_cannot_be_judged_is_opaque(unknown: Item) -> None:
    assert [piece.opaque for piece in mapped([unknown])] == [True]


@pytest.mark.parametrize("zeros", [regular(0, 8, 0), regular(0, 8, 4096, form=PREALLOCATED)])
def test_what_reads_as_zeros_has_no_place(zeros: Item) -> None:
    assert mapped([zeros]) == [Piece(0, 8, None, False)]


def test_inline_items_of_any_length_stand_among_others() -> None:
    """An inline item may even be as long as the others are, which are read as a table."""
    items = [inline(0, b"i" * 32, 32), regular(32, 8, 4096), inline(40, b"", 5), regular(64, 8, 8192)]
    for at_once in (2, 3, 10):
        found = mapped(items, at_once=at_once)
        assert [(piece.start, piece.end, piece.opaque) for piece in found] == [
            (0, 32, True), (32, 40, False), (40, 45, True), (64, 72, False),
        ]  # fmt: skip


def test_the_end_of_the_file_cuts() -> None:
    items = [regular(0, 8, 4096), regular(8, 8, 8192), regular(16, 8, 12288)]
    assert [(piece.start, piece.end) for piece in mapped(items, size=10)] == [(0, 8), (8, 10)]


@pytest.mark.parametrize(
    "items",
    [
        [regular(0, 8, 4096), regular(7, 8, 8192)],
        [regular(0, 0, 4096)],
        [regular(0, 8, 4096, form=3)],
        [(0, b"short")],
        [regular(0, 8, 4096), (8, regular(8, 8, 4096)[1] + b"more")],
    ],
)
def test_items_that_make_no_sense_are_refused(items: list[Item]) -> None:
    with pytest.raises(SourceError):
        mapped(items, at_once=10)


@pytest.mark.parametrize(("other_inode", "kind"), [(1, 108), (0, 1)])
@pytest.mark.parametrize("item", [regular(0, 8, 4096), inline(0, b"x", 1)])
def test_items_of_others_are_refused(other_inode: int, kind: int, item: Item) -> None:
    with kernel(lambda inode, _: (1, packed([item], inode + other_inode, kind))), pytest.raises(SourceError):
        read()


def test_an_item_that_grows_over_the_border_of_two_answers_is_noticed() -> None:
    """Between two searches the extents were joined: what the second would have found now starts before it."""
    apart = [regular(at, 8, 4096 * at) for at in (8, 16, 24, 32)]
    joined = [regular(8, 8, 4096 * 8), regular(16, 24, 1 << 20)]
    for now in (joined, [regular(8, 32, 1 << 20)]):
        answers = iter([apart[:2], [item for item in now if item[0] >= 16]])

        def answer(inode: int, _: int, answers: Iterator[list[Item]] = answers) -> tuple[int, bytes]:
            found = next(answers)
            return len(found), packed(found, inode)

        with kernel(answer), pytest.raises(SourceError, match="anew"):
            read()


def test_failures_are_told_apart() -> None:
    def failing(code: int) -> Callable[[int, int], tuple[int, bytes]]:
        def answer(_: int, __: int) -> tuple[int, bytes]:
            raise OSError(code, os.strerror(code))

        return answer

    with kernel(failing(errno.EPERM)), pytest.raises(PermissionError):
        read()
    for code in (errno.ENOTTY, errno.EOVERFLOW, errno.EIO):
        with kernel(failing(code)), pytest.raises(SourceError):
            read()


@given(st.integers(0, 2000) | st.just((1 << 32) - 1), st.binary(max_size=300), st.integers(0, 3))
def test_any_answer_is_read_or_refused(count: int, tail: bytes, whole: int) -> None:
    start = packed([regular(at * 8, 8, 4096) for at in range(whole)], Path(__file__).stat().st_ino)
    with kernel(lambda *_: (count, start + tail)):
        try:
            found = read()
        except SourceError:
            return
    assert len(found) <= count
