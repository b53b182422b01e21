"""Extents against plain sets of bytes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lamella.base.extents import Extent, chunk_ranges


@st.composite
def ascending(draw: st.DrawFn) -> list[Extent]:
    """Ascending extents; gaps of zero bytes are allowed."""
    extents, position = [], 0
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), max_size=12)):
        extents.append(Extent(position + gap, position + gap + length))
        position += gap + length
    return extents


@given(ascending(), st.integers(1, 33))
@example([Extent(0, 1)], 8)
@example([Extent(0, 8), Extent(8, 9)], 8)
@example([Extent(0, 1), Extent(7, 8), Extent(15, 17)], 8)
def test_ranges_hold_exactly_the_chunks_of_the_bytes(extents: list[Extent], chunk_size: int) -> None:
    chunks_of_bytes = {byte // chunk_size for extent in extents for byte in range(extent.start, extent.end)}
    ranges = list(chunk_ranges(extents, chunk_size))
    assert [chunk for first, end in ranges for chunk in range(first, end)] == sorted(chunks_of_bytes)


@given(ascending(), st.integers(1, 33))
def test_ranges_are_not_empty_and_have_gaps_between_them(extents: list[Extent], chunk_size: int) -> None:
    ranges = list(chunk_ranges(extents, chunk_size))
    assert all(first < end for first, end in ranges)
    assert all(end < following for (_, end), (following, _) in pairwise(ranges))


def test_ranges_are_made_while_extents_arrive() -> None:
    def endless() -> Iterator[Extent]:
        return (Extent(100 * number, 100 * number + 1) for number in count())

    assert list(islice(chunk_ranges(endless(), 10), 3)) == [(0, 1), (10, 11), (20, 21)]


@pytest.mark.parametrize("second", [Extent(0, 5), Extent(9, 20), Extent(2, 3)])
def test_extents_out_of_order_are_refused(second: Extent) -> None:
    with pytest.raises(ValueError, match="ascend"):
        list(chunk_ranges([Extent(0, 10), second], 4))


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 5), (6, 5)])
def test_only_byte_ranges_are_extents(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="byte range"):
        Extent(start, end)


def test_length_counts_bytes() -> None:
    assert Extent(3, 10).length == 7
