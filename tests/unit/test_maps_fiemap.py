"""Extents as kernels may report them. Real answers are in tests/system/test_extent_maps.py."""

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
from lamella.base.extents import Extent
from lamella.sources.reflink import fiemap
from lamella.sources.reflink.maps import Piece

K = 4096
SIZE = 100 * K
# linux/fiemap.h
LAST, UNKNOWN, DELALLOC, ENCODED, CRYPTED = 0x1, 0x2, 0x4, 0x8, 0x80
NOT_ALIGNED, INLINE, TAIL, UNWRITTEN, MERGED, SHARED = 0x100, 0x200, 0x400, 0x800, 0x1000, 0x2000
Raw = tuple[int, int, int, int]
"""Logical, physical, length, flags."""


@contextmanager
def kernel(answer: Callable[[int], list[Raw]], *, xflags: int = 0, count: int | None = None) -> Iterator[list[int]]:
    """Have maps answered by `answer(start)`; gives the list of the flags each request had."""
    asked: list[int] = []

    def ioctl(fd: int, request: int, buffer: bytearray, mutate: bool) -> int:
        del fd
        assert mutate
        if request == 0x801C581F:  # FS_IOC_FSGETXATTR
            struct.pack_into("=L", buffer, 0, xflags)
            return 0
        assert request == 0xC020660B  # FS_IOC_FIEMAP
        start, length, flags, _, room, _ = struct.unpack_from("=QQLLLL", buffer)
        assert start + length <= 1 << 64
        asked.append(flags)
        found = answer(start)[:room]
        struct.pack_into("=L", buffer, 20, len(found) if count is None else count)
        for number, (logical, physical, size, extent_flags) in enumerate(found):
            struct.pack_into("=QQQ16xL12x", buffer, 32 + number * 56, logical, physical, size, extent_flags)
        return 0

    with patch("fcntl.ioctl", ioctl):
        yield asked


def honest(extents: list[Raw], at_once: int = 1000) -> Callable[[int], list[Raw]]:
    return lambda start: [extent for extent in extents if extent[0] + extent[2] > start][:at_once]


def mapped(extents: list[Raw], size: int = SIZE, start: int = 0, at_once: int = 1000) -> list[Piece]:
    with kernel(honest(extents, at_once)):
        return list(fiemap.pieces(0, size, start))


@pytest.mark.parametrize("flags", [0, LAST, SHARED, MERGED, LAST | MERGED | SHARED])
def test_flags_that_say_nothing_about_the_bytes(flags: int) -> None:
    assert mapped([(K, 9 * K, K, flags)]) == [Piece(K, 2 * K, (0, 8 * K), False)]


@pytest.mark.parametrize("flags", [UNKNOWN, DELALLOC, ENCODED, CRYPTED, NOT_ALIGNED, INLINE, TAIL, 0x4000, 1 << 31])
def test_flags_by_which_an_address_means_nothing(flags: int) -> None:
    for more in (0, LAST, SHARED, UNWRITTEN):
        assert [piece.opaque for piece in mapped([(0, 9 * K, K, flags | more)])] == [True]


def test_an_address_of_zero_means_nothing() -> None:
    assert mapped([(0, 0, K, 0)])[0].opaque


@pytest.mark.parametrize("flags", [UNWRITTEN, UNWRITTEN | LAST, UNWRITTEN | SHARED])
def test_preallocated_reads_as_zeros(flags: int) -> None:
    assert mapped([(0, 9 * K, K, flags)]) == [Piece(0, K, None, False)]


def test_a_second_device_has_addresses_of_its_own() -> None:
    first = mapped([(0, 9 * K, K, 0)])
    with kernel(honest([(0, 9 * K, K, 0)]), xflags=0x0001):  # FS_XFLAG_REALTIME
        second = list(fiemap.pieces(0, SIZE))
    assert first[0].place != second[0].place


def test_a_later_part_of_an_extent_has_its_place() -> None:
    whole = [(10 * K, 50 * K, 20 * K, 0)]
    (piece,), (part,) = mapped(whole), mapped(whole, start=15 * K)
    assert (part.start, part.end, part.place) == (15 * K, 30 * K, piece.place)


def test_the_last_flag_ends_nothing() -> None:
    extents = [(0, 9 * K, K, LAST), (2 * K, 20 * K, K, 0)]
    assert [piece.start for piece in mapped(extents, at_once=1)] == [0, 2 * K]


def test_the_end_of_the_file_cuts() -> None:
    assert [
        (piece.start, piece.end) for piece in mapped([(0, K, 8 * K, 0), (8 * K, 99 * K, K, 0)], size=3 * K + 7)
    ] == [(0, 3 * K + 7)]


def test_only_the_first_request_syncs() -> None:
    with kernel(honest([(at * K, 900 * K + at * 3 * K, K, 0) for at in range(4)], at_once=2)) as asked:
        assert len(list(fiemap.pieces(0, SIZE))) == 4
    assert asked == [1, 0, 0]


@pytest.mark.parametrize(
    "extents",
    [
        [(0, K, 2 * K, 0), (K, 9 * K, K, 0)],
        [(2 * K, K, K, 0), (0, 9 * K, K, 0)],
        [(0, K, 0, 0)],
        [(0, K, K, 0), (3 * K, 7 * K, 0, 0)],
    ],
)
def test_maps_that_make_no_sense_are_refused(extents: list[Raw]) -> None:
    with kernel(lambda _: extents), pytest.raises(SourceError):
        list(fiemap.pieces(0, SIZE))


def test_a_map_that_does_not_get_on_is_refused() -> None:
    with kernel(lambda _: [(0, 9 * K, K, 0)]), pytest.raises(SourceError):
        list(fiemap.pieces(0, SIZE))


def test_more_extents_than_have_room_are_refused() -> None:
    with kernel(lambda _: [(0, 9 * K, K, 0)], count=1 << 20), pytest.raises(SourceError):
        list(fiemap.pieces(0, SIZE))


def test_allocated_ranges_are_joined_and_hold_preallocated_ones() -> None:
    extents = [(0, 9 * K, K, UNWRITTEN), (K, 0, K, DELALLOC), (2 * K, 9 * K, K, 0), (5 * K, 9 * K, K, UNWRITTEN)]
    with kernel(honest(extents)):
        assert list(fiemap.allocated(0, SIZE)) == [Extent(0, 3 * K), Extent(5 * K, 6 * K)]
    with kernel(honest([])):
        assert list(fiemap.allocated(0, SIZE)) == []


def test_a_file_system_without_maps_is_refused() -> None:
    def none(_: int) -> list[Raw]:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    for read in (fiemap.pieces, fiemap.allocated):
        with kernel(none), pytest.raises(SourceError, match="not supported"):
            list(read(0, SIZE))
    with Path("/proc/self/status").open("rb") as file, pytest.raises(SourceError):
        list(fiemap.pieces(file.fileno(), SIZE))


numbers = st.integers(0, 1 << 20) | st.integers(0, (1 << 64) - 1)


@given(
    st.lists(st.tuples(numbers, numbers, numbers, st.integers(0, (1 << 32) - 1)), max_size=5), st.integers(0, 1 << 20)
)
def test_any_answer_is_read_or_refused(extents: list[Raw], start: int) -> None:
    with kernel(lambda _: extents):
        try:
            found = list(fiemap.pieces(0, SIZE, start))
        except SourceError:
            return
    at = start
    for piece in found:
        assert at <= piece.start < piece.end <= SIZE
        at = piece.end
