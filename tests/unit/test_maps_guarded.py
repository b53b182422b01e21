"""Comparing maps while the file system moves both files about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.errors import CheckpointLost, SourceError
from lamella.sources.reflink.maps import Piece, ReadMap, compare, guarded
from tests.unit.test_maps_compare import Label, layouts, pieces

OLD, NEW = 3, 4


def still(maps: dict[int, list[Piece]], *, by_start: bool) -> ReadMap:
    """A reader of maps that do not change; finds the piece around `start` or, `by_start`, only what begins there."""

    def read(fd: int, size: int, start: int = 0, /) -> Iterator[Piece]:
        del size
        for piece in maps[fd]:
            if piece.start >= start:
                yield piece
            elif piece.end > start and not by_start:
                yield Piece(start, piece.end, piece.place, piece.opaque)

    return read


@given(layouts, layouts, st.frozensets(st.integers(0, 100)), st.integers(1, 4), st.sampled_from([1, 4]), st.booleans())
def test_windows_make_no_difference(
    old: list[Label], new: list[Label], cuts: frozenset[int], window: int, grain: int, by_start: bool
) -> None:
    maps = {OLD: pieces(old, cuts), NEW: pieces(new)}
    with patch("lamella.sources.reflink.maps._WINDOW", window):
        delta = guarded(still(maps, by_start=by_start), OLD, NEW, len(old), len(new), grain)
    assert delta == compare(iter(maps[OLD]), iter(maps[NEW]), len(old), len(new), grain)


BLOCKS = 8
ADDRESSES = 20


class MovingFiles:
    """Two files of `BLOCKS` blocks on a disk on which either is moved now and then: a scripted move before each answer.

    A block of the old file never comes back to an address that it left: that is what the guard relies on.
    """

    def __init__(self, same: list[bool], moves: list[tuple[int, int, int, int]]) -> None:
        self.contents = {OLD: [f"old{at}" for at in range(BLOCKS)], NEW: [f"new{at}" for at in range(BLOCKS)]}
        self.address: dict[int, list[int | None]] = {OLD: list(range(BLOCKS)), NEW: list(range(BLOCKS, 2 * BLOCKS))}
        for at, equal in enumerate(same):
            if equal:
                self.contents[NEW][at] = self.contents[OLD][at]
                self.address[NEW][at] = self.address[OLD][at]
        self._been = [{at} for at in range(BLOCKS)]
        self._moves = iter(moves)

    def move(self) -> None:
        fd, at, length, to = next(self._moves, (0, 0, 0, 0))
        for block in range(at, min(at + length, BLOCKS)):
            target = to + block - at
            # The other file's block may be there: not if its bytes are others.
            held = {address for file in (OLD, NEW) for address in self.address[file]}
            if target in held or (fd == OLD and target in self._been[block]):
                continue
            self.address[fd][block] = target
            if fd == OLD:
                self._been[block].add(target)

    def read(self, fd: int, size: int, start: int = 0, /) -> Iterator[Piece]:
        """Answers of three pieces, found by where they start, the first being the last of the answer before."""
        del size
        last: list[Piece] = []
        while True:
            self.move()
            found = [piece for piece in self._pieces(fd) if piece.start >= start][:3]
            if found[: len(last)] != last:
                raise SourceError("moved")
            if found == last:
                return
            yield from found[len(last) :]
            last = found[-1:]
            start = last[0].start

    def _pieces(self, fd: int) -> list[Piece]:
        layout = self.address[fd]
        found: list[Piece] = []
        for at, address in enumerate(layout):
            if address is None:
                continue
            place = (address - at,)
            if found and found[-1].end == at and found[-1].place == place:
                found[-1] = Piece(found[-1].start, at + 1, place, False)
            else:
                found.append(Piece(at, at + 1, place, False))
        return found


moves = st.tuples(
    st.sampled_from([OLD, NEW]), st.integers(0, BLOCKS - 1), st.integers(1, 4), st.integers(0, ADDRESSES - 1)
)


@given(st.lists(st.booleans(), min_size=BLOCKS, max_size=BLOCKS), st.lists(moves, max_size=12), st.integers(1, 3))
def test_no_difference_hides_behind_a_move(
    same: list[bool], moved: list[tuple[int, int, int, int]], window: int
) -> None:
    files = MovingFiles(same, moved)
    with patch("lamella.sources.reflink.maps._WINDOW", window):
        try:
            delta = guarded(files.read, OLD, NEW, BLOCKS, BLOCKS, 1)
        except CheckpointLost:
            return
    missed = [
        at for at in range(BLOCKS) if files.contents[OLD][at] != files.contents[NEW][at] and at not in delta.changed
    ]
    assert missed == []


@given(st.integers(0, 6), st.integers(0, 3))
def test_a_move_of_the_whole_file_between_the_readings(when: int, at: int) -> None:
    """The old file leaves, the new one takes its place: seen apart, the two maps are the same."""
    readings = 0
    here, there = [Piece(0, 4, (100,), False)], [Piece(0, 4, (200,), False)]

    def read(fd: int, size: int, start: int = 0, /) -> Iterator[Piece]:
        nonlocal readings
        del size, start
        moved = readings >= when
        readings += 1
        yield from (there if moved else here) if fd == OLD else (here if moved else there)

    assert at in guarded(read, OLD, NEW, 4, 4, 1).changed


def failing(times: int, error: Callable[[], Exception]) -> tuple[ReadMap, list[int]]:
    """A reader that fails so many times, and the list of what it was asked for."""
    asked: list[int] = []

    def read(fd: int, size: int, start: int = 0, /) -> Iterator[Piece]:
        del size, start
        asked.append(fd)
        if len(asked) <= times:
            raise error()
        yield Piece(0, 4, (fd,), False)

    return read, asked


def test_three_retries_and_no_more() -> None:
    read, _ = failing(3, lambda: SourceError("no map"))
    assert list(guarded(read, OLD, NEW, 4, 4, 1).changed.runs()) == [(0, 4)]
    read, asked = failing(4, lambda: SourceError("no map"))
    with pytest.raises(CheckpointLost, match="no map"):
        guarded(read, OLD, NEW, 4, 4, 1)
    assert asked == [OLD] * 4


def test_what_the_driver_must_know_passes_through() -> None:
    read, asked = failing(1, lambda: PermissionError("not allowed"))
    with pytest.raises(PermissionError):
        guarded(read, OLD, NEW, 4, 4, 1)
    assert asked == [OLD]


def test_the_same_map_in_other_pieces_is_the_same() -> None:
    """The kernel cuts where sharing begins and ends, and others may begin and end to share at any time."""
    cut = [Piece(0, 2, (5,), False), Piece(2, 4, (5,), False)]
    answers = iter([[Piece(0, 4, (5,), False)], cut, cut, cut])

    def read(fd: int, size: int, start: int = 0, /) -> Iterator[Piece]:
        del fd, size, start
        yield from next(answers)

    assert not guarded(read, OLD, NEW, 4, 4, 1).changed


def test_a_file_that_never_rests_is_not_compared() -> None:
    place = iter(range(100))

    def read(fd: int, size: int, start: int = 0, /) -> Iterator[Piece]:
        del size, start
        yield Piece(0, 4, (next(place) if fd == OLD else -1,), False)

    with pytest.raises(CheckpointLost, match="moved"):
        guarded(read, OLD, NEW, 4, 4, 1)
    assert next(place) == 12


WHOLE = [Piece(0, 2, (5,), False), Piece(2, 4, (6,), False)]


@pytest.mark.parametrize("again", [WHOLE[:1], [], [Piece(0, 4, (5,), False)], [*WHOLE, Piece(4, 6, (9,), False)]])
def test_a_map_that_shrank_or_grew_is_not_the_same(again: list[Piece]) -> None:
    """The first attempt says that nothing differs, and is not believed; the second finds the old file elsewhere."""
    elsewhere = [Piece(0, 4, (7,), False)]
    answers = iter([WHOLE, WHOLE, again, again, elsewhere, WHOLE, elsewhere])

    def read(fd: int, size: int, start: int = 0, /) -> Iterator[Piece]:
        del fd, size, start
        yield from next(answers)

    assert list(guarded(read, OLD, NEW, 6, 6, 1).changed.runs()) == [(0, 4)]


@pytest.mark.parametrize("joined", [OLD, NEW])
@pytest.mark.parametrize("when", range(12))
def test_pieces_joined_over_the_border_of_two_windows_are_no_hole(joined: int, when: int) -> None:
    """Searched by where it starts, the joined piece is not found by a search that begins behind its start."""
    maps = {fd: [Piece(at, at + 2, (fd * 100 + at,), False) for at in (0, 2, 4)] for fd in (OLD, NEW)}
    readings = 0

    def read(fd: int, size: int, start: int = 0, /) -> Iterator[Piece]:
        nonlocal readings
        if readings == when:
            maps[joined] = [Piece(0, 6, (7,), False)]
        readings += 1
        return still(maps, by_start=True)(fd, size, start)

    with patch("lamella.sources.reflink.maps._WINDOW", 1):
        assert list(guarded(read, OLD, NEW, 6, 6, 1).changed.runs()) == [(0, 6)]
