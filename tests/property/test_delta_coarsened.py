"""Deltas on a coarser grid: as true as the finer ones, and no more zeros than there are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta

GRAIN = 4
contents = st.binary(max_size=100).map(lambda raw: bytes(byte % 3 for byte in raw))
some = st.frozensets(st.integers(0, 26))


def chunk_set(numbers: set[int]) -> ChunkSet:
    return ChunkSet((number, number + 1) for number in numbers)


def true_delta(old: bytes, new: bytes, needless: frozenset[int], told_zero: frozenset[int]) -> Delta:
    """A true delta with needless chunks, and zeros where the driver happens to know."""
    pieces = {number: new[number * GRAIN : (number + 1) * GRAIN] for number in range(-(-len(new) // GRAIN))}
    zeroed = {number for number, piece in pieces.items() if number in told_zero and not any(piece)}
    differ = {number for number, piece in pieces.items() if piece != old[number * GRAIN : (number + 1) * GRAIN]}
    return Delta.bounded(GRAIN, len(old), len(new), chunk_set((differ | needless) - zeroed), chunk_set(zeroed))


@given(contents, contents, st.booleans(), some, some, st.sampled_from([1, 2, 3, 4, 8]))
def test_a_coarser_delta_is_as_true(
    old: bytes, other: bytes, alike: bool, needless: frozenset[int], told_zero: frozenset[int], factor: int
) -> None:
    new = (old[: len(other)] + other[len(old) :]) if alike else other
    fine = true_delta(old, new, needless, told_zero)
    coarse = fine.coarsened(GRAIN * factor)
    assert (coarse.grain, coarse.base_size, coarse.size) == (GRAIN * factor, len(old), len(new))
    for number in range(-(-len(new) // coarse.grain)):
        place = slice(number * coarse.grain, (number + 1) * coarse.grain)
        assert not (number in coarse.changed and number in coarse.zeroed)
        if number in coarse.zeroed:
            assert not any(new[place])
        elif number not in coarse.changed:
            assert new[place] == old[place]
    assert all(end <= -(-len(new) // coarse.grain) for _, end in (coarse.changed | coarse.zeroed).runs())


@given(contents, contents, some, some, st.sampled_from([1, 2, 3, 4]))
def test_nothing_is_named_without_a_cause(
    old: bytes, new: bytes, needless: frozenset[int], told_zero: frozenset[int], factor: int
) -> None:
    fine = true_delta(old, new, needless, told_zero)
    named = {number for first, end in (fine.changed | fine.zeroed).runs() for number in range(first, end)}
    coarse = fine.coarsened(GRAIN * factor)
    found = {number for first, end in (coarse.changed | coarse.zeroed).runs() for number in range(first, end)}
    assert found == {number // factor for number in named}
    if len(old) == len(new):
        whole = {
            number
            for number in range(-(-len(new) // coarse.grain))
            if all(
                fine_number in fine.zeroed
                for fine_number in range(number * factor, min((number + 1) * factor, -(-len(new) // GRAIN)))
            )
        }
        assert {number for first, end in coarse.zeroed.runs() for number in range(first, end)} == whole


@pytest.mark.parametrize("grain", [1, 2, 6, 7])
def test_a_finer_or_odd_grid_is_refused(grain: int) -> None:
    with pytest.raises(ValueError, match="coarser"):
        Delta.everything(GRAIN, 8, 8).coarsened(grain)
