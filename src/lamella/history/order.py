"""Which record came before which: by chains and by what writers had seen, never by clocks (FORMAT 8, Latest)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

from lamella.base.ids import WriterId
from lamella.format.commit import ChainEntry
from lamella.format.known import Known

Clock = Mapping[WriterId, int]
"""For each writer, up to which seq its commits come before."""

_Row = TypeVar("_Row")


class RecordPlace(NamedTuple):
    """Where a record stands: its writer, the seq of its commit, its position in the chain."""

    writer: WriterId
    seq: int
    position: int


class Row(NamedTuple):
    """A record with its place in history."""

    place: RecordPlace
    entry: ChainEntry
    known: Known

    @property
    def where(self) -> str:
        """For messages."""
        return f"commit {self.place.seq} of writer {self.place.writer.hex()[:8]}"


class Order:
    """The order of one history. `clocks` says what each commit had seen; a commit without one has seen nothing."""

    def __init__(self, clocks: Mapping[tuple[WriterId, int], Clock]) -> None:
        self._clocks = clocks

    def clock(self, writer: WriterId, seq: int) -> Clock | None:
        """The clock of a commit; None if it is not known."""
        return self._clocks.get((writer, seq))

    def precedes(self, one: RecordPlace, other: RecordPlace) -> bool:
        """Whether `one` is known to come before `other`."""
        if one.writer == other.writer:
            return (one.seq, one.position) < (other.seq, other.position)
        return self._clocks.get((other.writer, other.seq), {}).get(one.writer, 0) >= one.seq

    def last(self, rows: Iterable[_Row], place: Callable[[_Row], RecordPlace]) -> _Row | None:
        """The row that no other row comes after. Of several, and in a circle: the newest row of the smallest writer."""
        known = list(rows)
        ends = [row for row in known if not any(self.precedes(place(row), place(other)) for other in known)]
        return min(ends or known, key=lambda row: _newest_first(place(row)), default=None)

    def first(self, rows: Iterable[_Row], place: Callable[[_Row], RecordPlace]) -> _Row | None:
        """The row that comes after no other row. Of several, and in a circle: the first row of the smallest writer."""
        known = list(rows)
        starts = [row for row in known if not any(self.precedes(place(other), place(row)) for other in known)]
        return min(starts or known, key=place, default=None)


def _newest_first(place: RecordPlace) -> tuple[WriterId, int, int]:
    return place.writer, -place.seq, -place.position
