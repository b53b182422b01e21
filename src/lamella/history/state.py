"""Adding up all chains and branches (FORMAT 8, State): whose word counts, and what it means.

The result depends on the records alone, not on the order in which chains are read. Malformed records become notes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from lamella.base.errors import IntegrityError
from lamella.base.ids import SnapId, VolumeId, WriterId
from lamella.crypto.derive import Keys
from lamella.format.commit import ChainEntry
from lamella.format.deletion import Audited, Condemn, Forgo, Reaped, Remove, RemoveLast, Rescue, Retire, Revive
from lamella.format.known import Known, is_known, understood
from lamella.format.lost import BAD_BYTES, Bad, Lost
from lamella.format.records import (
    OPTIONAL,
    AddSnap,
    Confirm,
    File,
    FileGone,
    Pin,
    Ref,
    Rename,
    Run,
    Tag,
    Volume,
    Writer,
)
from lamella.history.catalogue import Catalogue, Removal, Snapshot, VolumeState
from lamella.history.history import Chain, History
from lamella.history.open_sessions import open_sessions
from lamella.history.order import Order, RecordPlace
from lamella.history.records import prune_signed

_Kind = TypeVar("_Kind")
_Label = TypeVar("_Label", Tag, Pin)
_Naming = TypeVar("_Naming", Volume, Rename)


BAD_COUNTED = 65_536
"""Addresses in BAD records that count of each writer, the newest: as many as one verification publishes."""


class Row(NamedTuple):
    """A record with its place in history."""

    place: RecordPlace
    entry: ChainEntry
    known: Known

    @property
    def where(self) -> str:
        """For messages."""
        return f"commit {self.place.seq} of writer {self.place.writer.hex()[:8]}"


def build(keys: Keys, history: History) -> Catalogue:
    """Add up all chains. Malformed records become notes, never exceptions."""
    return _Builder(keys, history).build()


def _old_bad(entries: Sequence[ChainEntry]) -> set[int]:
    """The BAD records before the newest addresses of a writer that count: a flood costs its reader no more."""
    found: set[int] = set()
    left = BAD_COUNTED
    for position in range(len(entries) - 1, -1, -1):
        if entries[position].record.type == Bad.TYPE:
            left -= len(entries[position].record.value) // BAD_BYTES
            if left < 0:
                found.add(position)
    return found


class _Builder:
    def __init__(self, keys: Keys, history: History) -> None:
        self._keys = keys
        self._history = history
        self._order = Order(history.clocks)
        self._result = Catalogue()
        self._rows: dict[type, list[Row]] = defaultdict(list)
        self._signed: dict[RecordPlace, bool] = {}

    def build(self) -> Catalogue:
        for writer in sorted(self._history.chains):
            self._read(self._history.chains[writer])
        self._result.notes += self._history.notes
        self._files()
        self._writers()
        self._removals()
        snapshots = self._snapshots()
        self._labels(snapshots)
        self._losses(snapshots)
        self._name_volumes()
        for ref in sorted(snapshots):
            self._volume_of(snapshots[ref]).snapshots.append(snapshots[ref])
        for volume in self._result.volumes.values():
            volume.snapshots.sort(key=lambda snapshot: (snapshot.added.time_ms, snapshot.name, snapshot.ref))
        self._runs(snapshots.values())
        self._result.bad = frozenset(one for _, known in self._of(Bad) for one in known.addresses)
        self._result.sessions = open_sessions(self._history.chains[writer] for writer in sorted(self._history.chains))
        return self._result

    # -- reading -------------------------------------------------------------------------------------------------------

    def _read(self, chain: Chain) -> None:
        end, left_out = self._end(chain), _old_bad(chain.entries)
        for position, entry in enumerate(chain.entries):
            if (end and entry.seq >= end) or position in left_out:
                continue
            place = RecordPlace(chain.writer, entry.seq, position)
            where = f"commit {entry.seq} of writer {chain.writer.hex()[:8]}"
            try:
                known = understood(entry.record)
            except IntegrityError as error:
                text = f"{where}: {error.message}"
                self._result.notes.append(text)
                if entry.record.type < OPTIONAL:
                    self._result.malformed.append(text)
                continue
            if known is not None:
                self._rows[type(known)].append(Row(place, entry, known))

    def _end(self, chain: Chain) -> int:
        """The commit from which on a chain is not read: it has a required record of a later version. 0: none has."""
        later = [entry for entry in chain.entries if entry.record.type < OPTIONAL and not is_known(entry.record)]
        for entry in later:
            where = f"commit {entry.seq} of writer {chain.writer.hex()[:8]}"
            self._result.read_only |= prune_signed(self._keys, chain.writer, entry)
            text = f"{where} has a record of a later version (type {entry.record.type:#06x})"
            self._result.notes.append(text)
            self._result.unread.setdefault(chain.writer, text)
        return min((entry.seq for entry in later), default=0)

    def _of(self, kind: type[_Kind]) -> list[tuple[Row, _Kind]]:
        """The records of exactly this kind."""
        return [(row, row.known) for row in self._rows[kind] if isinstance(row.known, kind)]

    def _is_signed(self, row: Row) -> bool:
        found = self._signed.get(row.place)
        if found is None:
            found = self._signed[row.place] = prune_signed(self._keys, row.place.writer, row.entry)
        return found

    # -- files, writers ------------------------------------------------------------------------------------------------

    def _files(self) -> None:
        gone = {(known.name, known.sha256) for row, known in self._of(FileGone) if self._file_counts(row, known)}
        by_name: dict[str, list[tuple[Row, File]]] = defaultdict(list)
        for row, known in self._of(File):
            # Slots have fresh salts, so a name never comes back with the same bytes.
            if self._file_counts(row, known) and (known.name, known.sha256) not in gone:
                by_name[known.name].append((row, known))
        for name, found in by_name.items():
            last = self._order.last(found, lambda pair: pair[0].place)
            if last is not None:
                self._result.files[name] = last[1]

    def _file_counts(self, row: Row, known: File) -> bool:
        if self._is_signed(row):
            return True
        text = f"{row.where} says what {known.name} is without the prune key's signature: not believed"
        self._result.notes.append(text)
        return False

    def _writers(self) -> None:
        for row, known in self._of(Writer):
            self._result.writers[row.place.writer] = known
        for row, gone in self._of(Retire):
            if self._is_signed(row):
                self._result.retired[gone.head.writer] = gone.head
        for kind in (Condemn, Rescue, Reaped, Retire, Audited, Forgo, Revive):
            for row in self._rows[kind]:
                if not self._is_signed(row):
                    word = kind.__name__.upper()
                    self._result.notes.append(f"{row.where}: {word} without the prune key's signature: not believed")

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def _of_removes(self) -> list[tuple[Row, Remove]]:
        return [*self._of(Remove), *self._of(RemoveLast)]

    def _added(self) -> list[tuple[Row, AddSnap]]:
        """Every snapshot that was ever published: by its author, or anew by who holds the prune key."""
        found = self._of(AddSnap)
        for row, known in self._of(Revive):
            if self._is_signed(row):
                found.append((row, known.added))
        return found

    def _removals(self) -> None:
        added = {Ref(row.place.writer, row.place.seq, known.snap_id): known for row, known in self._added()}
        commits: dict[Ref, set[tuple[WriterId, int]]] = defaultdict(set)
        times: dict[Ref, int] = defaultdict(int)
        last: set[Ref] = set()
        for row, known in self._of_removes():
            if self._is_signed(row):
                for ref in known.refs:
                    commits[ref].add((row.place.writer, row.place.seq))
                    times[ref] = max(row.entry.time_ms, times[ref])
                last |= {*known.refs} if isinstance(known, RemoveLast) else set()
        revived = {known.removed for row, known in self._of(Revive) if self._is_signed(row)}
        for ref in sorted(commits):
            said = tuple(sorted(commits[ref]))
            self._result.removed[ref] = Removal(ref, added.get(ref), said, times[ref], ref in last, ref in revived)

    def _snapshots(self) -> dict[Ref, Snapshot]:
        confirmed = {ref for row, known in self._of(Confirm) for ref in known.refs if ref.writer == row.place.writer}
        found: dict[Ref, Snapshot] = {}
        of_id: dict[SnapId, Snapshot] = {}
        for row, added in self._added():
            ref = Ref(row.place.writer, row.place.seq, added.snap_id)
            if ref in found or ref in self._result.removed:
                continue
            made = found[ref] = Snapshot(ref, added, self._order.clock(ref.writer, ref.seq), ref in confirmed)
            made.revived = isinstance(row.known, Revive)
            known = of_id.setdefault(added.snap_id, made)
            if known is not made:
                # Both stay listed: whoever publishes an id again must not be able to hide the first one.
                known.conflict = made.conflict = True
                self._result.notes.append(
                    f"snapshot id {added.snap_id.hex()} was published twice; it is never used as a base"
                )
        self._mark_removed(found)
        return found

    def _mark_removed(self, found: dict[Ref, Snapshot]) -> None:
        for row, known in self._of_removes():
            marked = [found[ref] for ref in known.refs if ref in found]
            if self._is_signed(row) or not marked:
                continue
            for snapshot in marked:
                snapshot.marked_removed = True
            count = f"{len(marked)} snapshot{'' if len(marked) == 1 else 's'}"
            self._result.notes.append(f"{row.where} marks {count} as removed; without the prune key they stay")

    def _labels(self, found: dict[Ref, Snapshot]) -> None:
        tags: dict[tuple[Ref, str], list[tuple[Row, Tag]]] = defaultdict(list)
        for row, tag in self._of(Tag):
            if tag.ref in found:
                tags[tag.ref, tag.tag].append((row, tag))
        for ref, text in sorted(tags):
            if self._standing(tags[ref, text]):
                found[ref].tags = (*found[ref].tags, text)
        pins: dict[Ref, list[tuple[Row, Pin]]] = defaultdict(list)
        for row, pin in self._of(Pin):
            if pin.ref in found:
                pins[pin.ref].append((row, pin))
        for ref, rows in pins.items():
            standing = self._standing(rows)
            if standing:
                last = self._order.last(standing, lambda pair: pair[0].place)
                found[ref].pinned = "" if last is None else last[1].reason

    def _losses(self, found: dict[Ref, Snapshot]) -> None:
        """What the newest repairs said; where several know nothing of each other, all of it."""
        said: dict[Ref, list[tuple[Row, Lost]]] = defaultdict(list)
        counting: dict[Ref, list[tuple[Row, Lost]]] = defaultdict(list)
        for row, lost in self._of(Lost):
            if lost.ref in found:
                said[lost.ref].append((row, lost))
                if row.place.writer == lost.ref.writer or self._is_signed(row):
                    counting[lost.ref].append((row, lost))
        for ref, rows in said.items():
            found[ref].lost = self._lost(ref, rows)
        for ref, rows in counting.items():
            found[ref].given_up = self._lost(ref, rows) is not None

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

    def _runs(self, snapshots: Iterable[Snapshot]) -> None:
        """The word of a snapshot's own writer about the run it came from."""
        said = {(row.place.writer, known.name): known for row, known in self._of(Run)}
        for snapshot in sorted(snapshots, key=lambda one: one.ref, reverse=True):
            run = said.get((snapshot.ref.writer, snapshot.name))
            if run is not None:
                self._result.runs[snapshot.name] = run

    # -- names ---------------------------------------------------------------------------------------------------------

    def _name_volumes(self) -> None:
        volumes = self._by_volume(Volume)
        for volume_id, rows in volumes.items():
            first = self._order.first(rows, lambda pair: pair[0].place)
            author = WriterId(bytes(16)) if first is None else first[0].place.writer
            last = self._order.last(self._applying(rows, author), lambda pair: pair[0].place)
            if last is not None:
                record = last[1]
                self._result.volumes[volume_id] = VolumeState(
                    volume_id, record.name, record.identity, record.domain_label, author, record
                )
        for volume_id, renames in self._by_volume(Rename).items():
            self._rename(volume_id, renames, volumes.get(volume_id, []))

    def _by_volume(self, kind: type[_Naming]) -> dict[VolumeId, list[tuple[Row, _Naming]]]:
        found: dict[VolumeId, list[tuple[Row, _Naming]]] = defaultdict(list)
        for row, known in self._of(kind):
            found[known.volume_id].append((row, known))
        return found

    def _applying(self, rows: list[tuple[Row, _Naming]], author: WriterId) -> list[tuple[Row, _Naming]]:
        applying: list[tuple[Row, _Naming]] = []
        for row, known in rows:
            if row.place.writer == author or self._is_signed(row):
                applying.append((row, known))
            else:
                by, whose = row.place.writer.hex()[:8], author.hex()[:8]
                self._result.notes.append(f"writer {by} renamed a volume of writer {whose}: not believed")
        return applying

    def _rename(
        self, volume_id: VolumeId, renames: list[tuple[Row, Rename]], volumes: list[tuple[Row, Volume]]
    ) -> None:
        """The last name that applies, whichever kind of record gives it."""
        state = self._result.volumes.get(volume_id)
        if state is None:
            return
        quiet = [(row, known) for row, known in volumes if row.place.writer == state.author or self._is_signed(row)]
        names: list[tuple[RecordPlace, str]] = [(row.place, known.name) for row, known in quiet]
        names += [(row.place, known.name) for row, known in self._applying(renames, state.author)]
        last = self._order.last(names, lambda pair: pair[0])
        if last is not None:
            state.name = last[1]

    def _volume_of(self, snapshot: Snapshot) -> VolumeState:
        volume_id = snapshot.added.volume_id
        volume = self._result.volumes.get(volume_id)
        if volume is None:
            self._result.notes.append(f"volume {volume_id.hex()} has snapshots but no name")
            name = f"volume-{volume_id.hex()[:8]}"
            volume = VolumeState(volume_id, name, b"", "", snapshot.ref.writer, None)
            self._result.volumes[volume_id] = volume
        return volume
