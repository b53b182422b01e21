"""Deciding what a backup run will do with each source, before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from lamella.base.errors import UsageError
from lamella.base.ids import NO_CHUNK, DomainId, VolumeId
from lamella.format.records import UNSIGNED, Volume
from lamella.history.catalogue import Snapshot, VolumeState, latest
from lamella.memory.ledger import Ledger, LedgerEntry, ResumePoint, new_volume
from lamella.memory.verdicts import Confirmations
from lamella.operations.backup.change_map import ChangeMap
from lamella.operations.backup.pacing import Pace
from lamella.operations.shared.completeness import is_complete
from lamella.operations.shared.selection import find_snapshot
from lamella.operations.writing.unfinished import resume_point
from lamella.repository.repository import Repository
from lamella.sources.base import Source
from lamella.sources.registry import check_name, name_from

FULL, INCREMENTAL, COMPARE = "full", "incremental", "compare"
MODES = {FULL: 1, INCREMENTAL: 2, COMPARE: 3}
MAX_DOCUMENT = 1 << 20
MAX_DOCUMENTS = 16 << 20


@dataclass(frozen=True, slots=True)
class Request:
    """A source to back up, under `name` or, without one, the volume's known or default name.

    `domain` and `documents` are its own instead of the run's. With `follows` the volume takes the name given, whatever
    it was called before and whoever else is called so.
    """

    name: str | None
    source: Source
    domain: str | None = None
    documents: Mapping[str, bytes] | None = None
    follows: bool = False


@dataclass(frozen=True, slots=True)
class FailedRequest:
    """A source that could not even be opened: it makes the run incomplete and does not stop the others."""

    name: str
    message: str


@dataclass(frozen=True, slots=True)
class BackupOptions:
    """How to back up. `chunk_log2`, `domain` count at a volume's first backup only.

    `reread_bytes` of what a change map calls unchanged are re-read, the least recently seen first. `before` and `after`
    are commands run around the freeze, each for at most `hook_seconds`; `around` is entered between them. `changes` is
    another tool's map of what changed since the snapshot `changes_base`, for a single source. `pace` says how often a
    long run leaves a point from which another can go on. At most `read_rate` bytes a second of the sources are read.
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


@dataclass(slots=True)
class PlanRow:
    """What will be done with one source."""

    volume: str
    driver: str
    mode: str
    reason: str
    request: Request
    volume_id: VolumeId
    domain_id: DomainId
    chunk_log2: int | None
    """None: chosen by the size when it is known."""
    base: Snapshot | None
    entry: LedgerEntry | None
    """The kept moment of the base, if the run can be incremental."""
    record: Volume | None
    """A VOLUME record to publish; its chunk size is filled in when the size is known."""
    resume: ResumePoint | None = None
    """How far a run came that was broken off, if this one can go on from there."""
    source_bytes: int = 0
    notes: list[str] = field(default_factory=list)


def check_documents(documents: Mapping[str, bytes]) -> None:
    """Raises UsageError for documents that are too large, too many, or badly named."""
    for name, content in documents.items():
        check_name(name)
        if len(content) > MAX_DOCUMENT:
            raise UsageError(f"document {name} has {len(content)} bytes; at most 1 MiB is allowed", obj=name)
    if sum(map(len, documents.values())) > MAX_DOCUMENTS:
        raise UsageError("the documents of a snapshot may have 16 MiB together")


class Planner:
    """Makes plan rows against one state of the repository."""

    def __init__(self, repo: Repository, options: BackupOptions) -> None:
        self._repo = repo
        self._options = options
        self._waiting = set(Confirmations(repo.memory).waiting())
        self._ledger = Ledger(repo.memory, repo.keys)
        self._new_domains: dict[str, DomainId] = {}

    def rows(self, requests: Sequence[Request | FailedRequest]) -> list[PlanRow]:
        """One row for each source that opened. Raises UsageError for contradictions."""
        if self._options.changes is not None and len(requests) != 1:
            raise UsageError("a change map is of one source: name just that")
        rows = [self._resumed(self._row(request)) for request in requests if isinstance(request, Request)]
        names = [row.volume for row in rows]
        identities = [row.request.source.identity for row in rows]
        if len(set(identities)) != len(rows):
            raise UsageError("the same source is named twice")
        if len(set(names)) != len(rows):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"two sources would be called {twice}", hint="give them names: NAME=SOURCE")
        return rows

    def _row(self, request: Request) -> PlanRow:
        source = request.source
        known = self._by_identity(source.identity)
        if known is None:
            return self._new_row(request)
        shown = self._repo.catalogue.shown_names()[known.volume_id]
        if request.name is not None and request.follows:
            return self._known_row(request, known, self._renamed(request.name, known))
        if request.name is not None and request.name not in (known.name, shown):
            hint = f"leave the name out, or write {known.name}=SOURCE"
            raise UsageError(f"this source is already backed up as {shown}", obj=request.name, hint=hint)
        return self._known_row(request, known, None)

    def _resumed(self, row: PlanRow) -> PlanRow:
        """With the point from which the run can go on. Another tool's change map knows nothing of such points."""
        if self._options.changes is None:
            base_root = NO_CHUNK if row.base is None else row.base.added.root
            row.resume = resume_point(self._repo, row.request.source, row.volume_id, row.domain_id, base_root)
        return row

    def _by_identity(self, identity: bytes) -> VolumeState | None:
        found = [volume for volume in self._repo.catalogue.volumes.values() if volume.identity == identity]
        own = [volume for volume in found if volume.author == self._repo.own_writer]
        return next(iter(own or found), None)

    def _new_row(self, request: Request) -> PlanRow:
        source = request.source
        name = request.name if request.name is not None else name_from(source.default_name)
        check_name(name)
        holders = [volume for volume in self._repo.catalogue.volumes.values() if volume.name == name]
        if holders and not request.follows:
            return self._adopted_row(request, name, holders)
        domain = request.domain if request.domain is not None else self._options.domain
        label = "" if domain is None else check_name(domain)
        ids = new_volume(self._repo.memory, source.identity, label)
        domain_id = self._domain(label, ids.domain_id)
        log2 = self._options.chunk_log2
        record = Volume(ids.volume_id, domain_id, log2 or 0, name, label, source.identity)
        reason = "first backup of this volume"
        return PlanRow(name, source.driver, FULL, reason, request, ids.volume_id, domain_id, log2, None, None, record)

    def _domain(self, label: str, own: DomainId) -> DomainId:
        """A domain of its own, or the one of that label."""
        if not label:
            return own
        for volume in self._repo.catalogue.volumes.values():
            if volume.domain_label == label and volume.record is not None:
                return volume.record.domain_id
        return self._new_domains.setdefault(label, own)

    def _adopted_row(self, request: Request, name: str, holders: list[VolumeState]) -> PlanRow:
        if not self._options.adopt or len(holders) > 1:
            raise UsageError(
                f"the name {name} belongs to another source",
                obj=name,
                hint="continue its history with --adopt, or choose another name: NAME=SOURCE",
            )
        known = holders[0]
        if known.author != self._repo.own_writer and self._repo.keys.prune_seed is None:
            raise UsageError(f"adopting {name} needs an admin's secret: another writer made it", obj=name)
        if known.record is None:
            raise UsageError(f"the volume {name} cannot be adopted: its record is lost", obj=name)
        record = Volume(
            known.volume_id,
            known.record.domain_id,
            known.record.chunk_log2,
            name,
            known.domain_label,
            request.source.identity,
        )
        return self._known_row(request, known, record)

    def _known_row(self, request: Request, known: VolumeState, record: Volume | None) -> PlanRow:
        notes: list[str] = []
        if self._options.changes is not None:
            entry, why, base = None, *self._mapped_base(known, notes)
        else:
            entry, why = self._kept_moment(request.source, known)
            base = self._base(known, notes) if entry is None else self._snapshot(known, entry)
        shown = self._repo.catalogue.shown_names()[known.volume_id]
        if request.follows and record is not None:
            shown = record.name
        if base is not None:
            domain_id, log2 = base.added.domain_id, base.added.chunk_log2
            mode, reason = (COMPARE, why) if why else (INCREMENTAL, "")
        else:
            volume = record or known.record
            if volume is None:
                raise UsageError(f"volume {shown} cannot be continued: its record is lost", obj=shown)
            domain_id, log2 = volume.domain_id, volume.chunk_log2
            mode, reason = FULL, "no earlier snapshot of this volume can be used"
        if self._options.chunk_log2 not in (None, log2):
            raise UsageError(f"the chunk size of {shown} was fixed at its first backup: {1 << log2} bytes", obj=shown)
        return PlanRow(
            shown,
            request.source.driver,
            mode,
            reason,
            request,
            known.volume_id,
            domain_id,
            log2,
            base,
            entry,
            record,
            notes=notes,
        )

    def _renamed(self, name: str, known: VolumeState) -> Volume | None:
        """The record that gives a volume its present name, where it has another one and this host may change it."""
        mine = known.author == self._repo.own_writer or self._repo.keys.prune_seed is not None
        if known.name == name or known.record is None or not mine:
            return None
        return replace(known.record, name=check_name(name), signature=UNSIGNED)

    def _kept_moment(self, source: Source, volume: VolumeState) -> tuple[LedgerEntry | None, str]:
        """What an incremental run may build on, or None and the reason in words."""
        if not source.tracks:
            return None, f"the {source.driver} driver keeps no record of changes"
        entry, why = self._ledger.entry(volume.volume_id)
        if entry is None:
            return None, why
        if (entry.identity, entry.driver) != (source.identity, source.driver):
            return None, "the kept moment belongs to another source or driver"
        snapshot = self._snapshot(volume, entry)
        if snapshot is None or not snapshot.added.usable or snapshot.conflict:
            return None, "the snapshot that the kept moment belongs to is not in the repository"
        if not is_complete(self._repo, snapshot):
            return None, "parts of the last snapshot are missing from the repository"
        return entry, ""

    def _mapped_base(self, volume: VolumeState, notes: list[str]) -> tuple[str, Snapshot | None]:
        """The snapshot another tool's map starts from; with a reason, what is compared with instead."""
        newest = self._base(volume, notes)
        wanted = find_snapshot(self._repo, volume, self._options.changes_base)
        claimed = self._options.changes.base if self._options.changes is not None else ""
        if newest is None or wanted.ref != newest.ref:
            return "the snapshot that the change map starts from is not the latest usable one", newest
        if claimed and claimed != wanted.name:
            return f"the change map says that it starts from {claimed}", newest
        if not is_complete(self._repo, wanted):
            return "parts of the last snapshot are missing from the repository", newest
        return "", newest

    def _snapshot(self, volume: VolumeState, entry: LedgerEntry) -> Snapshot | None:
        added = (entry.root, entry.size, entry.chunk_log2)
        for snapshot in volume.snapshots:
            found = snapshot.added
            if snapshot.ref == entry.ref and (found.root, found.size, found.chunk_log2) == added:
                return snapshot
        return None

    def _base(self, volume: VolumeState, notes: list[str]) -> Snapshot | None:
        """The newest snapshot that is known to be whole: confirmed, or all its packs are there."""
        heads = latest(volume.snapshots)
        own = [snapshot for snapshot in heads if snapshot.ref.writer == self._repo.own_writer]
        order = [*(own or heads), *reversed(volume.snapshots)]
        for snapshot in order:
            if snapshot.conflict or not snapshot.added.usable:
                continue
            whole = snapshot.confirmed or snapshot.ref in self._waiting or self._packs_present(snapshot)
            # A prune may have rewritten what it needs into other packs.
            if whole or is_complete(self._repo, snapshot):
                return snapshot
            notes.append(f"snapshot {snapshot.name} of {volume.name} lacks packs: it is not used as a base")
        return None

    def _packs_present(self, snapshot: Snapshot) -> bool:
        return all(self._repo.blobs.length(pack) is not None for pack in snapshot.added.packs)
