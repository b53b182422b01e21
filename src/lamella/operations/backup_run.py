"""One run: freeze every source, read them, publish one commit, rotate the kept moments (docs/decisions/0005)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from lamella.delta import Delta
from lamella.errors import (
    CheckpointLost,
    IntegrityError,
    LamellaError,
    RepositoryError,
    SourceAtRisk,
    SourceError,
    StoreError,
)
from lamella.events import Reporter, Warned
from lamella.format.node import Shape, default_chunk_log2
from lamella.format.tracking import Refuted, Sampled
from lamella.operations import reading, sampling
from lamella.operations.backup_plan import COMPARE, FULL, INCREMENTAL, BackupOptions, FailedRequest, PlanRow
from lamella.operations.backup_publish import Saved, publish
from lamella.operations.backup_result import BackupResult, VolumeResult
from lamella.operations.backup_volume import MapRefuted, VolumeRead, VolumeReader
from lamella.operations.heads import fingerprint
from lamella.operations.monitor import delta_from
from lamella.operations.rotation import drop_unneeded, rotate
from lamella.operations.session import Session
from lamella.pipeline import default_workers
from lamella.repository.intended import NewVolume, forget, remember
from lamella.repository.repository import Repository
from lamella.repository.tree import Tree
from lamella.sources.base import Consistency, FrozenVolume
from lamella.spawn import run as run_command


@dataclass(slots=True)
class _Moment:
    """A frozen source, and what is to be done with it."""

    row: PlanRow
    frozen: FrozenVolume
    frozen_ms: int
    result: VolumeResult


class BackupRun:
    """Executes plan rows in one session. The sources' locks are held."""

    def __init__(self, repo: Repository, options: BackupOptions, session: Session, reporter: Reporter) -> None:
        self._repo = repo
        self._options = options
        self._session = session
        self._reporter = reporter
        self._warnings: list[str] = []

    def save(self, rows: list[PlanRow], failed: list[FailedRequest]) -> BackupResult:
        """Save what can be saved. Raises StoreError, RolledBack; SourceAtRisk if that is why nothing was saved."""
        results = [VolumeResult(one.name, "", FULL, "", error=one.message) for one in failed]
        name = ""
        risks: list[SourceAtRisk] = []
        with ExitStack() as held:
            moments = self._freeze(rows, results, risks, held)
            saved = [one for one in map(self._volume, moments) if one is not None]
            if saved:
                name = publish(self._repo, self._session, self._options.documents, saved, results)
                for one in saved:
                    self._rotate(one)
        if risks and not saved:
            raise risks[0]
        complete = all(result.result == "complete" for result in results)
        metadata, stored = self._session.metadata_bytes + self._index(), self._session.data_bytes
        if self._repo.pins.unsaved:
            self._warn(f"what this host remembers is out of date: {self._repo.pins.unsaved}")
        return BackupResult(name, complete, 0.0, metadata, stored, fingerprint(self._repo), results, self._warnings)

    def _index(self) -> int:
        """Spare other machines reading the heads of many packs; returns the bytes put. The run is safe by now."""
        try:
            return self._repo.blobs.write_segments()
        except StoreError as error:
            self._warn(f"no index of the new packs was written: {error.message}")
            return 0

    def _warn(self, message: str) -> None:
        self._warnings.append(message)
        self._reporter(Warned(message))

    # -- one moment ---------------------------------------------------------------------------------------------------

    def _freeze(
        self, rows: list[PlanRow], results: list[VolumeResult], risks: list[SourceAtRisk], held: ExitStack
    ) -> list[_Moment]:
        """Freeze all sources back to back, between the hooks, before any of them is read."""
        moments: list[_Moment] = []
        for row in rows:
            for note in row.notes:
                self._warn(note)
            self._clean(row)
            self._remember_ids(row)
        with self._hooks():
            for row in rows:
                result = VolumeResult(row.volume, row.driver, row.mode, row.reason)
                results.append(result)
                try:
                    frozen = held.enter_context(row.request.source.freeze())
                except SourceError as error:
                    result.error = error.message
                    if isinstance(error, SourceAtRisk):
                        risks.append(error)
                    continue
                moments.append(_Moment(row, frozen, self._repo.clock(), result))
        return moments

    def _remember_ids(self, row: PlanRow) -> None:
        """If the first backup of a volume is broken off, the next attempt uses what this one stored."""
        if row.base is None and row.record is not None:
            ids = NewVolume(row.volume_id, row.domain_id)
            trouble = remember(self._repo.memory, row.record.identity, row.record.domain_label, ids)
            if trouble:
                self._warn(f"{row.volume}: what is stored now will not be found again if this is broken off: {trouble}")

    def _clean(self, row: PlanRow) -> None:
        """Remove moments that nothing needs: what a killed run left."""
        try:
            drop_unneeded(self._repo.host, row.request.source)
        except SourceError as error:
            self._warn(f"{row.volume}: an old kept moment could not be removed: {error.message}")

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        """Run `before`, then what is inside, then `after` whatever happened. Raises LamellaError if `before` fails."""
        seconds = self._options.hook_seconds
        try:
            if self._options.before:
                run_command(self._options.before, timeout_seconds=seconds, error=LamellaError)
            with self._options.around():
                yield
        finally:
            if self._options.after:
                try:
                    run_command(self._options.after, timeout_seconds=seconds, error=LamellaError)
                except LamellaError as error:
                    self._warn(f"the command after the freeze failed: {error.message}")

    # -- one volume ---------------------------------------------------------------------------------------------------

    def _volume(self, moment: _Moment) -> Saved | None:
        row, frozen, result = moment.row, moment.frozen, moment.result
        shape = Shape(row.volume_id, frozen.size, row.chunk_log2 or default_chunk_log2(frozen.size))
        result.source_bytes = frozen.size
        saved = Saved(row, shape, moment.frozen_ms, frozen, result)
        try:
            read = self._read(saved)
            consistency = frozen.consistency()
        except SourceError as error:
            result.error = error.message
            return None
        if self._options.before and consistency == Consistency.LIVE:
            consistency = Consistency.QUIESCED
        saved.read, saved.consistency = read, int(consistency)
        result.read_bytes, result.stored_bytes = read.read_bytes, read.stored_bytes
        result.sampled_bytes = read.sampled_bytes
        result.changed_chunks, result.new_chunks = read.changed_chunks, read.new_chunks
        result.consistency, result.result = saved.consistency, "complete"
        return saved

    def _read(self, saved: Saved) -> VolumeRead:
        try:
            if saved.row.mode == INCREMENTAL:
                found = self._read_changes(saved)
                if found is not None:
                    return found
            return self._read_everything(saved)
        except IntegrityError as error:
            if saved.row.base is None:
                raise
            self._warn(f"{saved.row.volume}: the last snapshot cannot be read, all is stored anew: {error.message}")
            saved.row.base = None
            saved.result.mode, saved.result.reason = FULL, "the last snapshot is damaged"
            return self._read_everything(saved)

    def _read_everything(self, saved: Saved) -> VolumeRead:
        tasks = reading.everything(saved.frozen, saved.shape)
        return self._reader(saved).read(saved.frozen, tasks, saved.row.volume, self._reporter)

    def _read_changes(self, saved: Saved) -> VolumeRead | None:
        """An incremental read; None, with the reason in the result, if the change map cannot be used after all."""
        try:
            delta = self._delta(saved)
        except CheckpointLost as error:
            saved.result.mode, saved.result.reason = COMPARE, error.message
            return None
        sample = self._sample(saved, delta)
        tasks = reading.changes(saved.frozen, saved.shape, delta, sample.chunks)
        try:
            read = self._reader(saved).read(saved.frozen, tasks, saved.row.volume, self._reporter)
        except MapRefuted as error:
            self._warn(f"{saved.row.volume}: {error}; everything is compared instead")
            saved.result.mode, saved.result.reason = COMPARE, "the change map was wrong"
            saved.inner.append(Refuted(error.offset, error.length).encode())
            return None
        saved.inner.append(Sampled(sample.cursor, read.sampled_bytes).encode())
        return read

    def _delta(self, saved: Saved) -> Delta:
        entry, shape = saved.row.entry, saved.shape
        if saved.row.base is not None and self._options.changes is not None:
            return self._options.changes.delta(shape.chunk_size, saved.row.base.added.size, shape.size)
        if entry is None or saved.row.base is None:
            raise CheckpointLost("there is no kept moment")
        source = saved.row.request.source
        delta = delta_from(self._repo.host, source, saved.frozen, entry.checkpoint, shape.chunk_size)
        sizes = (saved.row.base.added.size, shape.size, shape.chunk_size)
        if (delta.base_size, delta.size, delta.grain) != sizes:
            raise CheckpointLost("the kept moment has another size than the snapshot it belongs to")
        return delta

    def _sample(self, saved: Saved, delta: Delta) -> sampling.Sample:
        base = saved.row.base
        before = None if base is None else Sampled.of(base.added)
        cursor = 0 if before is None else before.cursor
        return sampling.choose(delta, cursor, self._options.reread_bytes, random.SystemRandom())

    def _reader(self, saved: Saved) -> VolumeReader:
        base: Tree | None = None if saved.row.base is None else self._repo.tree(saved.row.base)
        return VolumeReader(
            self._repo,
            self._session.packer(saved.row.domain_id),
            saved.shape,
            base,
            compression=self._options.compression,
            check_all=self._options.check_all,
            check_base=base is not None and not self._repo.blobs.complete(base.root),
            workers=self._options.workers or default_workers(),
        )

    def _rotate(self, saved: Saved) -> None:
        """The commit is durable and confirmed: the new moment takes the place of the old one."""
        try:
            forget(self._repo.memory, saved.row.request.source.identity)
            rotate(self._repo, saved)
        except (SourceError, RepositoryError) as error:
            self._warn(f"{saved.row.volume}: the next run must compare everything: {error.message}")
