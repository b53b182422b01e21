"""Reading one frozen volume for a run: what to read, from which base, and what to do when that turns out wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, IntegrityError
from lamella.base.events import Reporter
from lamella.format.inner import Refuted, Sampled
from lamella.memory.resume import ResumePoint
from lamella.operations.backup import sampling
from lamella.operations.backup.plan import COMPARE, FULL, INCREMENTAL, BackupOptions
from lamella.operations.backup.publish import Saved
from lamella.operations.backup.recording import Recorder
from lamella.operations.moments.monitor import delta_from
from lamella.operations.shared import reading
from lamella.operations.shared.reading import Task
from lamella.operations.writing.chunks import MapRefuted, VolumeRead, VolumeReader
from lamella.operations.writing.session import Session
from lamella.operations.writing.unfinished import partial_tree
from lamella.packs.tree import Tree
from lamella.repository.repository import Repository
from lamella.run.pipeline import default_workers


class VolumeRun:
    """Reads the volumes of one run."""

    def __init__(
        self,
        repo: Repository,
        options: BackupOptions,
        session: Session,
        recorder: Recorder,
        reporter: Reporter,
        warn: Callable[[str], None],
    ) -> None:
        self._repo = repo
        self._options = options
        self._session = session
        self._recorder = recorder
        self._reporter = reporter
        self._warn = warn

    def read(self, saved: Saved) -> VolumeRead:
        """Read a volume; what was done is in its result. Raises SourceError, StoreError, IntegrityError."""
        found = self._go_on(saved)
        if found is not None:
            return found
        try:
            if saved.row.mode == INCREMENTAL:
                found = self._read_changes(saved)
            return found or self._read_everything(saved)
        except IntegrityError as error:
            if saved.row.base is None:
                raise
            self._warn(f"{saved.row.volume}: the last snapshot cannot be read, all is stored anew: {error.message}")
            saved.row.base = None
            saved.result.mode, saved.result.reason = FULL, "the last snapshot is damaged"
            return self._read_everything(saved)

    def _read_everything(self, saved: Saved) -> VolumeRead:
        return self._do(saved, self._base(saved), reading.everything(saved.frozen, saved.shape))

    def _read_changes(self, saved: Saved) -> VolumeRead | None:
        """An incremental read; None, with the reason in the result, if the change map cannot be used after all."""
        try:
            delta = self._delta(saved)
        except CheckpointLost as error:
            saved.result.mode, saved.result.reason = COMPARE, error.message
            return None
        sample = self._sample(saved, delta)
        tasks = reading.changes(saved.frozen, saved.shape, delta, sample.chunks)
        return self._do_sampled(saved, self._base(saved), tasks, sample.cursor)

    def _go_on(self, saved: Saved) -> VolumeRead | None:
        """Read only what a broken run had not come to, and what changed since its moment (docs/decisions/0016).

        None if there is no such run, or if it turns out that nothing of it can be used.
        """
        point = saved.row.resume
        if point is None:
            return None
        try:
            delta = self._delta_since(point, saved)
        except CheckpointLost as error:
            why = f"the run that was broken off cannot be continued: {error.message}"
            saved.result.reason = f"{saved.result.reason}; {why}" if saved.result.reason else why
            return None
        rest = self._rest(saved, point)
        saved.goes_on = True
        done = min(point.done, saved.shape.chunks)
        saved.result.resumed_bytes = min(done << saved.shape.chunk_log2, saved.shape.size)
        whole = delta.spliced(done, rest or Delta.everything(delta.grain, delta.base_size, delta.size))
        sample = self._sample(saved, whole)
        if rest is not None:
            tasks = reading.changes(saved.frozen, saved.shape, whole, sample.chunks)
        else:
            tasks = reading.resumed(saved.frozen, saved.shape, whole, sample.chunks, done)
        try:
            return self._do_sampled(saved, partial_tree(saved.shape.volume_id, point), tasks, sample.cursor)
        except IntegrityError as error:
            self._warn(f"{saved.row.volume}: what the broken run stored cannot be read: {error.message}")
            self._forget_progress(saved)
            return None

    def _rest(self, saved: Saved, point: ResumePoint) -> Delta | None:
        """What may have changed since the base where the broken run had not come to; None: read all of that."""
        if saved.row.mode != INCREMENTAL:
            return None
        try:
            if point.compared:
                raise CheckpointLost("the run that was broken off compared everything")
            return self._delta(saved)
        except CheckpointLost as error:
            saved.row.mode = saved.result.mode = COMPARE
            saved.result.reason = error.message
            return None

    # -- doing it -----------------------------------------------------------------------------------------------------

    def _do_sampled(self, saved: Saved, base: Tree | None, tasks: Iterator[Task], cursor: int) -> VolumeRead | None:
        """Do tasks that rely on a change map; None if the sample refutes it, so that everything must be compared."""
        try:
            read = self._do(saved, base, tasks)
        except MapRefuted as error:
            self._warn(f"{saved.row.volume}: {error}; everything is compared instead")
            saved.row.mode = saved.result.mode = FULL if saved.row.base is None else COMPARE
            saved.result.reason = "the change map was wrong"
            saved.inner.append(Refuted(error.offset, error.length).encode())
            self._forget_progress(saved)
            return None
        saved.inner.append(Sampled(cursor, read.sampled_bytes).encode())
        return read

    def _forget_progress(self, saved: Saved) -> None:
        saved.goes_on = False
        saved.result.resumed_bytes = 0
        self._recorder.forget(saved)

    def _do(self, saved: Saved, base: Tree | None, tasks: Iterator[Task]) -> VolumeRead:
        reader = VolumeReader(
            self._repo,
            self._session.packer(saved.row.domain_id),
            saved.shape,
            base,
            compression=self._options.compression,
            check_all=self._options.check_all,
            check_base=base is not None and not self._repo.blobs.complete(base.root),
            workers=self._options.workers or default_workers(),
        )
        return reader.read(saved.frozen, tasks, saved.row.volume, self._reporter, self._recorder.watch(saved))

    def _base(self, saved: Saved) -> Tree | None:
        return None if saved.row.base is None else self._repo.tree(saved.row.base)

    # -- change maps --------------------------------------------------------------------------------------------------

    def _delta(self, saved: Saved) -> Delta:
        """What may have changed since the base. Raises CheckpointLost."""
        entry, shape = saved.row.entry, saved.shape
        if saved.row.base is not None and self._options.changes is not None:
            return self._options.changes.delta(shape.chunk_size, saved.row.base.added.size, shape.size)
        if entry is None or saved.row.base is None:
            raise CheckpointLost("there is no kept moment")
        return self._since(saved, entry.checkpoint, saved.row.base.added.size)

    def _delta_since(self, point: ResumePoint, saved: Saved) -> Delta:
        """What may have changed since a broken run's moment. Raises CheckpointLost."""
        if point.chunk_log2 != saved.shape.chunk_log2:
            raise CheckpointLost("it used another chunk size")
        return self._since(saved, point.checkpoint, point.size)

    def _since(self, saved: Saved, checkpoint: str, size: int) -> Delta:
        source, grain = saved.row.request.source, saved.shape.chunk_size
        delta = delta_from(self._repo.host, source, saved.frozen, checkpoint, grain)
        if (delta.base_size, delta.size, delta.grain) != (size, saved.shape.size, grain):
            raise CheckpointLost("the kept moment has another size than what was stored of it")
        return delta

    def _sample(self, saved: Saved, delta: Delta) -> sampling.Sample:
        base = saved.row.base
        before = None if base is None else Sampled.of(base.added)
        cursor = 0 if before is None else before.cursor
        return sampling.choose(delta, cursor, self._options.reread_bytes, random.SystemRandom())
