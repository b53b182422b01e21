"""Removing snapshots and giving back what nothing needs any more: plan, then execute (docs/decisions/0019)."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace

from lamella.base.errors import Locked, RepositoryError, RolledBack, StoreFull
from lamella.base.events import Reporter, silent
from lamella.format.records import Ref
from lamella.operations.prune.alone import AlonePruning
from lamella.operations.prune.health import Health
from lamella.operations.prune.lockless.grace import GracePruning
from lamella.operations.prune.options import DAY_MS, HOUR_MS, PruneOptions, PruneResult
from lamella.operations.prune.survey import Surveyor
from lamella.operations.shared.auditing import compact_log
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


def plan_prune(
    repo: Repository, removals: Sequence[Ref], options: PruneOptions | None = None, health: Health | None = None
) -> PrunePlan:
    """Decide what to remove; `execute` does it and gives back the space. `health` is what was judged under this lock.

    Raises RepositoryError if the secret may not delete or a snapshot is unknown, RolledBack, Locked at a mirror.
    """
    require_prune_key(repo.keys.prune_seed is not None, repo.store.url)
    repo.require_sound_history()
    repo.log.require_writable()
    known = {snapshot.ref for snapshot in repo.catalogue.snapshots}
    strange = [ref for ref in removals if ref not in known and ref not in repo.catalogue.removed]
    if strange:
        raise RepositoryError("a snapshot to be removed is not in the repository", obj=strange[0].snap_id.hex())
    return PrunePlan(repo, [ref for ref in removals if ref in known], options or PruneOptions(), health)


class PrunePlan:
    """What a prune will do. `removals` are the snapshots it removes."""

    def __init__(
        self, repo: Repository, removals: list[Ref], options: PruneOptions, health: Health | None = None
    ) -> None:
        self._repo = repo
        self._health = health
        self.removals = removals
        self.options = options

    def execute(self, reporter: Reporter = silent) -> PruneResult:
        """Do it. What cannot be judged stays and is reported in the result; a failing store raises.

        Whenever this is broken off, nothing that is needed is gone, and the next run goes on.
        """
        started = time.monotonic()
        with ExitStack() as held:
            health = self._health or held.enter_context(Health(self._repo, reporter))
            result = _Pruning(self._repo, self.options, reporter, health).run(self.removals)
        result.seconds = round(time.monotonic() - started, 3)
        return result


class _Pruning:
    """One prune: judge, walk, REMOVE, `sync`, mark, delete (docs/decisions/0036)."""

    def __init__(self, repo: Repository, options: PruneOptions, reporter: Reporter, health: Health) -> None:
        self._repo = repo
        self._options = options
        self._reporter = reporter
        self._surveyor = Surveyor(repo, options, health)
        self._result = PruneResult()

    def run(self, removals: Collection[Ref]) -> PruneResult:
        """Do it."""
        # Heads are read again, under the lock where there is one: what was planned may be older than the last backup.
        self._result.blocked += self._surveyor.begin()
        if not self._result.blocked:
            self._remove_and_collect(removals)
        names = self._repo.catalogue.shown_names()
        for added in self._surveyor.revived:
            name = f"{names.get(added.volume_id, added.volume_id.hex())}@{added.name}"
            self._result.revived.append(name)
        return self._result

    def _remove_and_collect(self, removals: Collection[Ref]) -> None:
        repo = self._repo
        try:
            self._remove(removals)
        except StoreFull:
            if not repo.exclusive:
                raise
            # Not even room for a commit: what a run left that broke off on the full disk goes first.
            self._alone(replace(self._options, repack=False))
            self._remove(removals)
        # Before the log is shortened: what removals left a volume without must not be forgotten first.
        self._surveyor.secured()
        if repo.exclusive and self._may_delete():
            self._collect()
            return
        self._compact()
        if not self._may_delete():
            self._left_to_others()
        elif repo.store.abilities.exclusive_lock:
            raise Locked("packs are deleted under the exclusive lock only", obj=repo.store.url)
        else:
            GracePruning(repo, self._options, self._reporter, self._result).run(self._surveyor)

    def _may_delete(self) -> bool:
        return self._repo.store.abilities.delete and not self._repo.store.abilities.immutable

    def _remove(self, removals: Collection[Ref]) -> None:
        """Publish what may be removed. A volume's last whole snapshot stays, and so does all of that volume."""
        present = {snapshot.ref for snapshot in self._repo.catalogue.snapshots}
        records, refused = self._surveyor.allowed(present & set(removals), last=self._options.last)
        self._result.blocked += refused
        if records:
            self._repo.publish(records)
            self._repo.reload(whole=True, stored=True)
        self._result.removed += [ref for record in records for ref in record.refs if ref in present]

    def _alone(self, options: PruneOptions) -> None:
        AlonePruning(self._repo, options, self._reporter, self._result).run(self._surveyor)

    def _collect(self) -> None:
        """Shorten the log, then delete; the other way round where there is no room to begin with."""
        full = not self._compacted()
        self._alone(self._options)
        if full and not self._compacted():
            self._result.notes.append("the log of commits was not shortened: no space is left for it")

    def _compacted(self) -> bool:
        try:
            self._compact()
        except StoreFull:
            return False
        return True

    def _compact(self) -> None:
        """Let chains begin with audited checkpoints. Records that one leaves out still count, and are reported."""
        delete = self._repo.store.abilities.delete and self._repo.exclusive
        self._result.deleted_commits, wrong = compact_log(self._repo, self._options.remove_delay_ms, delete=delete)
        self._result.blocked += [RolledBack(problem.message, obj=self._repo.store.url) for problem in wrong]

    def _left_to_others(self) -> None:
        """Nothing may be deleted from here: say how much whoever may could free."""
        result = self._result
        view, usage = self._surveyor.view()
        choice = self._surveyor.choose(view, usage)
        result.condemned_bytes = sum(use.length for use in choice.dead)
        result.live_bytes, result.dead_bytes = choice.live_bytes, choice.unused_bytes
        view.report_to(result)
        result.notes.append(
            "nothing can be deleted from here: prune where the repository may be changed to free the space"
        )
