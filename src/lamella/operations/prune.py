"""Removing snapshots and giving back what nothing needs any more: plan, then execute (docs/decisions/0019)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from lamella.errors import Locked, RepositoryError, RolledBack, StoreFull
from lamella.events import Reporter, silent
from lamella.format.records import Ref
from lamella.operations.auditing import compact_log
from lamella.operations.prune_alone import AlonePruning
from lamella.operations.prune_grace import GracePruning
from lamella.operations.prune_options import DAY_MS, HOUR_MS, PruneOptions, PruneResult
from lamella.operations.prune_survey import Surveyor
from lamella.operations.removal import removals as removals_of
from lamella.repository.repository import Repository

__all__ = ["DAY_MS", "HOUR_MS", "PruneOptions", "PrunePlan", "PruneResult", "plan_prune", "require_prune_key"]


def require_prune_key(may_sign: bool, url: str) -> None:
    """Raises RepositoryError unless the secret may authorise deletion."""
    if not may_sign:
        raise RepositoryError(
            "this secret may add backups but not delete anything: nothing was removed",
            obj=url,
            hint="use an admin's passphrase, key file or recovery key",
        )


def plan_prune(repo: Repository, removals: Sequence[Ref], options: PruneOptions | None = None) -> PrunePlan:
    """Decide what to remove; `execute` does it and gives back the space.

    Raises RepositoryError if the secret may not delete or a snapshot is unknown, RolledBack, Locked at a mirror.
    """
    require_prune_key(repo.keys.prune_seed is not None, repo.store.url)
    repo.require_sound_history()
    repo.require_writable()
    known = {snapshot.ref for snapshot in repo.catalogue.snapshots}
    strange = [ref for ref in removals if ref not in known and ref not in repo.catalogue.removed]
    if strange:
        raise RepositoryError("a snapshot to be removed is not in the repository", obj=strange[0].snap_id.hex())
    return PrunePlan(repo, [ref for ref in removals if ref in known], options or PruneOptions())


class PrunePlan:
    """What a prune will do. `removals` are the snapshots it removes."""

    def __init__(self, repo: Repository, removals: list[Ref], options: PruneOptions) -> None:
        self._repo = repo
        self.removals = removals
        self.options = options

    def execute(self, reporter: Reporter = silent) -> PruneResult:
        """Do it. What cannot be judged stays and is reported in the result; a failing store raises.

        Whenever this is broken off, nothing that is needed is gone, and the next run goes on.
        """
        started = time.monotonic()
        result = _prune(self._repo, self.removals, self.options, reporter)
        result.seconds = round(time.monotonic() - started, 3)
        return result


def _prune(repo: Repository, removals: Sequence[Ref], options: PruneOptions, reporter: Reporter) -> PruneResult:
    result = PruneResult()
    surveyor = Surveyor(repo, options, reporter)
    # Heads are read again, under the lock where there is one: what was planned may be older than the last backup.
    result.blocked += surveyor.reread()
    if result.blocked:
        return result
    try:
        _remove(repo, removals, result)
    except StoreFull:
        if not repo.exclusive:
            raise
        # Not even room for a commit: what a run left that broke off on the full disk goes first.
        AlonePruning(repo, replace(options, repack=False), reporter, result).run(surveyor)
        _remove(repo, removals, result)
    if repo.exclusive and _may_delete(repo):
        _collect(repo, options, reporter, result, surveyor)
        return result
    _compact(repo, options, result)
    if not _may_delete(repo):
        _left_to_others(surveyor, result)
    elif repo.store.abilities.exclusive_lock:
        raise Locked("packs are deleted under the exclusive lock only", obj=repo.store.url)
    else:
        GracePruning(repo, options, reporter, result).run(surveyor)
    return result


def _may_delete(repo: Repository) -> bool:
    return repo.store.abilities.delete and not repo.store.abilities.immutable


def _collect(
    repo: Repository, options: PruneOptions, reporter: Reporter, result: PruneResult, surveyor: Surveyor
) -> None:
    """Shorten the log, then give back what nothing needs; the other way round where there is no room to begin with."""
    full = not _compacted(repo, options, result)
    AlonePruning(repo, options, reporter, result).run(surveyor)
    if full and not _compacted(repo, options, result):
        result.notes.append("the log of commits was not shortened: no space is left for it")


def _compacted(repo: Repository, options: PruneOptions, result: PruneResult) -> bool:
    try:
        _compact(repo, options, result)
    except StoreFull:
        return False
    return True


def _remove(repo: Repository, removals: Sequence[Ref], result: PruneResult) -> None:
    present = {snapshot.ref for snapshot in repo.catalogue.snapshots}
    wanted = [ref for ref in removals if ref in present]
    if wanted:
        repo.publish(removals_of(wanted))
        repo.reload(whole=True)
    result.removed += wanted


def _compact(repo: Repository, options: PruneOptions, result: PruneResult) -> None:
    """Let chains begin with audited checkpoints. What a checkpoint left out is live all the same, and is told."""
    delete = repo.store.abilities.delete and repo.exclusive
    result.deleted_commits, wrong = compact_log(repo, options.remove_delay_ms, delete=delete)
    result.blocked += [RolledBack(problem.message, obj=repo.store.url) for problem in wrong]


def _left_to_others(surveyor: Surveyor, result: PruneResult) -> None:
    """Nothing may be deleted from here: say how much whoever may could free."""
    with surveyor.view() as (view, usage):
        choice = surveyor.choose(view, usage)
        result.condemned_bytes = sum(use.length for use in choice.dead)
        result.live_bytes, result.dead_bytes = choice.live_bytes, choice.unused_bytes
        result.blocked += view.troubles
        result.notes += view.notes
    result.notes.append("nothing can be deleted from here: prune where the repository may be changed to free the space")
