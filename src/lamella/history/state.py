"""Adding up all chains and branches (FORMAT 8, State): whose word counts, and what it means.

The result depends on the records alone, not on the order in which chains are read. Malformed records become notes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from lamella.base.errors import IntegrityError
from lamella.base.ids import SnapId, VolumeId, WriterId
from lamella.crypto.derive import Keys
from lamella.format.inner import Origin
from lamella.format.known import LABELS, RARE, SESSIONS, is_known, understood
from lamella.format.records import OPTIONAL, AddSnap, Confirm, File, FileGone, Ref, Rename, Run, Volume, Writer
from lamella.history.catalogue import HERE, Catalogue, Series, Snapshot, VolumeState
from lamella.history.history import Chain, History
from lamella.history.order import Order, RecordPlace, Row
from lamella.history.owners import Owners
from lamella.history.records import prune_signed

if TYPE_CHECKING:
    from lamella.history.labels import Labels

_Kind = TypeVar("_Kind")
_Naming = TypeVar("_Naming", Volume, Rename)


def build(keys: Keys, history: History, own: WriterId | None = None) -> Catalogue:
    """Add up all chains, as the host sees them that writes as `own`. Malformed records become notes, no exceptions."""
    if not history.holds(RARE):
        return Builder(keys, history, own).build()
    from lamella.history.authority import FullBuilder  # young repositories have nothing of that

    return FullBuilder(keys, history, own).build()


class Builder:
    """Adds up the records that every repository has. `authority` adds deletions, handovers and losses."""

    def __init__(self, keys: Keys, history: History, own: WriterId | None) -> None:
        self._keys = keys
        self._own = own
        self._history = history
        self._order = Order(history.clocks)
        self._result = Catalogue()
        self._rows: dict[type, list[Row]] = defaultdict(list)
        self._signed: dict[RecordPlace, bool] = {}
        self._created: dict[VolumeId, set[WriterId]] = defaultdict(set)
        self._owned: dict[VolumeId, frozenset[WriterId]] = {}

    def build(self) -> Catalogue:
        """Add everything up."""
        chains = self._history.chains
        for writer in sorted(chains):
            self._read(chains[writer])
        self._result.notes += self._history.notes
        self._files()
        self._writers()
        self._owners()
        self._removals()
        snapshots = self._snapshots()
        self._label(snapshots)
        self._name_volumes()
        for ref in sorted(snapshots):
            self._volume_of(snapshots[ref]).snapshots.append(snapshots[ref])
        for volume in self._result.volumes.values():
            volume.snapshots.sort(key=lambda snapshot: (snapshot.added.time_ms, snapshot.name, snapshot.ref))
        self._runs(snapshots.values())
        self._sessions()
        return self._result

    def _sessions(self) -> None:
        if self._history.holds(SESSIONS):
            from lamella.history.open_sessions import open_sessions  # short runs say nothing before they are done

            chains = self._history.chains
            self._result.sessions = open_sessions(chains[writer] for writer in sorted(chains))

    # -- reading -------------------------------------------------------------------------------------------------------

    def _read(self, chain: Chain) -> None:
        end, left_out = self._end(chain), self._left_out(chain)
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

    def _left_out(self, chain: Chain) -> Collection[int]:
        """The positions of entries that do not count."""
        return ()

    def _end(self, chain: Chain) -> int:
        """The first commit with a required record of a later version: reading ends before it. 0: there is none."""
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

    # -- owners --------------------------------------------------------------------------------------------------------

    def _owners(self) -> None:
        """Who created volumes, and who acts for whom."""
        self._result.owners = Owners(self._handovers())
        if self._own is not None:
            self._result.own_line = self._result.owners.line(self._own)
        for row, volume in self._of(Volume):
            if volume.bound or self._is_signed(row):
                self._created[volume.volume_id].add(volume.creator)

    def _handovers(self) -> Iterable[tuple[WriterId, WriterId]]:
        """The writers that act for others, each with one of these."""
        return ()

    def _owners_of(self, volume_id: VolumeId) -> frozenset[WriterId]:
        found = self._owned.get(volume_id)
        if found is None:
            found = self._result.owners.acting_for(self._created.get(volume_id, ()))
            self._owned[volume_id] = found
        return found

    def _is_own(self, writer: WriterId) -> bool:
        """Whether this host acts for a writer."""
        return writer in self._result.own_line

    def _series(self, volume_id: VolumeId, writer: WriterId) -> Series:
        owned = writer in self._owners_of(volume_id)
        return Series(volume_id, None if owned else self._result.owners.root(writer))

    def _label(self, snapshots: Mapping[Ref, Snapshot]) -> None:
        if self._history.holds(LABELS):
            from lamella.format.labels import Pin, Tag  # many repositories have none

            labels = self._labels(snapshots)
            labels.tags(self._of(Tag))
            labels.pins(self._of(Pin))

    def _labels(self, snapshots: Mapping[Ref, Snapshot]) -> Labels:
        from lamella.history.labels import Labels  # many repositories have none

        return Labels(snapshots, self._order, self._is_signed, self._owners_of, self._result.owners)

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def _added(self) -> list[tuple[Row, AddSnap]]:
        """Every snapshot that was ever published."""
        return self._of(AddSnap)

    def _removals(self) -> None:
        """Fill `removed`."""

    def _snapshots(self) -> dict[Ref, Snapshot]:
        confirmed = {ref for row, known in self._of(Confirm) for ref in known.refs if ref.writer == row.place.writer}
        found: dict[Ref, Snapshot] = {}
        of_id: dict[SnapId, list[Snapshot]] = defaultdict(list)
        for row, added in self._added():
            ref = Ref(row.place.writer, row.place.seq, added.snap_id)
            if ref in found or ref in self._result.removed:
                continue
            made = found[ref] = Snapshot(ref, added, self._order.clock(ref.writer, ref.seq), ref in confirmed)
            self._place(made, row)
            of_id[added.snap_id].append(made)
        for same in of_id.values():
            # All stay listed: whoever publishes an id again must not be able to hide the first one, nor to harm it.
            owned = [one for one in same if not one.claim]
            for one in same if len(same) > 1 else ():
                one.conflict = one.claim or len(owned) > 1
            if len(same) > 1:
                id_ = same[0].added.snap_id.hex()
                self._result.notes.append(f"snapshot id {id_} was published twice; it is never used as a base")
        return found

    def _place(self, made: Snapshot, row: Row) -> None:
        """Fill in the snapshot's owner, and where it was first published."""
        origin, made.first = Origin.of(made.added), self._first(made.ref)
        if origin is not None:
            here = origin.first.repo_id == self._keys.marker.repo_id
            made.origin = origin.first._replace(repo_id=HERE) if here else origin.first
        made.series = self._series(made.added.volume_id, made.first.writer)
        made.counts = not made.claim or self._is_own(made.first.writer)

    def _first(self, ref: Ref) -> Ref:
        """The snapshot as its author published it."""
        return ref

    def _runs(self, snapshots: Iterable[Snapshot]) -> None:
        """Keep the RUN records of the writers whose snapshots they are about."""
        said = {(row.place.writer, known.name): known for row, known in self._of(Run)}
        for snapshot in sorted(snapshots, key=lambda one: (one.claim, one.ref), reverse=True):
            run = said.get((snapshot.ref.writer, snapshot.name))
            if run is not None:
                self._result.runs[snapshot.name] = run

    # -- names ---------------------------------------------------------------------------------------------------------

    def _name_volumes(self) -> None:
        names = self._by_volume(Rename)
        for volume_id, rows in self._by_volume(Volume).items():
            owners = self._owners_of(volume_id)
            applying = self._applying(rows, owners)
            mine = [(row, known) for row, known in rows if self._is_own(row.place.writer)]
            # Whoever says what a volume without an owner is names a claim, and binds nobody but itself.
            last = self._order.last(applying or mine or rows, lambda pair: pair[0].place)
            if last is None:
                continue
            record, said = last[1], [(row.place, known.name) for row, known in applying]
            said += [(row.place, known.name) for row, known in self._applying(names.get(volume_id, []), owners)]
            name = self._order.last(said, lambda pair: pair[0])
            own = not owners.isdisjoint([self._own]) or bool(mine and not owners)
            self._result.volumes[volume_id] = VolumeState(
                volume_id,
                record.name if name is None else name[1],
                record.identity,
                record.domain_label,
                owners,
                record,
                own,
            )

    def _by_volume(self, kind: type[_Naming]) -> dict[VolumeId, list[tuple[Row, _Naming]]]:
        found: dict[VolumeId, list[tuple[Row, _Naming]]] = defaultdict(list)
        for row, known in self._of(kind):
            found[known.volume_id].append((row, known))
        return found

    def _applying(self, rows: list[tuple[Row, _Naming]], owners: frozenset[WriterId]) -> list[tuple[Row, _Naming]]:
        applying: list[tuple[Row, _Naming]] = []
        for row, known in rows:
            if row.place.writer in owners or self._is_signed(row):
                applying.append((row, known))
            else:
                by = row.place.writer.hex()[:8]
                self._result.notes.append(f"writer {by} names a volume that is not its own: not believed")
        return applying

    def _volume_of(self, snapshot: Snapshot) -> VolumeState:
        volume_id = snapshot.added.volume_id
        volume = self._result.volumes.get(volume_id)
        if volume is None:
            self._result.notes.append(f"volume {volume_id.hex()} has snapshots but no name")
            name, owners = f"volume-{volume_id.hex()[:8]}", self._owners_of(volume_id)
            own = not owners.isdisjoint([self._own]) or (not owners and snapshot.counts)
            volume = VolumeState(volume_id, name, b"", "", owners, None, own)
            self._result.volumes[volume_id] = volume
        return volume
