"""One backup from beginning to end: plan, freeze, read, publish, confirm, rotate, report (docs/decisions/0037).

To one repository or to several from the same moment (docs/decisions/0017).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from lamella.base.clock import Clock
from lamella.base.errors import LamellaError, RepositoryError, SourceAtRisk, SourceError, StoreError, UsageError
from lamella.base.events import Finished, Progress, Reporter, Warned, silent
from lamella.format.encoder import Encoder
from lamella.format.node import Shape, default_chunk_log2
from lamella.format.records import RawRecord
from lamella.memory.host import Host, HostMemory
from lamella.memory.ledger import LedgerEntry, NewVolume, forget, remember
from lamella.operations.backup.plan import (
    BackupOptions,
    FailedRequest,
    Pace,
    Request,
    VolumePlan,
    check_documents,
    plan_volumes,
)
from lamella.operations.backup.publish import attach, publish, snapshot_name
from lamella.operations.backup.read import Attempts
from lamella.operations.backup.recording import Recorder
from lamella.operations.backup.stages import BackupResult, Frozen, Read, VolumeResult, failed, saved
from lamella.operations.moments.rotation import drop_unneeded, rotate
from lamella.operations.shared.heads import fingerprint
from lamella.operations.writing.session import WritingSession, unfinished
from lamella.repository.repository import Repository
from lamella.sources.base import FrozenVolume, Source

if TYPE_CHECKING:
    from lamella.stores.wrap.limited import TokenBucket

__all__ = [
    "BackupOptions",
    "BackupPlan",
    "BackupResult",
    "FailedRequest",
    "Outcome",
    "Pace",
    "Request",
    "VolumePlan",
    "VolumeResult",
    "execute_together",
    "plan_backup",
]

Tell = Callable[["BackupPlan", Sequence[VolumePlan]], None]
"""Receives what a run is going to do, before anything is frozen."""


def plan_backup(
    repo: Repository, requests: Sequence[Request | FailedRequest], options: BackupOptions | None = None
) -> BackupPlan:
    """The plan of a backup. Raises UsageError for options that contradict each other or the requests."""
    options = options or BackupOptions()
    check_documents(options.documents)
    for request in requests:
        if isinstance(request, Request) and request.documents is not None:
            check_documents(request.documents)
    Encoder(options.compression)
    if options.changes is not None and len(requests) != 1:
        raise UsageError("a change map belongs to one source: name only that source")
    return BackupPlan(repo, tuple(requests), options)


@dataclass(frozen=True, slots=True, eq=False)
class BackupPlan:
    """A run that was asked for; `rows` says what it would do now, `execute` does it."""

    repo: Repository
    requests: tuple[Request | FailedRequest, ...]
    options: BackupOptions

    @property
    def rows(self) -> list[VolumePlan]:
        """The plan for each source, decided again. Raises UsageError, RolledBack, StoreError."""
        return plan_volumes(self.repo, self.options, self.requests)

    @property
    def failed(self) -> list[FailedRequest]:
        """The sources that will be missing."""
        return [request for request in self.requests if isinstance(request, FailedRequest)]

    def execute(self, reporter: Reporter = silent) -> BackupResult:
        """Do it. Sources that fail are left out and reported; a failing destination raises and publishes nothing.

        Raises UsageError, Locked if a source is being backed up already, StoreError, RolledBack.
        """
        (outcome,) = execute_together([self], reporter)
        if outcome.result is None:
            assert outcome.error is not None
            raise outcome.error
        return outcome.result


_FEW_SOURCES = 16
"""So many sources need no more open files than any system allows."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one plan: a result, or the error that ended it."""

    plan: BackupPlan
    result: BackupResult | None = None
    error: LamellaError | None = None


def _untold(plan: BackupPlan, rows: Sequence[VolumePlan]) -> None:
    pass


def execute_together(plans: Sequence[BackupPlan], reporter: Reporter = silent, tell: Tell = _untold) -> list[Outcome]:
    """Execute plans for the same sources and host, to different repositories, from one frozen moment.

    Each plan has an outcome of its own: a plan that fails does not stop the others. `tell` is called for each plan that
    will be executed. Raises Locked if a source is being backed up already, LamellaError if the command before the
    freeze fails.
    """
    first = plans[0]
    host, clock, options = first.repo.host, first.repo.clock, first.options
    requests = [one for plan in plans for one in plan.requests if isinstance(one, Request)]
    sources = list({request.source.identity: request.source for request in requests}.values())
    started = time.monotonic()
    if len(sources) > _FEW_SOURCES:
        from lamella.run.limits import allow_files

        allow_files()
    with _locked(host, sources, options.lock_wait):
        runs = [_caught(partial(_planned, plan, reporter)) for plan in plans]
        ready = [run for run in runs if isinstance(run, _BackupRun)]
        errors = [run for run in runs if not isinstance(run, _BackupRun)]
        if not ready:
            return [_outcome(plan, error) for plan, error in zip(plans, errors, strict=True)]
        for planned in ready:
            tell(planned.plan, planned.rows)
        ends: list[BackupResult | LamellaError] = []
        bucket = _bucket(options)
        with _frozen([run.plan.repo.memory for run in ready], sources, options, clock, ready[0].warn) as moments:
            for run in runs:
                end = _caught(partial(_saved, run, moments, bucket, started)) if isinstance(run, _BackupRun) else run
                ends.append(end)
                started = time.monotonic()
    return [_outcome(plan, end) for plan, end in zip(plans, ends, strict=True)]


_T = TypeVar("_T")


def _caught(step: Callable[[], _T]) -> _T | LamellaError:
    """The value of a step, or the error that ends the run for one destination."""
    try:
        return step()
    except LamellaError as error:
        return error


def _outcome(plan: BackupPlan, end: BackupResult | LamellaError) -> Outcome:
    return Outcome(plan, error=end) if isinstance(end, LamellaError) else Outcome(plan, end)


@contextmanager
def _locked(host: Host, sources: Sequence[Source], wait_seconds: float) -> Iterator[None]:
    with ExitStack() as held:
        for source in sources:
            held.enter_context(host.source_lock(source.identity, wait_seconds))
        yield


@dataclass(frozen=True, slots=True)
class _BackupRun:
    """A run to one repository, planned under the locks of its sources."""

    plan: BackupPlan
    rows: Sequence[VolumePlan]
    reporter: Reporter
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        """Tell the user, now and in the result."""
        self.warnings.append(message)
        self.reporter(Warned(message))


# -- plan --------------------------------------------------------------------------------------------------------------


def _planned(plan: BackupPlan, reporter: Reporter) -> _BackupRun:
    """Decide what to do with each volume, now that nobody else backs up these sources.

    The ids of new volumes are remembered: if this run is interrupted, the next attempt uses what this run stored.
    """
    plan.repo.reload()
    plan.repo.require_sound_history()
    plan.repo.memory.creator()
    run = _BackupRun(plan, plan.rows, reporter)
    for row in run.rows:
        for note in row.notes:
            run.warn(note)
        if row.base is None and row.record is not None:
            record = row.record
            ids = NewVolume(record.creator, record.nonce, row.domain_id, record.domain_label)
            trouble = remember(plan.repo.memory, record.identity, ids)
            if trouble:
                run.warn(f"{row.volume}: if this run is interrupted, the next run stores everything again: {trouble}")
    return run


# -- freeze ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _FrozenSource:
    """A source that was frozen, and when."""

    volume: FrozenVolume
    time_ms: int
    notes: tuple[RawRecord, ...] = ()


_Moments = Mapping[bytes, _FrozenSource | SourceError]
"""By the source's identity: its moment, or why there is none."""


@contextmanager
def _frozen(
    served: Sequence[HostMemory], sources: Sequence[Source], options: BackupOptions, clock: Clock,
    warn: Callable[[str], None],
) -> Iterator[_Moments]:  # fmt: skip
    """Freeze all sources back to back, before any of them is read; the moments end with the context.

    `served` are the memories of the repositories that are backed up to.

    Raises LamellaError if the command before fails.
    """
    for source in sources:
        try:  # what a killed run left
            drop_unneeded(served[0].host, source)
        except SourceError as error:
            warn(f"{source.default_name}: an old checkpoint could not be removed: {error.message}")
    moments: dict[bytes, _FrozenSource | SourceError] = {}
    with ExitStack() as held:
        with _between_commands(options, warn):
            for source in sources:
                try:
                    moments[source.identity] = _FrozenSource(held.enter_context(source.freeze()), clock())
                except SourceAtRisk as error:
                    from lamella.operations.moments.spare import frozen_with_room  # most disks have room

                    one = frozen_with_room(held, source, served, error, warn)
                    moments[source.identity] = one if isinstance(one, SourceError) else _FrozenSource(one, clock())
                except SourceError as error:
                    moments[source.identity] = error
        for source in sources if options.scrub is not None else ():  # when all moments are there: this takes time
            if isinstance(moment := moments[source.identity], _FrozenSource) and options.scrub is not None:
                volume, notes = options.scrub(held, source, moment.volume, warn)
                moments[source.identity] = _FrozenSource(volume, moment.time_ms, notes)
        yield moments


def _bucket(options: BackupOptions) -> TokenBucket | None:
    if options.read_rate is None:
        return None
    from lamella.stores.wrap.limited import TokenBucket  # most runs read as fast as they can

    return TokenBucket(options.read_rate)


@contextmanager
def _between_commands(options: BackupOptions, warn: Callable[[str], None]) -> Iterator[None]:
    """Run the command before, then what is inside, then the command after, whatever happened."""

    def run(command: tuple[str, ...]) -> None:
        from lamella.run.spawn import run as started  # most runs have no commands

        started(command, timeout_seconds=options.hook_seconds, error=LamellaError)

    try:
        if options.before:
            run(options.before)
        with options.around():
            yield
    finally:
        if options.after:
            try:
                run(options.after)
            except LamellaError as error:
                warn(f"the command after the freeze failed: {error.message}")


# -- read, publish, confirm, rotate, report ----------------------------------------------------------------------------


def _saved(run: _BackupRun, moments: _Moments, bucket: TokenBucket | None, started: float) -> BackupResult:
    """Save what can be saved. Raises StoreError, RolledBack; SourceAtRisk if that is why nothing was saved."""
    repo, options = run.plan.repo, run.plan.options
    earlier = unfinished(repo, [row.volume_id for row in run.rows])
    name, entries = "", list[LedgerEntry]()
    with WritingSession(repo, earlier, snapshot_name(repo.clock())) as session:
        recorder = Recorder(repo, session, options.pace, run.rows, run.warn)
        with _recorded(recorder):
            recorder.announce()
            saved_sources = frozenset(row.request.source.identity for row in run.rows)
            attempts = Attempts(repo, options, session, recorder, run.reporter, run.warn, bucket, saved_sources)
            ends = list(_ends(run, attempts, recorder, moments))
            reads = [end for end in ends if isinstance(end, Read)]
            attached = attach(session, reads, options.documents, repo.clock()) if reads else []
        results = [VolumeResult(one.name, "", "full", "", error=one.message) for one in run.plan.failed]
        results += [saved(end) if isinstance(end, Read) else end for end in ends]
        if reads:
            close = not recorder.unfinished([read.frozen.shape.volume_id for read in reads])
            name, entries = publish(repo, session, reads, attached, results, close=close)  # and confirm
        for read, entry in zip(reads, entries, strict=True):
            _rotate(run, read.frozen, entry)
        metadata, stored = session.metadata_bytes + _index(run), session.data_bytes
    risks = [moment for moment in moments.values() if isinstance(moment, SourceAtRisk)]
    if risks and not reads:
        raise risks[0]
    complete = all(result.result != "failed" for result in results)
    seconds = round(time.monotonic() - started, 3)
    warnings = [*run.warnings, *repo.host.notices.told.values()]
    return BackupResult(name, complete, seconds, metadata, stored, fingerprint(repo), results, warnings)


def _ends(run: _BackupRun, attempts: Attempts, recorder: Recorder, moments: _Moments) -> Iterator[Read | VolumeResult]:
    """Read one volume after the other, and tell how each ended."""
    for row in run.rows:
        if isinstance(moment := moments[row.request.source.identity], _FrozenSource):
            run.reporter(Progress("backup", row.volume, 0, moment.volume.size))
    for row in run.rows:
        end = _read(attempts, recorder, row, moments)
        yield end
        run.reporter(Finished(len(run.rows), saved(end) if isinstance(end, Read) else end))


@contextmanager
def _recorded(recorder: Recorder) -> Iterator[None]:
    """If the reading ends too early, record how far it came."""
    try:
        yield
    except KeyboardInterrupt:
        recorder.stopped()
        raise
    except StoreError:
        recorder.broken()
        raise


def _read(attempts: Attempts, recorder: Recorder, plan: VolumePlan, moments: _Moments) -> Read | VolumeResult:
    """Read one volume as it was frozen; a source that failed gives a result."""
    moment = moments[plan.request.source.identity]
    if isinstance(moment, SourceError):
        return failed(plan, moment.message)
    volume = moment.volume
    shape = Shape(plan.volume_id, volume.size, plan.chunk_log2 or default_chunk_log2(volume.size))
    read = attempts.volume(Frozen(plan, volume, moment.time_ms, shape, moment.notes))
    if isinstance(read, Read):
        recorder.finished(read)
        base = plan.base
        if base is not None and volume.size * 2 < base.added.size:
            left = f"{100 * volume.size / base.added.size:.2g} % of its size in the last snapshot"
            attempts.warn(f"{plan.volume}: the source shrank to {left}; is it still the right one?")
    return read


def _rotate(run: _BackupRun, frozen: Frozen, entry: LedgerEntry) -> None:
    """The commit is durable and confirmed: the new moment takes the place of the old moment."""
    try:
        forget(run.plan.repo.memory, frozen.source.identity)
        rotate(run.plan.repo, frozen.source, frozen.shape.volume_id, entry)
    except (SourceError, RepositoryError) as error:
        run.warn(f"{frozen.plan.volume}: the next run must compare everything: {error.message}")


def _index(run: _BackupRun) -> int:
    """Spare other machines reading the heads of many packs; returns the bytes put. The run is safe by now."""
    try:
        return run.plan.repo.blobs.write_segments()
    except StoreError as error:
        run.warn(f"no index of the new packs was written: {error.message}")
        return 0
