"""Deciding, before anything is read, what a backup run will do with each source."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lamella.base.errors import UsageError
from lamella.base.ids import NO_CHUNK, ChunkId, DomainId, VolumeId
from lamella.format.node import Shape
from lamella.format.records import UNSIGNED, RawRecord, Signed, Volume
from lamella.format.sessions import PartialRoot
from lamella.history.catalogue import Snapshot, VolumeState
from lamella.history.latest import latest
from lamella.memory.confirmations import Confirmations
from lamella.memory.ledger import Ledger, LedgerEntry, ResumePoint, new_volume
from lamella.operations.shared.completeness import is_complete
from lamella.packs.tree import Tree
from lamella.repository.repository import Repository
from lamella.sources.base import FrozenVolume, Source
from lamella.sources.names import check_name, name_from

if TYPE_CHECKING:
    from lamella.operations.shared.change_map import ChangeMap

FULL, INCREMENTAL, COMPARE = "full", "incremental", "compare"
MAX_DOCUMENT = 1 << 20
MAX_DOCUMENTS = 16 << 20


@dataclass(frozen=True, slots=True)
class Request:
    """A source to back up, under `name` or, without one, the volume's known or default name.

    `domain` and `documents` replace those of the run. With `follows` the volume takes the given name, whatever its name
    was before and whoever else has that name. A new volume without `name` takes the first of `names` that no other
    volume has, and the chunk size of the run or else `chunk_log2`. `notes` go into the record of the snapshot; its time
    is `time_ms` instead of the moment of the run.
    """

    name: str | None
    source: Source
    domain: str | None = None
    documents: Mapping[str, bytes] | None = None
    follows: bool = False
    names: tuple[str, ...] = ()
    chunk_log2: int | None = None
    notes: tuple[RawRecord, ...] = ()
    time_ms: int | None = None


@dataclass(frozen=True, slots=True)
class FailedRequest:
    """A source that could not even be opened: the run is incomplete, and saves the others."""

    name: str
    message: str


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace at which a long run records its progress: after so many bytes or seconds, whichever comes first.

    A run that is stopped records this once more if it has read at least `least_bytes` since the last time.
    """

    bytes: int = 8 << 30
    seconds: float = 600.0
    least_bytes: int = 64 << 20
    now: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class BackupOptions:
    """Options of a backup. `chunk_log2` and `domain` count at a volume's first backup only.

    `reread_bytes` of what a change map calls unchanged are read again, the least recently read first. `before` and
    `after` are commands run around the freeze, each for at most `hook_seconds`; `around` is entered between them.
    `changes` is another tool's map of what changed since the snapshot `changes_base`, for a single source. `pace` says
    how often a long run leaves a point from which another run can go on. The sources are read with at most `read_rate`
    bytes a second. With `require_consistent` a volume that shows no single moment fails. `scrub` takes files out
    of each frozen volume: called with the stack that holds the moments, source, moment, and who is told of trouble, it
    gives the moment to read instead, and notes for the snapshot. With `deltas` a chunk may be stored as its difference
    from what it was in the last snapshot (docs/decisions/0077).
    """

    compression: str = "auto"
    chunk_log2: int | None = None
    domain: str | None = None
    adopt: bool = False
    documents: Mapping[str, bytes] = field(default_factory=dict)
    workers: int | None = None
    check_all: bool = False
    lock_wait: float = 0.0
    reread_bytes: int = 0
    changes: ChangeMap | None = None
    changes_base: str = ""
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    hook_seconds: float = 60.0
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    pace: Pace = field(default_factory=Pace)
    read_rate: int | None = None
    require_consistent: bool = False
    scrub: Callable[..., tuple[FrozenVolume, tuple[RawRecord, ...]]] | None = None
    deltas: bool = False


@dataclass(frozen=True, slots=True)
class VolumePlan:
    """The plan for one source."""

    volume: str
    """The volume's name as it is shown."""
    mode: str
    reason: str
    request: Request
    volume_id: VolumeId
    domain_id: DomainId
    chunk_log2: int | None
    """None: chosen by the size when the size is known."""
    base: Snapshot | None = None
    entry: LedgerEntry | None = None
    """The checkpoint of the base, if the run can be incremental."""
    record: Volume | None = None
    """A VOLUME record to publish; its chunk size is filled in when the size is known."""
    handover: Signed | None = None
    """The record by which this host becomes an owner of the volume."""
    resume: ResumePoint | None = None
    """The progress of an interrupted run, if this run can continue from there."""
    notes: tuple[str, ...] = ()

    @property
    def driver(self) -> str:
        """The driver that reads the source."""
        return self.request.source.driver

    @property
    def base_root(self) -> ChunkId:
        """The root of the base's tree, NO_CHUNK without a base."""
        return NO_CHUNK if self.base is None else self.base.added.root


def check_documents(documents: Mapping[str, bytes]) -> None:
    """Raises UsageError for documents that are too large, too many, or badly named."""
    for name, content in documents.items():
        check_name(name)
        if len(content) > MAX_DOCUMENT:
            raise UsageError(f"document {name} has {len(content)} bytes; at most 1 MiB is allowed", obj=name)
    if sum(map(len, documents.values())) > MAX_DOCUMENTS:
        raise UsageError("the documents of a snapshot may have 16 MiB together")


def partial_tree(volume_id: VolumeId, reached: ResumePoint | PartialRoot) -> Tree:
    """The tree of a volume as far as a run has come."""
    return Tree(Shape(volume_id, reached.size, reached.chunk_log2), reached.root)


def plan_volumes(
    repo: Repository, options: BackupOptions, requests: Sequence[Request | FailedRequest]
) -> list[VolumePlan]:
    """One plan for each source that opened, against what repository and host know now.

    Raises UsageError for contradictions, RolledBack, StoreError.
    """
    repo.require_sound_history()
    repo.refresh_map()
    repo.contents.keeps_nodes = repo.store.abilities.distant
    planning = _Planning(repo, options)
    plans = [planning.volume(request) for request in requests if isinstance(request, Request)]
    names = [plan.volume for plan in plans]
    if len({plan.request.source.identity for plan in plans}) != len(plans):
        raise UsageError("the same source is named twice")
    if len(set(names)) != len(plans):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"two sources would be called {twice}", hint="give them names: NAME=SOURCE")
    if len({plan.volume_id for plan in plans}) != len(plans):
        raise UsageError("the key of this store is for one volume: name one source")
    return plans


_CLAIMS = "its snapshots count as claims until an admin lets this host act for that writer"


class _Planning:
    """Planning one run against one state of the repository."""

    def __init__(self, repo: Repository, options: BackupOptions) -> None:
        self._repo = repo
        self._options = options
        self._volumes = repo.catalogue.own_volumes()
        """By whose names, identities and domain labels this host goes."""
        self._others = [volume for volume in repo.catalogue.volumes.values() if not volume.own]
        self._shown = repo.catalogue.shown_names()
        self._waiting = set(Confirmations(repo.memory).waiting())
        self._ledger = Ledger(repo.memory, repo.keys)
        self._new_domains: dict[str, DomainId] = {}

    def volume(self, request: Request) -> VolumePlan:
        """The plan for one source."""
        identity, record, handover = request.source.identity, None, None
        notes: list[str] = []
        known = next((volume for volume in self._volumes if volume.identity == identity), None)
        others = [] if known is not None else [one for one in self._others if one.identity == identity]
        if known is None and not self._options.adopt:
            known = next((volume for volume in others if self._goes_on(volume)), None)
        if known is not None:
            record = self._renamed(request, known)
        else:
            name = check_name(name_from(request.source.default_name) if request.name is None else request.name)
            if request.names:
                from lamella.operations.backup.new_names import free_name  # most backups name their sources

                name = free_name(request.names, self._volumes, notes, adopt=self._options.adopt)
            holders = [volume for volume in self._volumes if volume.name == name]
            others = others or [volume for volume in self._others if volume.name == name]
            if holders and not request.follows:
                from lamella.operations.backup.adoption import adopted  # once in the life of a volume

                known, record = adopted(request, name, holders, adopt=self._options.adopt)
            elif others and self._options.adopt:
                from lamella.operations.backup.adoption import taken_over

                known, record, handover = taken_over(self._repo, request, name, others)
            elif others:
                notes.append(f"another writer has a volume {name}: to continue that volume instead, add --adopt")
        plan = self._first(request, name) if known is None else self._next(request, known, record)
        if known is not None and not known.own and handover is None:
            notes.append(f"{plan.volume} is another writer's: {_CLAIMS}{'; or add --adopt' * self._may_change(known)}")
        plan = replace(plan, handover=handover, notes=(*plan.notes, *notes))
        if self._options.changes is not None or not request.source.tracks:
            return plan  # another tool's change map knows nothing of resume points
        from lamella.operations.backup.resuming import resume_point  # only where moments are kept

        return replace(plan, resume=resume_point(self._repo, plan))

    # -- which volume -------------------------------------------------------------------------------------------------

    def _goes_on(self, volume: VolumeState) -> bool:
        """Whether what this host saves goes to another writer's volume of the same source, as a claim.

        A host that lost its state does so, and goes on with what it claims. No other host does: whoever can write may
        say in advance what the source of somebody's next volume is.
        """
        own = self._repo.own_writer
        begins = own is None or own not in self._repo.history.chains
        return begins or any(snapshot.claim and snapshot.counts for snapshot in volume.snapshots)

    def _may_change(self, volume: VolumeState) -> bool:
        return volume.own or self._repo.keys.prune_seed is not None

    def _renamed(self, request: Request, known: VolumeState) -> Volume | None:
        """The record that gives a known volume the requested name, if it needs one and this host may change it."""
        shown = self._shown[known.volume_id]
        if request.name is None or not request.follows:
            if request.name not in (None, known.name, shown):
                hint = f"leave the name out, or write {known.name}=SOURCE"
                raise UsageError(f"this source is already backed up as {shown}", obj=request.name or "", hint=hint)
            return None
        if known.name == request.name or known.record is None or not self._may_change(known):
            return None
        return replace(known.record, name=check_name(request.name), signature=UNSIGNED)

    def _first(self, request: Request, name: str) -> VolumePlan:
        """The first backup of a volume."""
        domain = request.domain if request.domain is not None else self._options.domain
        label = "" if domain is None else check_name(domain)
        identity, log2 = request.source.identity, self._options.chunk_log2 or request.chunk_log2
        ids = new_volume(self._repo.memory, identity, label)
        domain_id = self._domain(label, ids.domain_id)
        record = Volume(ids.volume_id, domain_id, log2 or 0, name, label, identity, ids.creator, ids.nonce)
        if self._repo.keys.lent is not None:
            from lamella.operations.backup.lent import lent_volume  # in the store of one qube's files

            record = lent_volume(self._repo, record)
        reason = "first backup of this volume"
        return VolumePlan(name, FULL, reason, request, record.volume_id, record.domain_id, log2, record=record)

    def _domain(self, label: str, own: DomainId) -> DomainId:
        """A domain of its own, or the domain of that label."""
        if not label:
            return own
        for volume in self._volumes:
            if volume.domain_label == label and volume.record is not None:
                return volume.record.domain_id
        return self._new_domains.setdefault(label, own)

    # -- from which base ----------------------------------------------------------------------------------------------

    def _next(self, request: Request, known: VolumeState, record: Volume | None) -> VolumePlan:
        """A further backup of a known volume."""
        notes: list[str] = []
        base, entry, why = self._start(request.source, known, notes)
        shown = record.name if request.follows and record is not None else self._shown[known.volume_id]
        fixed = (record or known.record) if base is None else base.added
        if fixed is None:
            raise UsageError(f"volume {shown} cannot be continued: its record is lost", obj=shown)
        domain_id, log2 = fixed.domain_id, fixed.chunk_log2
        if request.domain is None and self._options.domain not in (None, known.domain_label):
            hint = "leave --domain out for volumes that were backed up before"
            raise UsageError(f"the domain of {shown} was chosen at its first backup", obj=shown, hint=hint)
        if self._options.chunk_log2 not in (None, log2):
            raise UsageError(f"the chunk size of {shown} is {1 << log2 - 10} KiB since its first backup", obj=shown)
        mode, reason = (COMPARE, why) if why else (INCREMENTAL, "")
        if base is None:
            mode, reason = FULL, "no earlier snapshot of this volume can be used"
        made = VolumePlan(shown, mode, reason, request, known.volume_id, domain_id, log2, base, entry, record)
        return replace(made, notes=tuple(notes))

    def _start(
        self, source: Source, known: VolumeState, notes: list[str]
    ) -> tuple[Snapshot | None, LedgerEntry | None, str]:
        """The base, its checkpoint if it is needed, and why the run cannot be incremental; "" if it can."""
        if self._options.changes is not None:
            newest = self._base(known, notes)
            from lamella.operations.backup.changes import map_mismatch  # only for other tools' maps

            return newest, None, map_mismatch(self._repo, self._options, known, newest)
        entry, base, why = self._kept_moment(source, known)
        return (self._base(known, notes) if entry is None else base), entry, why

    def _kept_moment(self, source: Source, volume: VolumeState) -> tuple[LedgerEntry | None, Snapshot | None, str]:
        """The snapshot that an incremental run can build on, or None and the reason in words."""
        if not source.tracks:
            return None, None, "its storage cannot tell what changed"
        entry, why = self._ledger.entry(volume.volume_id)
        if entry is None:
            return None, None, why
        if (entry.identity, entry.driver) != (source.identity, source.driver):
            return None, None, "the checkpoint belongs to another source or driver"
        stored = (entry.ref, entry.root, entry.size, entry.chunk_log2)
        for base in volume.snapshots:
            added = base.added
            same = (base.ref, added.root, added.size, added.chunk_log2) == stored
            if same and added.usable and not self._ambiguous(base):
                break
        else:
            return None, None, "the snapshot that the checkpoint belongs to is not in the repository"
        if not is_complete(self._repo, base):
            return None, None, "parts of the last snapshot are missing from the repository"
        return entry, base, ""

    def _base(self, volume: VolumeState, notes: list[str]) -> Snapshot | None:
        """The newest snapshot that is known to be whole: confirmed, or all its packs are there."""
        counting = [snapshot for snapshot in volume.snapshots if snapshot.counts]
        for snapshot in (*latest(counting, self._repo.log.believed_ms), *reversed(counting)):
            if self._ambiguous(snapshot) or not snapshot.added.usable:
                continue
            packs = snapshot.added.packs  # none: nothing was stored, or more than may be listed
            there = bool(packs) and all(self._repo.blobs.length(pack) is not None for pack in packs)
            whole = snapshot.confirmed or snapshot.ref in self._waiting or there
            # A prune may have rewritten what it needs into other packs.
            if whole or is_complete(self._repo, snapshot):
                return snapshot
            notes.append(f"snapshot {snapshot.name} of {volume.name} lacks packs: it is not used as a base")
        return None

    def _ambiguous(self, snapshot: Snapshot) -> bool:
        """Whether its id stands for two snapshots; what others publish under an id of this host's changes nothing."""
        own = self._repo.own_writer
        if not snapshot.conflict or snapshot.ref.writer != own:
            return snapshot.conflict
        rivals = (one.ref for one in self._repo.catalogue.snapshots if one.added.snap_id == snapshot.added.snap_id)
        return any(ref.writer == own and ref != snapshot.ref for ref in rivals)
