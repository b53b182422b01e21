"""What checkpoints still say of commits: their entries, and the clocks that these had (FORMAT 8).

Young chains have no checkpoint: this module is loaded when the first is met.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lamella.base.errors import IntegrityError, ObjectNotFound
from lamella.base.ids import WriterId
from lamella.base.trust import Opened
from lamella.format.carried import MAX_SEGMENTS, Room
from lamella.format.commit import ChainEntry
from lamella.format.records import Checkpoint, Seen, SegmentPlace
from lamella.history.history import Chain
from lamella.history.order import Clock
from lamella.history.records import decoded

_SEGMENTS_KEPT = 16


class CarriedReader:
    """Reads checkpoints. A few segments are kept, because chains are read again before each publication."""

    def __init__(self, read_segment: Callable[[SegmentPlace], Opened]) -> None:
        self._read_segment = read_segment
        self._segments: dict[bytes, Opened] = {}

    def entries(self, checkpoint: Checkpoint, name: str) -> Iterator[ChainEntry]:
        """All entries of the checkpoint in the commit `name`, segments first. Raises IntegrityError, StoreError."""
        for _, entries in self._parts(checkpoint, name):
            yield from entries

    def take_up(self, chain: Chain, checkpoint: Checkpoint, name: str) -> str:
        """Begin a chain with what its checkpoint says; why the checkpoint cannot be read to its end, empty if it can.

        Raises StoreError.
        """
        why, facts = "", list[tuple[int, Seen]]()
        try:
            for place, entries in self._parts(checkpoint, name):
                if place is not None:
                    chain.carried_parts.append((place, entries))
                said, seen = parted(entries)
                chain.entries += said
                facts += seen
        except (IntegrityError, ObjectNotFound) as error:
            why = error.message
        chain.carried_clocks = said_clocks(chain.writer, chain.entries, facts)
        return why

    def _parts(self, checkpoint: Checkpoint, name: str) -> Iterator[tuple[SegmentPlace | None, list[ChainEntry]]]:
        """Segment by segment, then the entries that the checkpoint itself holds."""
        if len(checkpoint.segments) > MAX_SEGMENTS:
            raise IntegrityError("a checkpoint of too many segments", obj=name)
        room = Room()
        for place in checkpoint.segments:
            yield place, room.segment(self._segment(place), name)
        yield None, room.entries(checkpoint.entries, name)

    def _segment(self, place: SegmentPlace) -> Opened:
        found = self._segments.get(place.id)
        if found is None:
            found = self._read_segment(place)
            if len(self._segments) >= _SEGMENTS_KEPT:
                self._segments.clear()
            self._segments[place.id] = found
        return found


def parted(entries: Iterable[ChainEntry]) -> tuple[list[ChainEntry], list[tuple[int, Seen]]]:
    """The entries that are no SEEN, and the well-formed SEEN records with the seq that each is about."""
    rest: list[ChainEntry] = []
    facts: list[tuple[int, Seen]] = []
    for entry in entries:
        if entry.record.type != Seen.TYPE:
            rest.append(entry)
        elif isinstance(fact := decoded(entry), Seen):
            facts.append((entry.seq, fact))
    return rest, facts


def said_clocks(writer: WriterId, entries: Iterable[ChainEntry], facts: Iterable[tuple[int, Seen]]) -> dict[int, Clock]:
    """The clocks of the commits that a writer's entries come from, by seq, as the SEEN records of its checkpoint say.

    Commits before the first SEEN are left out: what they had seen is not known.
    """
    found: dict[int, Clock] = {}
    left = sorted(facts, key=lambda fact: fact[0])
    seen: dict[WriterId, int] = {}
    begun = False
    for seq in sorted({entry.seq for entry in entries}):
        while left and left[0][0] <= seq:
            for other, upto in left.pop(0)[1].heads:
                seen[other] = max(upto, seen.get(other, 0))
            begun = True
        if begun:
            found[seq] = {**seen, writer: seq}
    return found
