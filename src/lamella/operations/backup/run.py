"""One run to one repository: read what was frozen, publish one commit, rotate kept moments (docs/decisions/0005)."""

from __future__ import annotations

from collections.abc import Sequence

from lamella.base.errors import RepositoryError, SourceAtRisk, SourceError, StoreError
from lamella.base.events import Reporter, Warned
from lamella.format.node import Shape, default_chunk_log2
from lamella.memory.ledger import NewVolume, forget, remember
from lamella.operations.backup.plan import FULL, BackupOptions, FailedRequest, PlanRow
from lamella.operations.backup.publish import Saved, attach, publish, snapshot_name
from lamella.operations.backup.read import VolumeRun
from lamella.operations.backup.recording import Recorder
from lamella.operations.backup.result import BackupResult, VolumeResult
from lamella.operations.moments.freezing import Moments
from lamella.operations.moments.rotation import rotate
from lamella.operations.shared.heads import fingerprint
from lamella.operations.writing.session import Session
from lamella.operations.writing.unfinished import unfinished
from lamella.repository.repository import Repository
from lamella.sources.base import Consistency


class BackupRun:
    """Executes plan rows against one repository. The sources' locks are held."""

    def __init__(self, repo: Repository, options: BackupOptions, reporter: Reporter) -> None:
        self._repo = repo
        self._options = options
        self._reporter = reporter
        self._warnings: list[str] = []

    def warn(self, message: str) -> None:
        """Tell the user, now and in the result."""
        self._warnings.append(message)
        self._reporter(Warned(message))

    def prepare(self, rows: Sequence[PlanRow]) -> None:
        """What must be done before anything is frozen."""
        for row in rows:
            for note in row.notes:
                self.warn(note)
            self._remember_ids(row)

    def _remember_ids(self, row: PlanRow) -> None:
        """If the first backup of a volume is broken off, the next attempt uses what this one stored."""
        if row.base is None and row.record is not None:
            ids = NewVolume(row.volume_id, row.domain_id, row.record.domain_label)
            trouble = remember(self._repo.memory, row.record.identity, ids)
            if trouble:
                self.warn(f"{row.volume}: what is stored now will not be found again if this is broken off: {trouble}")

    def save(self, rows: Sequence[PlanRow], failed: Sequence[FailedRequest], moments: Moments) -> BackupResult:
        """Save what can be saved. Raises StoreError, RolledBack; SourceAtRisk if that is why nothing was saved."""
        results = [VolumeResult(one.name, "", FULL, "", error=one.message) for one in failed]
        name = snapshot_name(self._repo.clock())
        with Session(self._repo, unfinished(self._repo, [row.volume_id for row in rows]), name) as session:
            recorder = Recorder(self._repo, session, self._options.pace, rows, self.warn)
            try:
                recorder.announce()
                saved = self._read(rows, moments, session, recorder, results)
                attached = attach(session, saved, self._options.documents, self._repo.clock()) if saved else []
            except KeyboardInterrupt:
                recorder.stopped()
                raise
            except StoreError:
                recorder.broken()
                raise
            close = not recorder.unfinished([one.shape.volume_id for one in saved])
            name = publish(self._repo, session, saved, attached, results, close=close) if saved else ""
            for one in saved:
                self._rotate(one)
            metadata, stored = session.metadata_bytes + self._index(), session.data_bytes
        risks = [error for error in moments.values() if isinstance(error, SourceAtRisk)]
        if risks and not saved:
            raise risks[0]
        complete = all(result.result == "complete" for result in results)
        warnings = [*self._warnings, *self._repo.host.notices.told.values()]
        return BackupResult(name, complete, 0.0, metadata, stored, fingerprint(self._repo), results, warnings)

    def _index(self) -> int:
        """Spare other machines reading the heads of many packs; returns the bytes put. The run is safe by now."""
        try:
            return self._repo.blobs.write_segments()
        except StoreError as error:
            self.warn(f"no index of the new packs was written: {error.message}")
            return 0

    # -- volumes ------------------------------------------------------------------------------------------------------

    def _read(
        self,
        rows: Sequence[PlanRow],
        moments: Moments,
        session: Session,
        recorder: Recorder,
        results: list[VolumeResult],
    ) -> list[Saved]:
        reader = VolumeRun(self._repo, self._options, session, recorder, self._reporter, self.warn)
        all_saved: list[Saved] = []
        for row in rows:
            result = VolumeResult(row.volume, row.driver, row.mode, row.reason)
            results.append(result)
            moment = moments[row.request.source.identity]
            if isinstance(moment, SourceError):
                result.error = moment.message
                continue
            frozen = moment.frozen
            shape = Shape(row.volume_id, frozen.size, row.chunk_log2 or default_chunk_log2(frozen.size))
            result.source_bytes = frozen.size
            saved = Saved(row, shape, moment.time_ms, frozen, result)
            try:
                self._volume(reader, saved)
            except SourceError as error:
                result.error = error.message
                continue
            recorder.finished(saved)
            all_saved.append(saved)
        return all_saved

    def _volume(self, reader: VolumeRun, saved: Saved) -> None:
        """Read one volume. Raises SourceError."""
        saved.read = read = reader.read(saved)
        consistency = saved.frozen.consistency()
        if self._options.before and consistency == Consistency.LIVE:
            consistency = Consistency.QUIESCED
        saved.consistency = int(consistency)
        result = saved.result
        result.read_bytes, result.stored_bytes = read.read_bytes, read.stored_bytes
        result.sampled_bytes = read.sampled_bytes
        result.changed_chunks, result.new_chunks = read.changed_chunks, read.new_chunks
        result.consistency, result.result = saved.consistency, "complete"

    def _rotate(self, saved: Saved) -> None:
        """The commit is durable and confirmed: the new moment takes the place of the old one."""
        try:
            forget(self._repo.memory, saved.row.request.source.identity)
            rotate(self._repo, saved)
        except (SourceError, RepositoryError) as error:
            self.warn(f"{saved.row.volume}: the next run must compare everything: {error.message}")
