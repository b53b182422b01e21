"""Chunk sets against plain sets of numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lamella.base.chunkset import PAGE, ChunkSet

TOP = 4 * PAGE

# Runs begin and end next to the borders of pages more often than chance would have it.
numbers = st.one_of(
    st.integers(0, TOP), st.builds(lambda page, by: max(page * PAGE + by, 0), st.integers(0, 3), st.integers(-2, 2))
)
ranges = st.tuples(numbers, numbers)
changes = st.lists(st.tuples(st.booleans(), ranges), max_size=8)


def built(steps: list[tuple[bool, tuple[int, int]]]) -> tuple[ChunkSet, set[int]]:
    """The same additions and removals done to a chunk set and to a plain one."""
    tested, plain = ChunkSet(), set[int]()
    for adding, (first, end) in steps:
        if adding:
            tested.add(first, end)
            plain.update(range(first, end))
        else:
            tested.discard(first, end)
            plain.difference_update(range(first, end))
    return tested, plain


def members(tested: ChunkSet) -> list[int]:
    return [number for first, end in tested.runs() for number in range(first, end)]


@given(changes)
@example([(True, (0, TOP)), (False, (0, TOP))])
@example([(True, (PAGE - 1, PAGE + 1)), (False, (PAGE, PAGE + 1))])
def test_holds_what_was_added_and_not_removed(steps: list[tuple[bool, tuple[int, int]]]) -> None:
    tested, plain = built(steps)
    assert members(tested) == sorted(plain)
    assert len(tested) == len(plain)
    assert bool(tested) == bool(plain)
    edges = {edge + by for _, pair in steps for edge in pair for by in (-1, 0, 1) if edge + by >= 0}
    assert all((number in tested) == (number in plain) for number in edges)


@given(changes)
def test_runs_ascend_with_gaps_between_them(steps: list[tuple[bool, tuple[int, int]]]) -> None:
    runs = list(built(steps)[0].runs())
    assert all(first < end for first, end in runs)
    assert all(end < following for (_, end), (following, _) in pairwise(runs))


@given(changes, changes)
def test_operations_of_two_sets(
    left: list[tuple[bool, tuple[int, int]]], right: list[tuple[bool, tuple[int, int]]]
) -> None:
    (a, plain_a), (b, plain_b) = built(left), built(right)
    assert members(a | b) == sorted(plain_a | plain_b)
    assert members(a & b) == sorted(plain_a & plain_b)
    assert members(a - b) == sorted(plain_a - plain_b)
    assert (a == b) == (plain_a == plain_b)
    assert (a - b) | (a & b) == a
    assert (members(a), members(b)) == (sorted(plain_a), sorted(plain_b)), "operands were changed"


@given(changes, ranges)
def test_a_copy_is_independent(steps: list[tuple[bool, tuple[int, int]]], extra: tuple[int, int]) -> None:
    original, plain = built(steps)
    copy = original.copy()
    assert copy == original
    copy.add(*extra)
    copy.discard(0, PAGE)
    assert members(original) == sorted(plain)


@given(changes)
def test_building_from_runs_gives_the_same_set(steps: list[tuple[bool, tuple[int, int]]]) -> None:
    tested, _ = built(steps)
    assert ChunkSet(tested.runs()) == tested


def test_refuses_what_is_no_chunk_and_what_needs_it_unchanged() -> None:
    with pytest.raises(ValueError, match="negative"):
        ChunkSet().add(-1, 3)
    with pytest.raises(TypeError):
        hash(ChunkSet())


def test_is_equal_to_nothing_else() -> None:
    assert ChunkSet([(1, 2)]) != {1}
    assert ChunkSet([(1, 2)]) != ChunkSet([(1, 3)])


def test_a_run_over_a_whole_large_volume() -> None:
    everything = ChunkSet([(0, 1 << 24)])
    assert (len(everything), list(everything.runs())) == (1 << 24, [(0, 1 << 24)])
    everything.discard(7, 1 << 24)
    assert list(everything.runs()) == [(0, 7)]
