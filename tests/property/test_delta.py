"""Deltas against the bytes they speak of: too much is allowed, too little never."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta

GRAIN = 4

# Few values, so that zeros and the return of old bytes are common.
contents = st.binary(max_size=40).map(lambda raw: bytes(byte % 3 for byte in raw))
some_chunks = st.frozensets(st.integers(0, 14))


def chunk_set(numbers: frozenset[int] | set[int]) -> ChunkSet:
    return ChunkSet((number, number + 1) for number in numbers)


def members(chunks: ChunkSet) -> set[int]:
    return {number for first, end in chunks.runs() for number in range(first, end)}


def chunk(content: bytes, number: int) -> bytes:
    return content[number * GRAIN : (number + 1) * GRAIN]


def holds(delta: Delta, old: bytes, new: bytes) -> bool:
    """Whether the delta is true of these two contents."""
    for number in range(-(-len(new) // GRAIN)):
        now = chunk(new, number)
        if number in delta.zeroed and any(now):
            return False
        if number not in delta.changed and number not in delta.zeroed and now != chunk(old, number):
            return False
    return True


def reported(old: bytes, new: bytes, needless: frozenset[int], kept_zero: frozenset[int]) -> Delta:
    """What a driver may say: the common part as it differs, needless chunks, and zeros where it happens to know."""
    common = min(len(old), len(new))
    differ = {
        number for number in range(-(-common // GRAIN)) if chunk(old[:common], number) != chunk(new[:common], number)
    }
    zero = {number for number in range(-(-len(new) // GRAIN)) if not any(chunk(new, number))}
    zeroed = zero & kept_zero
    return Delta.bounded(GRAIN, len(old), len(new), chunk_set((differ | needless) - zeroed), chunk_set(zeroed))


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[bytes], list[Delta]]:
    """Contents of a volume at several moments and a true delta from each to the next."""
    moments = [draw(contents)]
    for _ in range(draw(st.integers(1, 4))):
        # Mostly the same bytes: else everything differs and no delta could be wrong.
        now = bytearray(moments[-1])
        if draw(st.booleans()):
            size = draw(st.integers(0, 40))
            now = bytearray(bytes(now[:size]).ljust(size, b"\0"))
        for at, byte in draw(st.lists(st.tuples(st.integers(0, 39), st.integers(0, 2)), max_size=4)):
            if at < len(now):
                now[at] = byte
        moments.append(draw(st.sampled_from([bytes(now), *moments])))
    return moments, [reported(old, new, draw(some_chunks), draw(some_chunks)) for old, new in pairwise(moments)]


@given(histories())
@example(([b"\1" * 6, b"\1" * 3, b"\1" * 3 + bytes(3)], [
    reported(b"\1" * 6, b"\1" * 3, frozenset(), frozenset()),
    reported(b"\1" * 3, b"\1" * 3 + bytes(3), frozenset(), frozenset()),
]))  # fmt: skip
def test_deltas_one_after_the_other_cover_every_difference(history: tuple[list[bytes], list[Delta]]) -> None:
    moments, deltas = history
    assert all(holds(delta, old, new) for delta, (old, new) in zip(deltas, pairwise(moments), strict=True))
    whole = reduce(Delta.then, deltas)
    assert (whole.grain, whole.base_size, whole.size) == (GRAIN, len(moments[0]), len(moments[-1]))
    assert holds(whole, moments[0], moments[-1])


@given(histories())
def test_composing_needs_no_order(history: tuple[list[bytes], list[Delta]]) -> None:
    """A later interval may be composed with its successor first, and the result is as true."""
    moments, deltas = history
    assert holds(reduce(lambda later, earlier: earlier.then(later), reversed(deltas)), moments[0], moments[-1])


@given(histories())
def test_composing_does_not_forget_that_something_changed(history: tuple[list[bytes], list[Delta]]) -> None:
    """A chunk changed and changed back stays marked: a delta knows no contents."""
    _, deltas = history
    whole = reduce(Delta.then, deltas)
    below = set(range(-(-whole.size // GRAIN)))
    every = {number for delta in deltas for number in members(delta.changed) | members(delta.zeroed)}
    assert (every & below) <= members(whole.changed) | members(whole.zeroed)


@given(st.integers(0, 60), st.integers(0, 60), some_chunks, some_chunks)
def test_bounds_hold_whatever_a_driver_reports(
    base_size: int, size: int, changed: frozenset[int], zeroed: frozenset[int]
) -> None:
    given_changed, given_zeroed = chunk_set(changed), chunk_set(zeroed)
    delta = Delta.bounded(GRAIN, base_size, size, given_changed, given_zeroed)
    end = -(-size // GRAIN)
    below = set(range(end))
    in_changed, in_zeroed = members(delta.changed), members(delta.zeroed)
    assert not in_changed & in_zeroed
    assert (in_changed | in_zeroed) <= below
    assert (changed & below) <= in_changed
    assert (zeroed & below) <= in_changed | in_zeroed
    assert in_zeroed <= zeroed
    smaller = min(base_size, size)
    if base_size != size:
        assert set(range(smaller // GRAIN, end)) <= in_changed | in_zeroed
        if smaller % GRAIN:
            assert smaller // GRAIN not in in_zeroed
    else:
        assert in_changed | in_zeroed == (changed | zeroed) & below
    assert (given_changed, given_zeroed) == (chunk_set(changed), chunk_set(zeroed)), "the report was changed"


@given(contents, contents)
def test_everything_is_true_of_any_two_contents(old: bytes, new: bytes) -> None:
    delta = Delta.everything(GRAIN, len(old), len(new))
    assert holds(delta, old, new)
    assert members(delta.changed) == set(range(-(-len(new) // GRAIN)))


def test_deltas_that_do_not_meet_are_refused() -> None:
    first = Delta.everything(GRAIN, 8, 12)
    with pytest.raises(ValueError, match="meet"):
        first.then(Delta.everything(GRAIN, 11, 12))
    with pytest.raises(ValueError, match="grain"):
        first.then(Delta.everything(2 * GRAIN, 12, 12))


@given(
    st.integers(0, 30), st.integers(0, 30), st.sets(st.integers(0, 29)), st.sets(st.integers(0, 29)), st.integers(0, 31)
)
def test_spliced_is_one_below_and_the_other_from_there_on(
    before: int, after: int, changed: set[int], later: set[int], place: int
) -> None:
    """From one's base size: where that differs from the size now, everything from the smaller end on has changed."""
    grain = 65536

    def delta(base: int, chunks: set[int]) -> Delta:
        return Delta.bounded(grain, base * grain, after * grain, ChunkSet((one, one + 1) for one in chunks), ChunkSet())

    whole = delta(before, changed).spliced(place, delta(after, later))
    assert (whole.base_size, whole.size) == (before * grain, after * grain)
    wanted = {one for one in changed if one < place} | {one for one in later if one >= place}
    if before != after:
        wanted |= set(range(min(before, after), after))
    assert {chunk for chunk in range(40) if chunk in whole.changed} == {one for one in wanted if one < after}
