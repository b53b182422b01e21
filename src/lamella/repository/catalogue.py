"""What the commits add up to: volumes, snapshots, runs and expected files (FORMAT 8, State)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from lamella.crypto.derive import Keys
from lamella.errors import IntegrityError
from lamella.format.commit import Entry
from lamella.format.known import Known, understood
from lamella.format.records import (
    OPTIONAL,
    AddSnap,
    Confirm,
    File,
    FileGone,
    Ref,
    Run,
    Volume,
    Writer,
)
from lamella.ids import SnapId, VolumeId, WriterId
from lamella.repository.history import Chain, Clock, History
from lamella.repository.open_sessions import OpenSession, open_sessions
from lamella.repository.signed import prune_signed


@dataclass(slots=True)
class Snapshot:
    """One volume's committed moment, with what is known about its place in history."""

    ref: Ref
    added: AddSnap
    clock: Clock | None
    """What its commit knew of; None where only a checkpoint still carries it."""
    confirmed: bool = False
    conflict: bool = False

    @property
    def name(self) -> str:
        """The name it shares with the other volumes of its run."""
        return self.added.name


@dataclass(slots=True)
class VolumeState:
    """A volume with all its snapshots, oldest first."""

    volume_id: VolumeId
    name: str
    identity: bytes
    domain_label: str
    author: WriterId
    record: Volume | None
    snapshots: list[Snapshot] = field(default_factory=list)


@dataclass(slots=True)
class Catalogue:
    """The state of the repository: the union over all chains."""

    volumes: dict[VolumeId, VolumeState] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)
    writers: dict[WriterId, Writer] = field(default_factory=dict)
    sessions: list[OpenSession] = field(default_factory=list)
    """Runs that were begun and neither published nor given up."""
    notes: list[str] = field(default_factory=list)
    """Oddities worth telling: records that were not applied, conflicts, unknown records."""
    read_only: bool = False
    """A required record of a later version was met."""

    @property
    def snapshots(self) -> list[Snapshot]:
        """All snapshots of all volumes."""
        return [snapshot for volume in self.volumes.values() for snapshot in volume.snapshots]

    def shown_names(self) -> dict[VolumeId, str]:
        """The name of each volume as users see it: `NAME~<4 hex>` where several volumes share a name."""
        by_name: dict[str, list[VolumeState]] = defaultdict(list)
        for volume in self.volumes.values():
            by_name[volume.name].append(volume)
        return {
            volume.volume_id: name if len(group) == 1 else f"{name}~{volume.volume_id.hex()[:4]}"
            for name, group in by_name.items()
            for volume in group
        }


def before(one: Snapshot, other: Snapshot) -> bool | None:
    """Whether `one` comes before `other` in the order of chains and `seen`; None if that cannot be told."""
    if one.ref.writer == other.ref.writer:
        return one.ref.seq < other.ref.seq
    if other.added.parent == one.ref:
        return True
    if other.clock is None:
        return None
    return other.clock.get(one.ref.writer, 0) >= one.ref.seq


def latest(snapshots: Iterable[Snapshot]) -> list[Snapshot]:
    """The snapshots that are before no other one: usually one."""
    rows = list(snapshots)
    return [one for one in rows if not any(before(one, other) for other in rows if other is not one)]


def build(keys: Keys, history: History) -> Catalogue:
    """Add up all chains. Malformed records become notes, never exceptions."""
    return _Builder(keys, history).build()


_Named = tuple[WriterId, Entry, Volume]
"""A VOLUME record with the writer and the commit it came from."""


class _Builder:
    def __init__(self, keys: Keys, history: History) -> None:
        self._keys = keys
        self._history = history
        self._result = Catalogue()
        self._confirmed: set[Ref] = set()
        self._snapshots: dict[Ref, Snapshot] = {}
        self._of_id: dict[SnapId, Snapshot] = {}
        self._volumes: dict[VolumeId, list[_Named]] = defaultdict(list)
        self._gone: set[tuple[str, bytes]] = set()

    def build(self) -> Catalogue:
        for chain in self._history.chains.values():
            clocks = {commit.head.seq: chain.clocks[commit.head.sha256] for commit in chain.commits}
            for entry in chain.entries:
                self._apply(chain, entry, clocks.get(entry.seq))
        # Slots have fresh salts, so a name never comes back with the same bytes: the order of chains does not matter.
        files = self._result.files
        self._result.files = {name: row for name, row in files.items() if (name, row.sha256) not in self._gone}
        self._result.notes += self._history.unbacked
        self._result.sessions = open_sessions(self._history.chains.values())
        self._name_volumes()
        for snapshot in self._snapshots.values():
            snapshot.confirmed = snapshot.ref in self._confirmed
            volume = self._result.volumes.get(snapshot.added.volume_id)
            if volume is None:
                volume = self._nameless(snapshot)
            volume.snapshots.append(snapshot)
        for volume in self._result.volumes.values():
            volume.snapshots.sort(key=lambda snapshot: (snapshot.added.time_ms, snapshot.name, snapshot.ref))
        return self._result

    def _apply(self, chain: Chain, entry: Entry, clock: Clock | None) -> None:
        where = f"commit {entry.seq} of writer {chain.writer.hex()[:8]}"
        try:
            known = understood(entry.record)
        except IntegrityError as error:
            self._result.notes.append(f"{where}: {error.message}")
            return
        if known is None:
            if entry.record.type < OPTIONAL:
                self._result.read_only = True
                self._result.notes.append(f"{where} has a record of a later version (type {entry.record.type:#06x})")
            return
        self._apply_known(chain.writer, entry, known, clock, where)

    def _apply_known(self, writer: WriterId, entry: Entry, known: Known, clock: Clock | None, where: str) -> None:
        if isinstance(known, AddSnap):
            self._add_snapshot(Ref(writer, entry.seq, known.snap_id), known, clock)
        elif isinstance(known, Confirm):
            self._confirmed |= {ref for ref in known.refs if ref.writer == writer}
        elif isinstance(known, Volume):
            self._volumes[known.volume_id].append((writer, entry, known))
        elif isinstance(known, Run):
            self._result.runs[known.name] = known
        elif isinstance(known, Writer):
            self._result.writers[writer] = known
        elif isinstance(known, File):
            self._file(writer, entry, known, where)

    def _add_snapshot(self, ref: Ref, added: AddSnap, clock: Clock | None) -> None:
        if ref in self._snapshots:
            return
        made = self._snapshots[ref] = Snapshot(ref, added, clock)
        known = self._of_id.setdefault(added.snap_id, made)
        if known is not made:
            # Both stay listed: whoever publishes an id again must not be able to hide the first one.
            known.conflict = made.conflict = True
            self._result.notes.append(
                f"snapshot id {added.snap_id.hex()} was published twice; it is never used as a base"
            )

    def _file(self, writer: WriterId, entry: Entry, known: File, where: str) -> None:
        if not prune_signed(self._keys, writer, entry):
            self._result.notes.append(
                f"{where} says what {known.name} is without the prune key's signature: not believed"
            )
        elif isinstance(known, FileGone):
            self._gone.add((known.name, known.sha256))
        else:
            self._result.files[known.name] = known

    def _name_volumes(self) -> None:
        for volume_id, rows in self._volumes.items():
            author = self._first_author(rows)
            applying: list[_Named] = []
            for row in rows:
                if row[0] == author or prune_signed(self._keys, row[0], row[1]):
                    applying.append(row)
                else:
                    text = f"writer {row[0].hex()[:8]} renamed a volume of writer {author.hex()[:8]}: not believed"
                    self._result.notes.append(text)
            last = [row for row in applying if not any(self._precedes(row, other) for other in applying)]
            if last:
                volume = min(last, key=lambda row: row[0])[2]
                self._result.volumes[volume_id] = VolumeState(
                    volume_id, volume.name, volume.identity, volume.domain_label, author, volume
                )

    def _precedes(self, one: _Named, other: _Named) -> bool:
        """Whether `one` was published before `other`, by chains and `seen`."""
        (writer, entry, _), (by, after, _) = one, other
        if writer == by:
            return entry.seq < after.seq
        return self._clock(by, after.seq).get(writer, 0) >= entry.seq

    def _clock(self, writer: WriterId, seq: int) -> Clock:
        """What a commit had seen; nothing where only a checkpoint still carries it."""
        chain = self._history.chains[writer]
        found = next((commit for commit in chain.commits if commit.head.seq == seq), None)
        return {} if found is None else chain.clocks[found.head.sha256]

    def _first_author(self, rows: list[_Named]) -> WriterId:
        """Who published the first VOLUME: by chain and `seen` order, ties by the smaller writer id."""
        first = [row for row in rows if not any(self._precedes(other, row) for other in rows)]
        return min(row[0] for row in first or rows)

    def _nameless(self, snapshot: Snapshot) -> VolumeState:
        volume_id = snapshot.added.volume_id
        self._result.notes.append(f"volume {volume_id.hex()} has snapshots but no name")
        volume = VolumeState(volume_id, f"volume-{volume_id.hex()[:8]}", b"", "", snapshot.ref.writer, None)
        self._result.volumes[volume_id] = volume
        return volume
