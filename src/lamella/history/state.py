"""Adding up all chains and branches (FORMAT 8, State): whose word counts, and what it means.

The result depends on the records alone, not on the order in which chains are read. Malformed records become notes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from lamella.base.errors import IntegrityError
from lamella.base.ids import SnapId, VolumeId, WriterId
from lamella.crypto.derive import Keys
from lamella.crypto.sign import verified
from lamella.format.commit import ChainEntry, writer_id
from lamella.format.deletion import Audited, Condemn, Forgo, Reaped, Remove, RemoveLast, Rescue, Retire, Revive
from lamella.format.inner import Origin
from lamella.format.known import is_known, understood
from lamella.format.lost import BAD_BYTES, Bad, Lost
from lamella.format.owners import Admit, Expel, Give, Join, Readmit, Succeeds, succession_message
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
from lamella.history.catalogue import HERE, Catalogue, Removal, Series, Snapshot, VolumeState
from lamella.history.history import Chain, History
from lamella.history.open_sessions import open_sessions
from lamella.history.order import Order, RecordPlace, Row
from lamella.history.owners import Owners
from lamella.history.records import prune_signed

_Kind = TypeVar("_Kind")
_Naming = TypeVar("_Naming", Volume, Rename)


BAD_COUNTED = 65_536
"""Addresses in BAD records that count of each writer, the newest: as many as one verification publishes."""


def build(keys: Keys, history: History, own: WriterId | None = None) -> Catalogue:
    """Add up all chains, as the host sees them that writes as `own`. Malformed records become notes, no exceptions."""
    return _Builder(keys, history, own).build()


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
        self._revived: dict[Ref, Ref] = {}
        self._counting: dict[WriterId, Callable[[ChainEntry], bool]] = {}
        self._void: set[RecordPlace] = set()

    def build(self) -> Catalogue:
        chains = self._history.chains
        if any(entry.record.type == Expel.TYPE for chain in chains.values() for entry in chain.entries):
            self._expel(list(chains.values()))
        for writer in sorted(chains):
            self._read(chains[writer])
        self._result.notes += self._history.notes
        self._files()
        self._writers()
        self._owners()
        self._removals()
        snapshots = self._snapshots()
        if any(self._rows[kind] for kind in (Tag, Pin, Lost)):
            self._label(snapshots)
        self._name_volumes()
        for ref in sorted(snapshots):
            self._volume_of(snapshots[ref]).snapshots.append(snapshots[ref])
        for volume in self._result.volumes.values():
            volume.snapshots.sort(key=lambda snapshot: (snapshot.added.time_ms, snapshot.name, snapshot.ref))
        self._runs(snapshots.values())
        self._result.bad = frozenset(one for _, known in self._of(Bad) for one in known.addresses)
        sessions = open_sessions(chains[writer] for writer in sorted(chains))
        heads = self._result.expelled
        self._result.sessions = [one for one in sessions if one.writer not in heads or one.seq <= heads[one.writer].seq]
        return self._result

    # -- reading -------------------------------------------------------------------------------------------------------

    def _expel(self, chains: list[Chain]) -> None:
        from lamella.history.expelled import counts_in, expelled, expulsions  # few repositories have any

        self._result.expulsions = expulsions(self._keys, chains)
        self._result.expelled = expelled(self._result.expulsions, chains)
        for chain in chains:
            if chain.writer in self._result.expelled:
                self._counting[chain.writer] = counts_in(chain, self._result.expelled[chain.writer])

    def _is_void(self, chain: Chain, entry: ChainEntry) -> bool:
        """Whether an expelled writer said it when its word did not count any more."""
        counts = self._counting.get(chain.writer)
        return counts is not None and not counts(entry) and not prune_signed(self._keys, chain.writer, entry)

    def _read(self, chain: Chain) -> None:
        end, left_out = self._end(chain), _old_bad(chain.entries)
        for position, entry in enumerate(chain.entries):
            if (end and entry.seq >= end) or position in left_out:
                continue
            place = RecordPlace(chain.writer, entry.seq, position)
            if self._is_void(chain, entry):
                if entry.record.type != AddSnap.TYPE:
                    continue
                self._void.add(place)  # its data stays needed until somebody deletes that
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
        self._result.retired |= self._result.expelled
        for kind in (Condemn, Rescue, Reaped, Retire, Audited, Forgo, Revive, Join, Give, Expel, Readmit, Admit):
            for row in self._rows[kind]:
                if not self._is_signed(row):
                    word = kind.__name__.upper()
                    self._result.notes.append(f"{row.where}: {word} without the prune key's signature: not believed")

    # -- owners --------------------------------------------------------------------------------------------------------

    def _owners(self) -> None:
        """Who created volumes, and who acts for whom."""
        handovers = [(known.new, known.old) for row, known in self._of(Join) if self._is_signed(row)]
        for row, said in self._of(Succeeds):
            message = succession_message(self._keys.root, row.place.writer)
            if row.place.seq == 1 and verified(said.public, said.signature, message):
                handovers.append((row.place.writer, writer_id(said.public)))
            else:
                self._result.notes.append(f"{row.where}: SUCCEEDS without the other writer's signature: not believed")
        self._result.owners = Owners(handovers)
        if self._own is not None:
            self._result.own_line = self._result.owners.line(self._own)
        for row, volume in self._of(Volume):
            if volume.bound or self._is_signed(row):
                self._created[volume.volume_id].add(volume.creator)
        for row, given in self._of(Give):
            if self._is_signed(row):
                self._created[given.volume_id].add(given.writer)

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
        from lamella.history.labels import Labels  # many repositories have none

        labels = Labels(snapshots, self._order, self._is_signed, self._owners_of, self._result.owners)
        labels.tags(self._of(Tag))
        labels.pins(self._of(Pin))
        labels.losses(self._of(Lost))

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
        for row, revive in self._of(Revive):
            if self._is_signed(row):
                self._revived[Ref(row.place.writer, row.place.seq, revive.added.snap_id)] = revive.removed
        revived = {*self._revived.values()}
        for ref in sorted(commits):
            said, was = tuple(sorted(commits[ref])), added.get(ref)
            removal = Removal(ref, was, said, times[ref], ref in last, ref in revived)
            if was is not None:
                removal = replace(removal, series=self._series(was.volume_id, self._first(ref).writer))
            self._result.removed[ref] = removal

    def _snapshots(self) -> dict[Ref, Snapshot]:
        confirmed = {ref for row, known in self._of(Confirm) for ref in known.refs if ref.writer == row.place.writer}
        found: dict[Ref, Snapshot] = {}
        of_id: dict[SnapId, list[Snapshot]] = defaultdict(list)
        for row, added in self._added():
            ref = Ref(row.place.writer, row.place.seq, added.snap_id)
            if ref in found or ref in self._result.removed:
                continue
            made = found[ref] = Snapshot(ref, added, self._order.clock(ref.writer, ref.seq), ref in confirmed)
            made.revived = ref in self._revived
            self._place(made)
            if row.place in self._void:
                made.expelled, made.counts, made.series = True, False, Series(added.volume_id, ref.writer)
            of_id[added.snap_id].append(made)
        for same in of_id.values():
            # All stay listed: whoever publishes an id again must not be able to hide the first one, nor to harm it.
            owned = [one for one in same if not one.claim]
            for one in same if len(same) > 1 else ():
                one.conflict = one.claim or len(owned) > 1
            if len(same) > 1:
                id_ = same[0].added.snap_id.hex()
                self._result.notes.append(f"snapshot id {id_} was published twice; it is never used as a base")
        self._mark_removed(found)
        return found

    def _place(self, made: Snapshot) -> None:
        """Whose it is, and where it was first published."""
        origin, made.first = Origin.of(made.added), self._first(made.ref)
        if origin is not None:
            here = origin.first.repo_id == self._keys.marker.repo_id
            made.origin = origin.first._replace(repo_id=HERE) if here else origin.first
        made.series = self._series(made.added.volume_id, made.first.writer)
        made.counts = not made.claim or self._is_own(made.first.writer)

    def _first(self, ref: Ref) -> Ref:
        """What a snapshot was before it was revived, however often."""
        passed = {ref}
        while (before := self._revived.get(ref, ref)) not in passed:
            passed.add(before)
            ref = before
        return ref

    def _mark_removed(self, found: dict[Ref, Snapshot]) -> None:
        for row, known in self._of_removes():
            marked = [found[ref] for ref in known.refs if ref in found]
            if self._is_signed(row) or not marked:
                continue
            for snapshot in marked:
                snapshot.marked_removed = True
            count = f"{len(marked)} snapshot{'' if len(marked) == 1 else 's'}"
            self._result.notes.append(f"{row.where} marks {count} as removed; without the prune key they stay")

    def _runs(self, snapshots: Iterable[Snapshot]) -> None:
        """The word of a snapshot's own writer about the run it came from."""
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
