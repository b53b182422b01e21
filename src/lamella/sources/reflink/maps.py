"""Comparing where two files of one file system keep their bytes: equal places are equal bytes, all else may differ.

Nothing here reads data. A comparison holds only while both files exist unchanged, so that neither gives up a place for
the other to reuse; `guarded` also allows for a file system that moves data about while the maps are read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from operator import attrgetter, eq
from typing import Protocol

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, SourceError

_RETRIES = 3

_WINDOW = 512
"""Pieces of each map that `guarded` holds at a time, or more if one chunk has more: as many as the readers get with one
answer, so that none is read in vain; many more would keep the garbage collector busy."""

_NOWHERE = 1 << 65
"""Beyond the end of any file."""


@dataclass(slots=True)
class Piece:
    """Bytes `[start, end)` of a file that lie together. A range without a piece is a hole.

    `place` None reads as zeros. Otherwise ranges of two files at the same position and with equal `place` hold the same
    bytes as long as both files keep them: addresses are noted less the position, so that a part of a piece has the
    piece's `place`. An `opaque` piece is equal to nothing, not even to itself, whatever its `place`.
    """

    start: int
    end: int
    place: tuple[int, ...] | None
    opaque: bool


class ReadMap(Protocol):
    """Reads the map of an open file up to `size` bytes, ascending and without overlap.

    Starts with the piece at `start`, which is 0 or where a piece began before. Raises SourceError.
    """

    def __call__(self, fd: int, size: int, start: int = 0, /) -> Iterator[Piece]: ...


def compare(old: Iterator[Piece], new: Iterator[Piece], base_size: int, size: int, grain: int) -> Delta:
    """The possible differences of a file of `base_size` bytes mapped by `old` and one of `size` bytes mapped by `new`.

    Both maps ascend without overlap. Holes and preallocated ranges are both zeros. Memory does not follow the maps.
    """
    found = _Found(grain, base_size, size)
    found.compare(old, new, 0, size)
    return found.delta()


def guarded(read_map: ReadMap, old_fd: int, new_fd: int, base_size: int, size: int, grain: int) -> Delta:
    """The ranges that may differ between two open files, although their bytes may be moved about meanwhile.

    The bytes of both files must not change. The maps are read in windows: old, new, and old again. If the old file was
    at a place before and after, the new file cannot have been there with other bytes in between. Any disagreement
    starts all over; raises CheckpointLost after the third retry, or if the maps cannot be read at all. Other errors of
    `read_map`, such as PermissionError, pass through.
    """
    attempt = 0
    while True:
        try:
            return _compare_in_windows(_Side(read_map, old_fd, base_size), _Side(read_map, new_fd, size), grain)
        except SourceError as error:
            if attempt == _RETRIES:
                hint = "everything is read and compared this time"
                raise CheckpointLost(f"no comparable maps: {error.message}", obj=error.obj, hint=hint) from error
        attempt += 1


class _Side:
    """One of the two files, read window by window."""

    def __init__(self, read_map: ReadMap, fd: int, size: int) -> None:
        self._read_map, self._fd, self.size = read_map, fd, size
        self._anchor: int | None = None

    def read(self, end: int, limit: int) -> list[Piece]:
        """At most `limit` pieces that start before `end`, from the anchor on."""
        pieces: list[Piece] = []
        for piece in islice(self._read_map(self._fd, self.size, self._anchor or 0), limit):
            if piece.start >= end:
                break
            pieces.append(piece)
        # Some maps are searched by where a piece starts: one that now starts before the anchor and reaches beyond it
        # would go unseen, and its bytes pass for a hole. As pieces never overlap, one at the anchor excludes that.
        if self._anchor is not None and (not pieces or pieces[0].start != self._anchor):
            raise CheckpointLost("the file was laid out anew while its map was read")
        return pieces

    def confirms(self, pieces: list[Piece], end: int) -> bool:
        """Whether the map, read again from the anchor to `end`, has just these pieces."""
        again = chain(self._read_map(self._fd, self.size, self._anchor or 0), repeat(None))
        if not all(map(eq, pieces, again)):
            return False
        following = next(again)
        return following is None or following.start >= end

    def advance(self, pieces: list[Piece]) -> None:
        """Begin the next window with the last of these pieces, which may reach into it."""
        if pieces:
            self._anchor = pieces[-1].start


def _compare_in_windows(old: _Side, new: _Side, grain: int) -> Delta:
    found = _Found(grain, old.size, new.size)
    start, limit = 0, _WINDOW
    while start < new.size:
        before = old.read(new.size, limit)
        end = _reach(before, limit, new.size)
        after = new.read(end, limit) if end > start else []
        end = _reach(after, limit, end)
        if end < new.size:
            # No chunk lies in two windows: whether all of it became zero is then seen in one.
            end -= end % grain
        if end <= start:
            limit *= 2
            continue
        before, after = _starting_before(end, before), _starting_before(end, after)
        # Who else shares the bytes may have changed, and with it where the kernel cuts: the same map in other pieces.
        if not old.confirms(before, end) and _joined(before) != _joined(old.read(end, 2 * limit)):
            raise CheckpointLost("the old file was moved while the maps were read")
        found.compare(iter(before), iter(after), start, end)
        old.advance(before)
        new.advance(after)
        start = end
    return found.delta()


def _reach(pieces: list[Piece], limit: int, end: int) -> int:
    """Up to where a map is known that was asked for `limit` pieces before `end`."""
    return end if len(pieces) < limit else min(pieces[-1].end, end)


def _starting_before(end: int, pieces: list[Piece]) -> list[Piece]:
    return pieces[: bisect_left(pieces, end, key=attrgetter("start"))]


def _joined(pieces: list[Piece]) -> list[Piece]:
    """The same map with every piece as long as it can be."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last and (last.end, last.place, last.opaque) == (piece.start, piece.place, piece.opaque):
            joined[-1] = Piece(last.start, piece.end, last.place, last.opaque)
        else:
            joined.append(piece)
    return joined


class _Found:
    """The chunks that differ, as far as the maps were compared."""

    def __init__(self, grain: int, base_size: int, size: int) -> None:
        self._grain, self._base_size, self._size = grain, base_size, size
        self._changed, self._zeroed = _Ascending(), _Ascending()

    def compare(self, old: Iterator[Piece], new: Iterator[Piece], start: int, end: int) -> None:
        """Compare bytes `[start, end)`, both on the grid or at the end of the file."""
        grain, changed, zeroed = self._grain, self._changed, self._zeroed
        # Nothing beyond the old end could equal anything.
        before = chain(_data(old, self._base_size), [Piece(self._base_size, _NOWHERE, None, True)])
        for low, high, zero_from, zero_to in _differences(before, _data(new, self._size), start, end):
            first, stop = low // grain, -(-high // grain)
            whole = min(max(-(-zero_from // grain), first), stop)
            rest = max(stop if zero_to >= self._size else min(zero_to // grain, stop), whole)
            changed.add(first, whole)
            zeroed.add(whole, rest)
            changed.add(rest, stop)

    def delta(self) -> Delta:
        return Delta.bounded(self._grain, self._base_size, self._size, self._changed.done(), self._zeroed.done())


class _Ascending:
    """Gathers ascending ranges: neighbours are joined before they reach the set, which is many times faster."""

    __slots__ = ("_chunks", "_end", "_first")

    def __init__(self) -> None:
        self._chunks = ChunkSet()
        self._first = self._end = 0

    def add(self, first: int, end: int) -> None:
        if first >= end:
            return
        if first > self._end:
            self._chunks.add(self._first, self._end)
            self._first = first
        self._end = max(end, self._end)

    def done(self) -> ChunkSet:
        self._chunks.add(self._first, self._end)
        return self._chunks


def _data(pieces: Iterator[Piece], size: int) -> Iterator[Piece]:
    """The pieces that do not read as zeros, cut off at `size`."""
    for piece in pieces:
        if piece.end > size:
            if piece.start < size and (piece.opaque or piece.place is not None):
                yield Piece(piece.start, size, piece.place, piece.opaque)
            return
        if piece.opaque or piece.place is not None:
            yield piece


def _differences(old: Iterator[Piece], new: Iterator[Piece], at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield `(start, stop, zero_from, zero_to)` for each range that may differ; ascending, within `[at, end)`.

    If it reads as zeros now, the last two bound all zeros around it; otherwise both are `stop`.
    """
    nothing = Piece(_NOWHERE, _NOWHERE, None, False)
    a, b = next(old, nothing), next(new, nothing)
    zero_from = at
    while at < end:
        if a.place == b.place and a.end == b.end and a.start == b.start and not (a.opaque or b.opaque):
            at = zero_from = b.end
            a, b = next(old, nothing), next(new, nothing)
            continue
        if a.end <= at:
            a = next(old, nothing)
            continue
        if b.end <= at:
            zero_from = b.end
            b = next(new, nothing)
            continue
        in_a, in_b = a.start <= at, b.start <= at
        stop = min(a.end if in_a else a.start, b.end if in_b else b.start, end)
        if in_b:
            if not in_a or a.place != b.place or a.opaque or b.opaque:
                yield at, stop, stop, stop
        elif in_a:
            yield at, stop, zero_from, min(b.start, end)
        at = stop
