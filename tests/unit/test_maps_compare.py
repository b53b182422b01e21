"""Comparing maps against one label for every byte."""

from __future__ import annotations

from itertools import chain, count, islice

from hypothesis import example, given
from hypothesis import strategies as st

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.sources.reflink.maps import Piece, compare

HOLE, ZEROS, OPAQUE = "hole", "zeros", "opaque"
Label = str | int

# Three places: equal ones at the same position are common, and so are unequal ones.
labels = st.sampled_from([HOLE, HOLE, ZEROS, OPAQUE, 1, 1, 2, 3])
layouts = st.lists(st.tuples(labels, st.integers(1, 12)), max_size=10).map(
    lambda runs: [label for label, length in runs for _ in range(length)]
)


def piece(label: Label, start: int, end: int) -> Piece:
    return Piece(start, end, (7, label) if isinstance(label, int) else None, label == OPAQUE)


def pieces(layout: list[Label], cuts: frozenset[int] = frozenset()) -> list[Piece]:
    """The map of a file given byte by byte; a piece ends where the label changes and at each cut."""
    found = []
    start = 0
    for at in range(1, len(layout) + 1):
        if at == len(layout) or layout[at] != layout[start] or at in cuts:
            if layout[start] != HOLE:
                found.append(piece(layout[start], start, at))
            start = at
    return found


def is_zero(label: Label) -> bool:
    return label in (HOLE, ZEROS)


def expected(old: list[Label], new: list[Label], grain: int) -> Delta:
    """The delta, found by looking at every byte."""
    changed, zeroed = ChunkSet(), ChunkSet()
    old, new = (
        [HOLE if is_zero(label) else label for label in old],
        [HOLE if is_zero(label) else label for label in new],
    )
    for chunk in range(-(-len(new) // grain)):
        inside = range(chunk * grain, min((chunk + 1) * grain, len(new)))
        if all(at < len(old) and new[at] == old[at] != OPAQUE for at in inside):
            continue
        (zeroed if all(is_zero(new[at]) for at in inside) else changed).add(chunk, chunk + 1)
    return Delta.bounded(grain, len(old), len(new), changed, zeroed)


cuts = st.frozensets(st.integers(0, 100))


@given(layouts, layouts, cuts, cuts, st.sampled_from([1, 2, 4, 8, 16]))
@example([1] * 8, [1] * 5, frozenset(), frozenset(), 4)
@example([1] * 5, [1] * 8, frozenset(), frozenset(), 4)
@example([1] * 8 + [HOLE] * 8, [HOLE] * 16, frozenset(), frozenset({3, 9}), 4)
@example([1] * 16, [1, HOLE, HOLE, HOLE, HOLE, ZEROS, ZEROS, ZEROS, 1], frozenset(), frozenset(), 4)
def test_every_chunk_is_judged_as_its_bytes_are(
    old: list[Label], new: list[Label], old_cuts: frozenset[int], new_cuts: frozenset[int], grain: int
) -> None:
    delta = compare(iter(pieces(old, old_cuts)), iter(pieces(new, new_cuts)), len(old), len(new), grain)
    assert delta == expected(old, new, grain)


@given(layouts, st.lists(st.tuples(st.integers(0, 100), labels), max_size=4), cuts, st.sampled_from([1, 4, 8]))
def test_a_few_changes_are_found_among_equal_pieces(
    old: list[Label], changes: list[tuple[int, Label]], new_cuts: frozenset[int], grain: int
) -> None:
    new = list(old)
    for at, label in changes:
        new[at : at + 1] = [label] if at < len(new) else []
    delta = compare(iter(pieces(old)), iter(pieces(new, new_cuts)), len(old), len(new), grain)
    assert delta == expected(old, new, grain)


@given(layouts, st.integers(1, 30), st.sampled_from([1, 4]))
def test_what_a_map_says_beyond_the_end_does_not_count(layout: list[Label], beyond: int, grain: int) -> None:
    """Space preallocated behind the end is in the map of some file systems."""
    size = max(len(layout) - beyond, 0)
    shorter = layout[:size]
    delta = compare(iter(pieces(layout)), iter(pieces(layout)), size, size, grain)
    assert delta == expected(shorter, shorter, grain)


def test_maps_are_read_as_they_are_compared() -> None:
    """Maps too long for memory: of an endless one just what the size asks for is taken."""
    taken = count()

    def endless() -> chain[Piece]:
        return chain.from_iterable([Piece(at * 10, at * 10 + 5, (1, at), False)] for at in iter(taken.__next__, None))

    delta = compare(iter(()), endless(), 1000, 1000, 10)
    assert list(delta.changed.runs()) == [(0, 100)]
    assert next(taken) <= 103
    assert list(islice(endless(), 1))
