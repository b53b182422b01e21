"""Mending a damaged repository: nothing is deleted, what is still somewhere is brought back (FORMAT 8, LOST).

The order: history first (its commits from this host's cache or a copy, else volumes rebuilt from tree notes), then
clear files, then contents: what still opens in bad packs and what donors have is stored again and made durable before
any bad object is moved aside. What stays lost is recorded in the repository. Done twice, the second time finds nothing
to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from lamella.base.errors import NothingMatched, RepositoryError, UsageError
from lamella.base.events import Progress, Reporter, silent
from lamella.base.names import COMMITS, README, RESCUE
from lamella.format.commit import Head
from lamella.format.lost import Lost
from lamella.format.records import UNSIGNED
from lamella.history.acceptance import accept_history
from lamella.history.catalogue import Snapshot
from lamella.memory.pins import Problem
from lamella.memory.verdict_changes import forget_damage
from lamella.operations.repair import rebuild
from lamella.operations.repair.donors import Donors
from lamella.operations.repair.heal import Depot, Healer
from lamella.operations.repair.objects import ObjectRepair
from lamella.operations.repair.result import BACK, GIVEN_UP, LEFT, REBUILT, RECORDED, STORED, Gone, RepairResult
from lamella.operations.shared.aside import may_set_aside
from lamella.operations.shared.findings import VerifyResult
from lamella.operations.shared.gaps import MissingBlob, find_gaps, lost_by
from lamella.operations.shared.selection import Selected, select
from lamella.repository.create import file_record
from lamella.repository.exclusive import lock_exclusively, look_again
from lamella.repository.publishing import give_up
from lamella.repository.readme import readme_text, rescue_source
from lamella.repository.repository import Repository
from lamella.sources.base import Source

EXAMINATIONS = ("structure", "full")
_MOST_ROUNDS = 12
"""A tree has at most ten levels; each round can bring back one of them, and documents one."""


@dataclass(frozen=True, slots=True)
class RepairOptions:
    """Options of a repair, and the donors of lost content.

    `level` is the examination: "full" reads every pack, "structure" goes by the listing and by what this host remembers
    to be bad. `sources` by the names of volumes, where it is not the source the volume came from.
    """

    level: str = "full"
    sources: Mapping[str, Source] = field(default_factory=dict)
    others: Sequence[Repository] = ()
    dry: bool = False
    rebuild: bool = False
    """Publish again what tree notes tell, also if the history that lacks it was accepted."""
    accepted: Collection[Head] = ()
    """Commits that are known and were not here when the history was accepted."""
    workers: int | None = None
    lock_wait: float = 0.0


Examine = Callable[[Repository, str, int | None, Reporter], VerifyResult]
"""Verifies all of a repository at a level, with so many workers, and publishes nothing: `verify.examine_all`."""


def repair(
    repo: Repository,
    examine: Examine,
    options: RepairOptions | None = None,
    reporter: Reporter = silent,
    confirm: Callable[[RepairResult], None] = lambda result: None,
) -> RepairResult:
    """Examine a repository opened whole that `may_be_lost`, and mend it. `confirm` may raise once it is examined.

    Raises UsageError, Locked, StoreError, RepositoryError.
    """
    options = options or RepairOptions()
    if options.level not in EXAMINATIONS:
        raise UsageError(f"a repair examines at one of the levels {', '.join(EXAMINATIONS)}")
    started = time.monotonic()
    result = RepairResult(options.dry)
    with Donors(repo, options.sources, options.others) as donors:
        mending = _Mending(repo, options, donors, result, reporter)
        result.found = examine(repo, options.level, options.workers, reporter).findings
        confirm(result)
        if not options.dry and may_set_aside(repo.store):
            lock_exclusively(repo, options.lock_wait)
        mending.history()
        mending.contents()
        if options.dry:
            result.remaining = result.found
        else:
            with suppress(NothingMatched):
                mending.finish(examine(repo, "structure", options.workers, reporter))
        result.notes += donors.notes
    result.seconds = round(time.monotonic() - started, 3)
    return result


class _Mending:
    """The steps of one repair."""

    def __init__(
        self, repo: Repository, options: RepairOptions, donors: Donors, result: RepairResult, reporter: Reporter
    ) -> None:
        self._repo = repo
        self._options = options
        self._donors = donors
        self._result = result
        self._reporter = reporter
        self._objects = ObjectRepair(repo, donors, result)

    def _again(self) -> None:
        """Look at the repository as it is now; of a dry run, it has not changed."""
        if not self._options.dry:
            self._repo.store.sync()
            look_again(self._repo)

    # -- history ------------------------------------------------------------------------------------------------------

    def history(self) -> None:
        """Bring commits back; where none is left, publish again what the tree notes tell."""
        self._objects.commits(self._result.found)
        if self._result.actions:
            self._again()
        lost = not self._repo.history.heads and not any(one.did == BACK for one in self._result.actions)
        self._objects.files(() if lost else self._result.found)
        if self._options.rebuild:
            self._give_up()
        trees = rebuild.find_trees(self._repo) if self._lacks_history() else []
        if lost and not self._options.dry:
            self._begin_anew()
        if trees and self._may_publish("what the tree notes tell"):
            for run in rebuild.by_run(trees):
                name = rebuild.snapshot_name(self._repo, run[0].note.time_ms)
                for tree in run:
                    self._result.did(REBUILT, f"{tree.note.name}@{name}", "from a tree note: its commit is lost")
                if not self._options.dry:
                    self._repo.publish(rebuild.records(self._repo, run))
                    self._repo.reload(whole=True)
        if lost or trees:
            self._again()

    def _give_up(self) -> None:
        """Who takes the history as it is and may sign says so for every host: nobody has those commits any more."""
        repo = self._repo
        there = {commit.head for chain in repo.history.chains.values() for commit in chain.commits}
        lacking = sorted({*self._options.accepted, *repo.log.lacking} - there)
        if not lacking or repo.keys.prune_seed is None or not repo.history.heads:
            return
        for head in lacking:
            self._result.did(GIVEN_UP, head.name, "for every host")
        if not self._options.dry:
            give_up(repo, lacking)
            self._again()

    def _lacks_history(self) -> bool:
        history = self._repo.history
        lacks = bool(self._left(history.problems)) if self._options.dry else bool(history.problems or history.damaged)
        return lacks or not history.heads or self._options.rebuild

    def _left(self, problems: Sequence[Problem]) -> list[Problem]:
        """Those that a dry run would not mend."""
        back = {action.obj for action in self._result.actions if action.did == BACK}
        return [one for one in problems if not (self._options.dry and one.lacks and one.lacks.name in back)]

    def _may_publish(self, what: str) -> bool:
        problems = [problem.message for problem in self._left(self._repo.problems)]
        if problems and not (self._options.dry and not self._repo.history.heads):
            self._result.problems = problems
            self._result.did(LEFT, COMMITS, f"{what} cannot be published before this history is accepted")
            return False
        return True

    def _begin_anew(self) -> None:
        """A new chain under a new key: nobody must take it for a part of the one that is lost."""
        repo = self._repo
        accept_history(repo.log)
        with repo.memory.lock():
            repo.memory.new_writer_key()
        records = [file_record("lamella", repo.keys.marker.encode())]
        slot = repo.unlocked.slot
        records.append(file_record(slot.name, slot.encode()))
        for name, content in ((README, readme_text()), (RESCUE, rescue_source())):
            if self._objects.ensure(name, content):
                records.append(file_record(name, content))
        if repo.keys.prune_seed is None:
            self._result.did(LEFT, COMMITS, "what the clear files must be can only be signed with an admin's secret")
            records = []
        else:
            self._result.did(RECORDED, COMMITS, "the marker, the key slot in use and the texts are signed again")
        repo.publish(records)
        repo.reload(whole=True)

    # -- contents -----------------------------------------------------------------------------------------------------

    def contents(self) -> None:
        """Empty bad packs, fill gaps from donors, and then move the bad packs aside."""
        found = self._result.found
        with Depot(self._repo, dry=self._options.dry) as depot:
            emptied = self._objects.salvage(found, depot)
            self._objects.catalogue_segments(depot)
            depot.settle()
            self._again()
            gaps = self._gaps()
            for _ in range(_MOST_ROUNDS):
                if not self._fill(gaps, depot):
                    break
                if self._options.dry:
                    gaps = _not_taken(gaps, depot)
                    break
                depot.settle()
                self._again()
                gaps = self._gaps()
            self._result.stored_blobs, self._result.stored_bytes = depot.blobs, depot.chunk_bytes
        self._objects.packs_aside(emptied)
        self._again()
        self._record(gaps)

    def _gaps(self) -> list[tuple[Selected, list[MissingBlob]]]:
        usable = [one for one in select(self._repo, []) if one.snapshot.added.usable]
        return [(one, gaps) for one, gaps in find_gaps(self._repo, usable) if gaps or one.snapshot.lost is not None]

    def _fill(self, found: list[tuple[Selected, list[MissingBlob]]], depot: Depot) -> bool:
        """Whether anything was brought back."""
        before, steps = depot.blobs, len(self._result.actions)
        healer = Healer(self._repo, self._donors, depot)
        for one, gaps in found:
            blobs = [(gap.kind, gap.id) for gap in gaps]
            self._objects.whole_packs(one.snapshot.added.domain_id, blobs)
            if self._donors.twins() and len(self._result.actions) > steps and not self._options.dry:
                continue  # whole packs came: what is missing then is looked for again
            filled = 0
            for number, gap in enumerate(gaps, 1):
                filled += healer.heal(one, gap)
                self._reporter(Progress("repair", one.volume_name, number, len(gaps)))
            if filled:
                self._result.did(STORED, one.text, f"{filled} of {len(gaps)} missing parts were found elsewhere")
        return depot.blobs > before or len(self._result.actions) > steps

    def _record(self, found: list[tuple[Selected, list[MissingBlob]]]) -> None:
        """Say in the repository what is lost, and what is whole again."""
        records: list[Lost] = []
        for one, gaps in found:
            lost = lost_by(one.snapshot, gaps)
            if not lost.whole:
                self._result.gone.append(Gone(one.text, lost.lost_bytes, lost.ranges, lost.documents))
            if self._is_said(one.snapshot, lost):
                continue
            records.append(lost)
            self._result.did(RECORDED, one.text, "is whole again" if lost.whole else "is incomplete from now on")
        if records and not self._options.dry and self._may_publish("what is lost"):
            self._repo.publish(records)
            self._repo.reload(whole=True)

    def _is_said(self, snapshot: Snapshot, lost: Lost) -> bool:
        """Whether the repository says so already, and so that it counts, where this secret can make it count."""
        known, repo = snapshot.lost, self._repo
        counts = repo.keys.prune_seed is not None or snapshot.ref.writer == repo.own_writer
        if counts and snapshot.given_up == lost.whole:
            return False
        return lost.whole if known is None else lost == replace(known, signature=UNSIGNED)

    # -- the end ------------------------------------------------------------------------------------------------------

    def finish(self, last: VerifyResult) -> None:
        """Report what the last look found, and forget bad news that is not true any more."""
        self._result.remaining = last.findings
        self._result.problems = [problem.message for problem in self._repo.problems]
        whole = {one.volume.volume_id: True for one in select(self._repo, [])}
        for one in select(self._repo, []):
            whole[one.volume.volume_id] &= one.text not in last.unrestorable
        try:
            forget_damage(self._repo.proofs, (volume_id for volume_id, is_whole in whole.items() if is_whole))
        except RepositoryError as error:
            self._result.notes.append(f"the verdicts of this host could not be kept: {error.message}")


def _not_taken(
    found: list[tuple[Selected, list[MissingBlob]]], depot: Depot
) -> list[tuple[Selected, list[MissingBlob]]]:
    """The damage that a dry run would leave."""
    return [
        (one, [gap for gap in gaps if not depot.has(one.snapshot.added.domain_id, gap.kind, gap.id)])
        for one, gaps in found
    ]
