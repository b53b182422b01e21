"""Proving that a restore would work, and naming what would not.

Levels: `structure` compares every reference with the store's listing and reads no data; `sample` also opens some of the
chunks, or with a budget those packs whole that this host has not read for the longest time; `full` reads every pack to
the last byte; `restore` fetches every byte as a restore does and compares it; `source` compares with the live source.
What was seen is remembered on this host. Nothing is written but one commit that names what does not open, so that other
hosts look at it again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lamella.base.errors import IntegrityError, NothingMatched, RepositoryError, SourceError, UsageError
from lamella.base.events import Progress, Reporter, silent
from lamella.base.ids import CATALOGUE, DomainId, VolumeId
from lamella.format.records import Ref, Run, RunVolume
from lamella.history.catalogue import Snapshot
from lamella.memory import verdicts
from lamella.memory.proven import Proven, ProvenSnapshots
from lamella.memory.readings import Readings, VolumeReading
from lamella.memory.verdict_changes import record
from lamella.memory.verdicts import VolumeVerdict
from lamella.operations.shared.findings import DAMAGE, INCOMPLETE, NOTE, Finding, VerifyResult
from lamella.operations.shared.selection import Selected, select
from lamella.operations.shared.unsaved import is_wanted, newest_runs, not_saved
from lamella.operations.verify.compare import compare_restore, compare_with_source
from lamella.operations.verify.objects import (
    PackVerification,
    check_checkpoints,
    check_files,
    check_history,
    check_names,
    check_stored_commits,
    publish_bad,
    read_known_again,
)
from lamella.operations.verify.unopened import tell_cold, tell_unopened, unopened_packs
from lamella.operations.verify.walk import SnapshotWalk
from lamella.packs import census
from lamella.packs.coverage import coverage
from lamella.repository.repository import Repository
from lamella.run.pipeline import default_workers
from lamella.sources.base import Source

__all__ = ["DAMAGE", "INCOMPLETE", "LEVELS", "NOTE", "Finding", "VerifyOptions", "VerifyResult", "verify"]

LEVELS = ("structure", "sample", "full", "restore", "source")


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """Options of a verification.

    At level "sample" `percent` of the chunks are opened, or whole packs worth `budget` bytes are read, the longest
    unread ones first; with both, the smaller amount of packs. With `publish` other hosts learn what does not open.
    """

    level: str = "sample"
    percent: float | None = None
    budget: int | None = None
    source: Source | None = None
    workers: int | None = None
    publish: bool = True
    new_packs: bool = False
    """At level "full", packs that this host read to the last byte before and found sound are not read again."""


DEFAULT_PERCENT = 10.0


def verify(
    repo: Repository, selected: Sequence[Selected], options: VerifyOptions | None = None, reporter: Reporter = silent
) -> VerifyResult:
    """Check the repository's objects and the selected snapshots. Damage becomes findings; a store that fails raises.

    Raises UsageError, StoreError; SourceError if no source could be compared; NothingMatched if nothing was checked.
    """
    try:
        return _verified(repo, selected, options or VerifyOptions(), reporter)
    finally:
        repo.contents.headless.clear()  # a restore and a repair take what this host still finds


def _verified(
    repo: Repository, selected: Sequence[Selected], options: VerifyOptions, reporter: Reporter
) -> VerifyResult:
    percent = DEFAULT_PERCENT if options.percent is None else options.percent
    if options.level not in LEVELS or not 0 < percent <= 100:
        raise UsageError(f"levels are {', '.join(LEVELS)}; a percentage is above 0 and at most 100")
    started = time.monotonic()
    result = VerifyResult()
    _objects(repo, result)
    unopened = unopened_packs(repo)
    if options.level != "structure":
        read_known_again(repo, result)
    lacking = check_runs(repo, selected, result)
    verification = _Verification(repo, selected, options, result, reporter)
    verification.packs()
    verification.snapshots()
    tell_cold(repo, result)
    tell_unopened(repo, result, unopened, all_whole=_all_whole(repo, selected, result))
    if selected and not result.checked_objects:
        raise NothingMatched("there was nothing to check", obj=repo.store.url)
    if options.publish:
        publish_bad(repo, result)
    # A sample that met no chunk and found nothing is no more than a look at the structure.
    nothing = options.level == "sample" and not result.checked_chunks and not result.damaged
    # Nor is a look at packs of which some could not be read, unless this host read them before: readings tell.
    shallow = nothing or bool(result.cold)
    _remember(repo, selected, "structure" if shallow else options.level, result, lacking)
    if options.level == "full" or (options.budget is not None and not nothing):
        result.coverage = coverage(repo.cache, verification.domains(), repo.clock())
        _remember_readings(repo, selected, result, lacking, full=options.level == "full")
    result.seconds = round(time.monotonic() - started, 3)
    return result


def examine_all(repo: Repository, level: str, workers: int | None, reporter: Reporter = silent) -> VerifyResult:
    """Check everything at a level, and publish nothing: how a repair looks at a repository. Raises as `verify`."""
    return verify(repo, select(repo, []), VerifyOptions(level, workers=workers, publish=False), reporter)


def _objects(repo: Repository, result: VerifyResult) -> None:
    """Check what every level checks: history, clear files, names, and the listing of packs."""
    repo.reload(whole=True, stored=True)
    check_history(repo, result)
    check_checkpoints(repo, result)
    check_files(repo, result)
    check_names(repo, result)
    try:
        repo.refresh_map()
    except IntegrityError as error:
        result.damage("pack", error.obj, error.message)


def _all_whole(repo: Repository, selected: Sequence[Selected], result: VerifyResult) -> bool:
    """Whether every snapshot there is was followed, no history is missing, and nothing was found damaged."""
    everything = len(selected) == len(repo.catalogue.snapshots) and all(one.snapshot.added.usable for one in selected)
    return everything and bool(repo.history.heads) and not repo.problems and not result.damaged


class _Verification:
    """One verification at its level."""

    def __init__(
        self,
        repo: Repository,
        selected: Sequence[Selected],
        options: VerifyOptions,
        result: VerifyResult,
        reporter: Reporter,
    ) -> None:
        self._repo = repo
        self._selected = selected
        self._options = options
        self._result = result
        self._reporter = reporter
        self._workers = options.workers or default_workers()

    def packs(self) -> None:
        """Read packs whole, as far as the level asks for it."""
        reading = PackVerification(self._repo, self._result, self._reporter, self._workers)
        if self._options.level == "full":
            check_stored_commits(self._repo, self._result)
            reading.everything(self.domains(), new=self._options.new_packs)
        elif self._options.level == "sample" and self._options.budget is not None:
            reading.longest_unread(self.domains(), self._budget(self._options.budget))

    def domains(self) -> set[DomainId] | None:
        """The domains of the selected snapshots; None, for all, if that is every snapshot."""
        if len(self._selected) == len(self._repo.catalogue.snapshots):
            return None
        return {one.snapshot.added.domain_id for one in self._selected}

    def _budget(self, budget: int) -> int:
        if self._options.percent is None:
            return budget
        domains = self.domains()
        among = None if domains is None else {*domains, CATALOGUE}
        return min(budget, int(census.total_length(self._repo.blobs, among) * self._options.percent / 100))

    def snapshots(self) -> None:
        """Follow the selected snapshots."""
        for one in self._selected:
            self._reporter(Progress("verify", one.text, 0, one.snapshot.added.size))
        walk = self._walk()
        for one in self._selected:
            if self._options.level == "restore":
                self._result.checked_objects += 1
                compare_restore(self._repo, one, self._result, self._reporter, self._workers)
            else:
                walk.snapshot(one)
            if self._options.level != "source":
                size = one.snapshot.added.size
                self._reporter(Progress("verify", one.text, size, size))
        if self._options.level == "source":
            self._sources()

    def _walk(self) -> SnapshotWalk:
        level, options = self._options.level, self._options
        sampled = level == "sample" and options.budget is None
        return SnapshotWalk(
            self._repo,
            self._result,
            self._reporter,
            percent=(options.percent or DEFAULT_PERCENT) if sampled else 0.0,
            trust_map=level in ("structure", "source") or (level == "sample" and not sampled),
            counts=level in ("structure", "source") or sampled,
            workers=self._workers,
        )

    def _sources(self) -> None:
        result, source = self._result, self._options.source
        compared = [
            compare_with_source(self._repo, one, source, result, self._reporter, self._workers)
            for one in self._selected
        ]
        if not any(compared):
            said = "; ".join(one.message for one in result.findings[-3:])
            raise SourceError(f"no source could be compared: {said}")


def _remember(
    repo: Repository, selected: Sequence[Selected], level: str, result: VerifyResult, lacking: Sequence[str]
) -> None:
    try:
        record(repo.proofs, _verdicts_of(selected, level, result, lacking, repo.clock()))
        if level == "full":
            _remember_proven(repo, selected, result)
    except RepositoryError as error:
        result.note("state", "", f"the verdict could not be kept: {error.message}")


def _remember_readings(
    repo: Repository, selected: Sequence[Selected], result: VerifyResult, lacking: Sequence[str], *, full: bool
) -> None:
    """What was read of each volume so far. Where that is everything, the volume is verified in full, as of the oldest
    part: budgets of many nights add up. A run at level `full` may have read the new packs alone, and says no more.
    """
    readings: dict[VolumeId, VolumeReading] = {}
    whole: list[Selected] = []
    now = repo.clock()
    for ones in _by_volume(selected).values():
        volume = ones[0].volume
        found = coverage(repo.cache, {one.snapshot.added.domain_id for one in ones}, now)
        reading = VolumeReading(now, found.read_bytes, found.total_bytes, found.runs, found.oldest_ms)
        readings[volume.volume_id] = reading
        sound = not any(one.text in result.unrestorable for one in ones) and volume.name not in lacking
        if found.whole and sound and (full or len(ones) == len(volume.snapshots)):
            whole += ones
    try:
        Readings(repo.proofs).keep(readings)
        made = _verdicts_of(whole, "full", result, lacking, now)
        record(repo.proofs, [(id_, replace(one, time_ms=readings[id_].oldest_ms)) for id_, one in made])
        _remember_proven(repo, whole, result)
    except RepositoryError as error:
        result.note("state", "", f"what was read could not be kept: {error.message}")


def _by_volume(selected: Sequence[Selected]) -> dict[VolumeId, list[Selected]]:
    found: dict[VolumeId, list[Selected]] = {}
    for one in selected:
        found.setdefault(one.volume.volume_id, []).append(one)
    return found


def _remember_proven(repo: Repository, selected: Sequence[Selected], result: VerifyResult) -> None:
    """Of each volume the newest of its owners' snapshots that is proven whole now. Raises RepositoryError."""
    proven: dict[VolumeId, Proven] = {}
    damaged: set[Ref] = set()
    for one in selected:
        snapshot, volume_id = one.snapshot, one.volume.volume_id
        if one.text in result.unrestorable:
            damaged.add(snapshot.ref)
        elif not snapshot.claim and snapshot.added.usable:
            found = Proven(snapshot.ref, repo.log.believed_ms(snapshot))
            proven[volume_id] = max(found, proven.get(volume_id, found), key=lambda row: row.time_ms)
    ProvenSnapshots(repo.proofs).passed(proven, damaged)


def _verdicts_of(
    selected: Sequence[Selected], level: str, result: VerifyResult, lacking: Sequence[str], now_ms: int
) -> list[tuple[VolumeId, VolumeVerdict]]:
    """The verdicts on the volumes of these snapshots; `lacking` are names of volumes not saved.

    A source that differs, or cannot be read, proves nothing of a snapshot: only its structure was looked at.
    """
    made: list[tuple[VolumeId, VolumeVerdict]] = []
    unlike = {one.obj for one in result.findings if one.kind == "source"}
    for volume_id, ones in _by_volume(selected).items():
        damaged = any(one.text in result.unrestorable for one in ones)
        incomplete = ones[0].volume.name in lacking
        word = verdicts.DAMAGED if damaged else verdicts.INCOMPLETE if incomplete else verdicts.OK
        newest = max(ones, key=lambda one: (one.snapshot.added.time_ms, one.snapshot.name)).snapshot.name
        seen = "structure" if level == "source" and unlike.intersection(one.text for one in ones) else level
        made.append((volume_id, VolumeVerdict(now_ms, seen, word, len(ones), newest, result.checked_bytes)))
    return made


def check_runs(repo: Repository, selected: Sequence[Selected], result: VerifyResult) -> list[str]:
    """Add what the newest run of each volume did not save; returns the names of those volumes.

    If the user named snapshots, only their volumes count; a volume may go by its shown name, `NAME~<4 hex>`.
    """
    everything = len(selected) == len(repo.catalogue.snapshots)
    names = None if everything else {one.volume.name for one in selected} | {one.volume_name for one in selected}
    lacking: list[str] = []
    last = max(repo.catalogue.runs, default="")
    saved = {volume.name for volume in repo.catalogue.volumes.values() if volume.snapshots}
    for run, row in newest_runs(repo.catalogue.runs.values()):
        if names is not None and row.name not in names:
            continue
        if row.failed:
            text = not_saved(run, row)
            if is_wanted(run, row, saved, last):
                result.not_saved(row.name, text)
                lacking.append(row.name)
            else:
                result.note("run", row.name, text)
        elif not _is_there(repo, run, row):
            result.damage("run", f"{row.name}@{run.name}", "a run says that it saved this, and it is not listed")
    return lacking


def _is_audited(repo: Repository, snapshot: Snapshot) -> bool:
    chain = repo.history.chains.get(snapshot.ref.writer)
    return chain is not None and chain.begin is not None and snapshot.ref.seq < chain.begin.seq


def _is_there(repo: Repository, run: Run, row: RunVolume) -> bool:
    """Whether the snapshot a run says it saved is listed, or was removed on purpose."""
    if not repo.history.whole:
        return True  # what was removed long ago is in no checkpoint any more
    if any(_is_audited(repo, one) for one in repo.catalogue.snapshots if one.name == run.name):
        return True  # nor in the audited checkpoint with which the chain begins
    removed = [one.added for one in repo.catalogue.removed.values() if one.added is not None]
    known = {(added.volume_id, added.name) for added in removed}
    known |= {(one.added.volume_id, one.name) for one in repo.catalogue.snapshots}
    return not any(row.volume_id) or (row.volume_id, run.name) in known
