"""Backing up: plan, freeze, read, publish (FORMAT 1, order of writing)."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from lamella.clock import utc_text
from lamella.errors import IntegrityError, SourceError
from lamella.events import Reporter, Warned, silent
from lamella.format import compression, document
from lamella.format.container import Kind
from lamella.format.node import Shape, default_chunk_log2
from lamella.format.records import NO_REF, AddSnap, Document, Figures, RawRecord, Run, RunVolume, Volume, raw
from lamella.ids import SnapId, VolumeId
from lamella.operations.backup_plan import (
    FULL,
    MODES,
    BackupOptions,
    FailedRequest,
    Planner,
    PlanRow,
    Request,
    check_documents,
)
from lamella.operations.backup_volume import VolumeRead, VolumeReader
from lamella.operations.heads import fingerprint
from lamella.operations.session import Session
from lamella.pipeline import default_workers
from lamella.repository.packer import Packer
from lamella.repository.repository import Repository
from lamella.repository.tree import Tree
from lamella.sources.base import FrozenVolume

__all__ = ["BackupOptions", "BackupPlan", "BackupResult", "FailedRequest", "Request", "VolumeResult", "plan_backup"]


@dataclass(slots=True)
class VolumeResult:
    """What became of one volume. Sizes in bytes."""

    volume: str
    driver: str
    mode: str
    reason: str
    source_bytes: int = 0
    read_bytes: int = 0
    sampled_bytes: int = 0
    changed_chunks: int = 0
    new_chunks: int = 0
    stored_bytes: int = 0
    result: str = "failed"
    consistency: int = 0
    error: str = ""


@dataclass(slots=True)
class BackupResult:
    """What became of a run. `snapshot` is empty if nothing was saved."""

    snapshot: str
    complete: bool
    seconds: float
    metadata_bytes: int
    stored_bytes: int
    fingerprint: str
    volumes: list[VolumeResult]
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Saved:
    """A volume that was read completely, ready to be published."""

    row: PlanRow
    shape: Shape
    frozen_ms: int
    consistency: int
    read: VolumeRead
    result: VolumeResult


def plan_backup(
    repo: Repository, requests: Sequence[Request | FailedRequest], options: BackupOptions | None = None
) -> BackupPlan:
    """Decide what a run would do. Raises UsageError, RolledBack, StoreError."""
    options = options or BackupOptions()
    check_documents(options.documents)
    compression.Encoder(options.compression)
    repo.require_sound_history()
    repo.refresh_map()
    return BackupPlan(repo, list(requests), options)


class BackupPlan:
    """What a run will do; `rows` is for people, `execute` does it."""

    def __init__(self, repo: Repository, requests: list[Request | FailedRequest], options: BackupOptions) -> None:
        self._repo = repo
        self._requests = requests
        self._options = options
        self.rows = Planner(repo, options).rows(requests)
        self.failed = [request for request in requests if isinstance(request, FailedRequest)]

    def execute(self, reporter: Reporter = silent) -> BackupResult:
        """Do it. Sources that fail are left out and reported; a failing destination raises and publishes nothing.

        Raises Locked if a source is being backed up already, StoreError, RolledBack.
        """
        started = time.monotonic()
        with ExitStack() as held:
            for row in self.rows:
                identity = row.request.source.identity
                held.enter_context(self._repo.memory.source_lock(identity, self._options.lock_wait))
            # Somebody else may have published while this process waited.
            self._repo.reload()
            self._repo.require_sound_history()
            self._repo.refresh_map()
            self.rows = Planner(self._repo, self._options).rows(self._requests)
            with Session(self._repo) as session:
                run = _Run(self._repo, self._options, session, reporter)
                result = run.save(self.rows, self.failed, held)
        result.seconds = round(time.monotonic() - started, 3)
        return result


def snapshot_name(now_ms: int) -> str:
    """UTC second and a random suffix: unique without asking anybody."""
    return f"{utc_text(now_ms)}-{base64.b32encode(os.urandom(5)).decode('ascii').lower()[:4]}"


class _Run:
    def __init__(self, repo: Repository, options: BackupOptions, session: Session, reporter: Reporter) -> None:
        self._repo = repo
        self._options = options
        self._session = session
        self._reporter = reporter
        self._warnings: list[str] = []

    def save(self, rows: list[PlanRow], failed: list[FailedRequest], held: ExitStack) -> BackupResult:
        results = [VolumeResult(one.name, "", FULL, "", error=one.message) for one in failed]
        frozen: list[tuple[PlanRow, FrozenVolume, int, VolumeResult]] = []
        for row in rows:
            result = VolumeResult(row.volume, row.driver, row.mode, row.reason)
            results.append(result)
            for note in row.notes:
                self._warn(note)
            try:
                volume = held.enter_context(row.request.source.freeze())
                frozen.append((row, volume, self._repo.clock(), result))
            except SourceError as error:
                result.error = error.message
        saved = [one for one in (self._volume(*moment) for moment in frozen) if one is not None]
        name = self._publish(saved, rows, results) if saved else ""
        complete = all(result.result == "complete" for result in results)
        if self._repo.pins.unsaved:
            self._warn(f"what this host remembers is out of date: {self._repo.pins.unsaved}")
        marks = fingerprint(self._repo)
        metadata, stored = self._session.metadata_bytes, self._session.data_bytes
        return BackupResult(name, complete, 0.0, metadata, stored, marks, results, self._warnings)

    def _warn(self, message: str) -> None:
        self._warnings.append(message)
        self._reporter(Warned(message))

    def _volume(self, row: PlanRow, frozen: FrozenVolume, frozen_ms: int, result: VolumeResult) -> _Saved | None:
        log2 = row.chunk_log2 or default_chunk_log2(frozen.size)
        shape = Shape(row.volume_id, frozen.size, log2)
        result.source_bytes = frozen.size
        try:
            read = self._read(row, shape, frozen, result)
            consistency = int(frozen.consistency())
        except SourceError as error:
            result.error = error.message
            return None
        result.read_bytes, result.stored_bytes = read.read_bytes, read.stored_bytes
        result.changed_chunks, result.new_chunks = read.changed_chunks, read.new_chunks
        result.consistency, result.result = consistency, "complete"
        return _Saved(row, shape, frozen_ms, consistency, read, result)

    def _read(self, row: PlanRow, shape: Shape, frozen: FrozenVolume, result: VolumeResult) -> VolumeRead:
        base = None if row.base is None else self._repo.tree(row.base)
        try:
            return self._reader(row, shape, base).read(frozen, row.volume, self._reporter)
        except IntegrityError as error:
            if base is None:
                raise
            self._warn(f"{row.volume}: the last snapshot cannot be read, so all is stored anew: {error.message}")
            row.base = None
            result.mode, result.reason = FULL, "the last snapshot is damaged"
            return self._reader(row, shape, None).read(frozen, row.volume, self._reporter)

    def _reader(self, row: PlanRow, shape: Shape, base: Tree | None) -> VolumeReader:
        return VolumeReader(
            self._repo,
            self._session.packer(row.domain_id),
            shape,
            base,
            compression=self._options.compression,
            check_all=self._options.check_all,
            check_base=base is not None and not self._repo.blobs.complete(base.root),
            workers=self._options.workers or default_workers(),
        )

    def _publish(self, saved: list[_Saved], rows: list[PlanRow], results: list[VolumeResult]) -> str:
        now = self._repo.clock()
        name = snapshot_name(now)
        documents = [self._extras(one, now) for one in saved]
        self._session.settle()
        records: list[RawRecord | Volume] = []
        snap_ids: list[SnapId] = []
        for one, attached in zip(saved, documents, strict=True):
            if one.row.record is not None:
                records.append(_with_chunk_size(one.row.record, one.shape.chunk_log2))
            snap_ids.append(SnapId(os.urandom(16)))
            records.append(raw(self._add_snap(one, snap_ids[-1], name, attached)))
        records.append(raw(_run_record(name, rows, results)))
        self._session.publish(records, snap_ids)
        self._repo.blobs.set_complete(one.read.root for one in saved)
        self._repo.reload()
        return name

    def _extras(self, one: _Saved, now: int) -> tuple[Document, ...]:
        """Put the tree note of a new tree, and the documents."""
        packer = self._session.packer(one.row.domain_id)
        base = one.row.base
        if base is None or base.added.root != one.read.root or base.added.size != one.shape.size:
            shape = one.shape
            note = document.TreeNote(shape.volume_id, one.read.root, shape.size, now, shape.chunk_log2, one.row.volume)
            packer.store_node(Kind.DOCUMENT, note.encode())
        return tuple(self._document(packer, name, content) for name, content in self._options.documents.items())

    def _document(self, packer: Packer, name: str, content: bytes) -> Document:
        parts = tuple(packer.store_node(Kind.DOCUMENT, part) for part in document.parts(content))
        return Document(name, len(content), parts)

    def _add_snap(self, one: _Saved, snap_id: SnapId, name: str, documents: tuple[Document, ...]) -> AddSnap:
        read = one.read
        mode = MODES[one.result.mode]
        figures = Figures(mode, read.read_bytes, read.stored_bytes, read.changed_chunks, read.new_chunks)
        return AddSnap(
            snap_id,
            one.shape.volume_id,
            one.row.domain_id,
            one.shape.chunk_log2,
            one.consistency,
            one.shape.size,
            read.root,
            one.frozen_ms,
            NO_REF if one.row.base is None else one.row.base.ref,
            name,
            documents,
            self._session.packs(one.row.domain_id),
            (figures.encode(),),
        )


def _with_chunk_size(record: Volume, chunk_log2: int) -> Volume:
    return Volume(record.volume_id, record.domain_id, chunk_log2, record.name, record.domain_label, record.identity)


def _run_record(name: str, rows: list[PlanRow], results: list[VolumeResult]) -> Run:
    ids = {row.volume: row.volume_id for row in rows}
    entries = tuple(
        RunVolume(
            ids.get(one.volume, VolumeId(bytes(16))), _short(one.volume), one.result != "complete", _short(one.error)
        )
        for one in results
    )
    return Run(name, all(not entry.failed for entry in entries), entries)


def _short(text: str) -> str:
    return text.encode("utf-8", "replace")[:250].decode("utf-8", "ignore")
