"""Tags, pins and losses of snapshots: whose word counts, and what it adds up to (FORMAT 8, State)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

from lamella.base.ids import VolumeId, WriterId
from lamella.format.labels import Pin, Tag
from lamella.format.lost import Lost
from lamella.format.records import Ref
from lamella.history.catalogue import Snapshot
from lamella.history.order import Order, Row
from lamella.history.owners import Owners

_Label = TypeVar("_Label", Tag, Pin)


class Labels:
    """Puts labels on the snapshots of one history."""

    def __init__(
        self,
        snapshots: Mapping[Ref, Snapshot],
        order: Order,
        is_signed: Callable[[Row], bool],
        owners_of: Callable[[VolumeId], Collection[WriterId]],
        owners: Owners,
    ) -> None:
        self._snapshots = snapshots
        self._order = order
        self._is_signed = is_signed
        self._owners_of = owners_of
        self._owners = owners

    def tags(self, rows: Iterable[tuple[Row, Tag]]) -> None:
        """Give the tags that stand to their snapshots."""
        tags: dict[tuple[Ref, str], list[tuple[Row, Tag]]] = defaultdict(list)
        for row, tag in rows:
            if self._counts(row, tag.ref):
                tags[tag.ref, tag.tag].append((row, tag))
        for ref, text in sorted(tags):
            if self._standing(tags[ref, text]):
                self._snapshots[ref].tags = (*self._snapshots[ref].tags, text)

    def pins(self, rows: Iterable[tuple[Row, Pin]]) -> None:
        """Pin the snapshots whose pins stand, with the last reason."""
        pins: dict[Ref, list[tuple[Row, Pin]]] = defaultdict(list)
        for row, pin in rows:
            if self._counts(row, pin.ref):
                pins[pin.ref].append((row, pin))
        for ref, some in pins.items():
            standing = self._standing(some)
            if standing:
                last = self._order.last(standing, lambda pair: pair[0].place)
                self._snapshots[ref].pinned = "" if last is None else last[1].reason

    def losses(self, rows: Iterable[tuple[Row, Lost]]) -> None:
        """The losses that the newest repairs found; those of several repairs that know nothing of each other add up."""
        said: dict[Ref, list[tuple[Row, Lost]]] = defaultdict(list)
        counting: dict[Ref, list[tuple[Row, Lost]]] = defaultdict(list)
        for row, lost in rows:
            if lost.ref in self._snapshots:
                said[lost.ref].append((row, lost))
            if self._counts(row, lost.ref):
                counting[lost.ref].append((row, lost))
        for ref, some in said.items():
            self._snapshots[ref].lost = self._lost(ref, some)
        for ref, some in counting.items():
            self._snapshots[ref].given_up = self._lost(ref, some) is not None

    def _counts(self, row: Row, ref: Ref) -> bool:
        """Whether a label counts: an owner's of the volume, the snapshot's own writer's, or a signed one."""
        snapshot = self._snapshots.get(ref)
        if snapshot is None:
            return False
        writer, author = row.place.writer, snapshot.first.writer
        if writer in self._owners_of(snapshot.added.volume_id) or author in self._owners.line(writer):
            return True
        return self._is_signed(row)

    def _lost(self, ref: Ref, rows: list[tuple[Row, Lost]]) -> Lost | None:
        last = [
            lost for row, lost in rows if not any(self._order.precedes(row.place, other.place) for other, _ in rows)
        ]
        ranges = sorted(one for lost in last for one in lost.ranges)
        together = Lost.of(ref, ranges, {name for lost in last for name in lost.documents})
        return None if together.whole else last[0] if len(last) == 1 else together

    def _standing(self, rows: list[tuple[Row, _Label]]) -> list[tuple[Row, _Label]]:
        """The labels that were given and not taken away since, by the one who gave them or by the prune key.

        So nobody who may only write can take away what makes others keep a snapshot.
        """
        removals = [row for row, label in rows if label.removed]
        return [
            (row, label)
            for row, label in rows
            if not label.removed
            and not any(
                self._order.precedes(row.place, gone.place)
                and (gone.place.writer == row.place.writer or self._is_signed(gone))
                for gone in removals
            )
        ]
