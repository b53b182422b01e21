"""Deciding which snapshots are copied, and to which volumes of the other repository they belong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from typing import NamedTuple

from lamella.base.errors import NothingMatched, UsageError
from lamella.base.ids import DomainId, VolumeId, WriterId
from lamella.format.inner import OriginPlace, first_place
from lamella.format.records import NO_ORIGIN, Ref, Volume, VolumeOrigin, volume_id
from lamella.history.catalogue import Snapshot, VolumeState
from lamella.operations.shared.selection import Selected, find_snapshot, find_volume, split_selector
from lamella.repository.repository import Repository


class State(Enum):
    """The outcome of copying one snapshot."""

    WANTED = "wanted"
    COPIED = "copied"
    PRESENT = "present"
    """The other repository has it, as a copy or as the original."""
    REMOVED = "removed"
    """The other repository had it, and it was removed there: only naming the snapshot copies it again."""
    FAILED = "failed"
    """It could not be read or understood."""


@dataclass(frozen=True, slots=True)
class CopyDestination:
    """A volume of the other repository. `record` is what introduces it there, None if it is there already."""

    volume_id: VolumeId
    domain_id: DomainId
    name: str
    record: Volume | None


@dataclass(slots=True)
class CopyRow:
    """One selected snapshot. `there` is its copy in the other repository, once that is known."""

    selected: Selected
    state: State
    reason: str = ""
    destination: CopyDestination | None = None
    there: Snapshot | None = None

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot in the source repository."""
        return self.selected.snapshot


class Chosen(NamedTuple):
    """A snapshot to copy, and whether it was named itself."""

    selected: Selected
    named: bool


def choose(repo: Repository, selectors: Sequence[str], last: int | None = None) -> list[Chosen]:
    """The selected snapshots in history order; `VOLUME` means all of its snapshots, no selector everything.

    `last`: of a volume only so many of the newest, where no snapshot is named.

    Raises NothingMatched, UsageError.
    """
    shown = repo.catalogue.shown_names()
    found: dict[Ref, Chosen] = {}

    def add(volume: VolumeState, snapshots: Iterable[Snapshot], named: bool) -> None:
        for one in snapshots:
            again = named or (one.ref in found and found[one.ref].named)
            found[one.ref] = Chosen(Selected(shown[volume.volume_id], volume, one), again)

    for selector in selectors:
        name, text = split_selector(selector)
        volume = find_volume(repo, name)
        add(volume, _counting(volume, last) if text is None else [find_snapshot(repo, volume, text)], text is not None)
    for volume in repo.catalogue.volumes.values() if not selectors else ():
        add(volume, _counting(volume, last), False)
    if not found:
        raise NothingMatched("there is no snapshot to copy", obj=repo.store.url, hint="see: lamella list")
    return _in_order(found.values())


def _counting(volume: VolumeState, last: int | None) -> list[Snapshot]:
    """What others added to a volume would become the copier's own: only by its name is such a one copied."""
    return [snapshot for snapshot in volume.snapshots if snapshot.counts][-last if last else None :]


def _in_order(found: Iterable[Chosen]) -> list[Chosen]:
    """Run by run, oldest first, the volumes of a run by name."""
    rows = list(found)
    began: dict[str, int] = {}
    for one in rows:
        added = one.selected.snapshot.added
        began[added.name] = min(added.time_ms, began.get(added.name, added.time_ms))

    def place(one: Chosen) -> tuple[int, str, str]:
        name = one.selected.snapshot.name
        return began[name], name, one.selected.volume_name

    return sorted(rows, key=place)


class CopyPlanner:
    """Makes rows against one state of both repositories."""

    def __init__(self, source: Repository, target: Repository) -> None:
        self._source = source
        self._target = target
        self._there = {_first(target, one): one for one in target.catalogue.snapshots if one.counts}
        gone = target.catalogue.removed.values()
        self._removed = {first_place(target.repo_id, one.ref, one.added) for one in gone if one.added is not None}
        self._destinations: dict[VolumeId, CopyDestination] = {}

    def rows(self, chosen: Sequence[Chosen]) -> list[CopyRow]:
        """One row for each selected snapshot."""
        return [self._row(one, named) for one, named in chosen]

    def _row(self, one: Selected, named: bool) -> CopyRow:
        there = self._there.get(_first(self._source, one.snapshot))
        if there is not None and same_moment(one.snapshot, there):
            place = CopyDestination(there.added.volume_id, there.added.domain_id, one.volume_name, None)
            return CopyRow(one, State.PRESENT, destination=place, there=there)
        if not named and _first(self._source, one.snapshot) in self._removed:
            return CopyRow(one, State.REMOVED)
        if not one.snapshot.added.usable:
            return CopyRow(one, State.FAILED, "this snapshot needs a newer version of lamella")
        return CopyRow(one, State.WANTED, destination=self._destination(one.volume))

    def copies(self, volume: VolumeState) -> dict[int, Snapshot]:
        """The copies in the target of a source volume's snapshots, by the number of the snapshot in the source."""
        found: dict[int, Snapshot] = {}
        for number, snapshot in enumerate(volume.snapshots):
            there = self._there.get(_first(self._source, snapshot))
            if there is not None and same_moment(snapshot, there):
                found[number] = there
        return found

    def _destination(self, volume: VolumeState) -> CopyDestination:
        known = self._destinations.get(volume.volume_id)
        if known is None:
            known = self._destinations[volume.volume_id] = self._chosen(volume)
        return known

    def _chosen(self, volume: VolumeState) -> CopyDestination:
        """The volume of which this one is a copy or that is a copy of it, else one of the same source, else a new one.

        Only this host's own volumes are continued.
        """
        origin = _origin(self._source, volume)
        own = self._target.catalogue.own_volumes()
        same = next((one for one in own if _origin(self._target, one) == origin), None) or self._of_same_source(volume)
        if same is not None:
            shown = self._target.catalogue.shown_names()[same.volume_id]
            return CopyDestination(same.volume_id, _domain_of(same), shown, None)
        record = volume.record
        newest = volume.snapshots[-1].added
        domain_id = self._labelled(volume.domain_label) or (newest.domain_id if record is None else record.domain_id)
        key = self._target.memory.writer_key()
        # A copy that is interrupted finds what it stored again: the id follows from the original's.
        nonce = sha256(b"copy\0" + origin.repo_id + origin.volume_id).digest()[:16]
        creator = WriterId(bytes(16)) if key is None else key.id
        id_, log2 = volume_id(creator, nonce), newest.chunk_log2
        made = Volume(id_, domain_id, log2, volume.name, volume.domain_label, volume.identity, creator, nonce, origin)
        return CopyDestination(id_, domain_id, volume.name, made)

    def _of_same_source(self, volume: VolumeState) -> VolumeState | None:
        """A volume that the same source was backed up to, on the same grid."""
        if not volume.identity:
            return None
        grid = {one.added.chunk_log2 for one in volume.snapshots}
        for other in self._target.catalogue.own_volumes():
            if other.identity == volume.identity and {one.added.chunk_log2 for one in other.snapshots} <= grid:
                return other
        return None

    def _labelled(self, label: str) -> DomainId | None:
        """The target's domain of that label: volumes that share one here share one there."""
        for volume in self._target.catalogue.own_volumes():
            if label and volume.domain_label == label and volume.record is not None:
                return volume.record.domain_id
        return None


def _origin(repo: Repository, volume: VolumeState) -> VolumeOrigin:
    """By what a volume is known in every repository."""
    if volume.record is not None and volume.record.origin != NO_ORIGIN:
        return volume.record.origin
    return VolumeOrigin(repo.repo_id, volume.volume_id)


def _first(repo: Repository, snapshot: Snapshot) -> OriginPlace:
    return first_place(repo.repo_id, snapshot.ref, snapshot.added)


def same_moment(one: Snapshot, there: Snapshot) -> bool:
    """Whether a snapshot that claims to be a copy of another can be it, as far as it says without reading its tree."""
    a, b = one.added, there.added
    return (a.size, a.chunk_log2, a.time_ms, a.name) == (b.size, b.chunk_log2, b.time_ms, b.name)


def _domain_of(volume: VolumeState) -> DomainId:
    return volume.record.domain_id if volume.record is not None else volume.snapshots[-1].added.domain_id


def by_run(rows: Sequence[CopyRow]) -> list[list[CopyRow]]:
    """The rows of each run together, in order."""
    groups: dict[str, list[CopyRow]] = defaultdict(list)
    for row in rows:
        groups[row.snapshot.name].append(row)
    return list(groups.values())


def require_two(source: Repository, target: Repository) -> None:
    """Raises UsageError if both are one repository."""
    if source.repo_id == target.repo_id:
        hint = "lamella mirror makes a second place of one repository"
        raise UsageError("both places are the same repository", obj=target.store.url, hint=hint)
