"""Removing snapshots and freeing the space of data that nothing needs (docs/decisions/0019, 0036, 0038).

Judge, walk, REMOVE, `sync`, mark, plan, delete. A prune can be interrupted at any point without losing needed data; the
next run continues. This file also holds the executor for stores with a lock; `lockless` is the other executor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from lamella.base.errors import Locked, RepositoryError, RolledBack, StoreFull
from lamella.base.events import Reporter, Warned, silent
from lamella.format.deletion import Reaped, RemoveLast
from lamella.format.records import Ref
from lamella.operations.prune.health import Health
from lamella.operations.prune.needed import Needed, Survey
from lamella.operations.prune.plan import (
    Fate,
    Method,
    PruneOptions,
    PruneResult,
    batches,
    known_removals,
    method_of,
    plan_packs,
    plan_removals,
)
from lamella.operations.prune.removal import removals as records_of
from lamella.operations.prune.rewrite import JudgedPack, Rewriting, delete_packs, judge
from lamella.operations.shared.auditing import compact_log
from lamella.packs.usage import PackUse
from lamella.repository.repository import Repository

_PACKS_AT_ONCE = 1000


def require_prune_key(may_sign: bool, url: str) -> None:
    """Raises RepositoryError unless the secret may authorise deletion."""
    if not may_sign:
        raise RepositoryError(
            "this secret may add backups but not delete anything: nothing was removed",
            obj=url,
            hint="use an admin's passphrase, key file or recovery key",
        )


def run_prune(
    repo: Repository,
    removals: Iterable[Ref] | Mapping[Ref, str],
    options: PruneOptions | None = None,
    health: Health | None = None,
    reporter: Reporter = silent,
) -> PruneResult:
    """Remove these snapshots and free their space. `health` holds what was judged under this lock.

    What cannot be judged stays and is reported in the result. Raises RepositoryError if the secret may not delete or a
    snapshot is unknown, RolledBack, Locked at a mirror, StoreError.
    """
    require_prune_key(repo.keys.prune_seed is not None, repo.store.url)
    repo.require_sound_history()
    repo.log.require_writable()
    wanted = known_removals(repo, removals)
    started = time.monotonic()
    with ExitStack() as held:
        judged = health or held.enter_context(Health(repo, reporter))
        result = _Pruning(repo, options or PruneOptions(), reporter, judged).run(wanted)
    result.seconds = round(time.monotonic() - started, 3)
    return result


class _Pruning:
    """One prune."""

    def __init__(self, repo: Repository, options: PruneOptions, reporter: Reporter, health: Health) -> None:
        self._repo = repo
        self._options = options
        self._reporter = reporter
        self._survey = Survey(repo, health, options.delays_ms)
        self._method = method_of(repo.store.abilities)
        self._result = PruneResult()

    def run(self, removals: Mapping[Ref, str]) -> PruneResult:
        """Do it."""
        # Heads are read again, under the lock where there is one: what was judged may be older than the last backup.
        self._result.blocked += self._survey.begin()
        if not self._result.blocked:
            self._make_room_to_remove(removals)
            # Before the log is shortened: what removals left a volume without must not be forgotten first.
            self._survey.secured()
            self._collect()
        self._result.revived += self._survey.revived_names()
        return self._result

    def _make_room_to_remove(self, removals: Mapping[Ref, str]) -> None:
        try:
            self._remove(removals)
        except StoreFull:
            if not self._repo.exclusive:
                raise
            # Not even room for a commit: what a run left that broke off on the full disk goes first.
            self._delete_alone(replace(self._options, repack=False))
            self._remove(removals)

    def _remove(self, removals: Mapping[Ref, str]) -> None:
        """Publish what may be removed. A volume's last whole snapshot stays, and so does all of that volume."""
        present = {snapshot.ref for snapshot in self._repo.catalogue.snapshots}
        wanted = {ref: reason for ref, reason in removals.items() if ref in present}
        going, refused = plan_removals(self._survey, wanted, self._options)
        self._result.blocked += refused
        records = records_of([one.ref for one in going if not one.last])
        records += records_of([one.ref for one in going if one.last], RemoveLast)
        if records:
            self._repo.publish(records)
            self._repo.reload(whole=True, stored=True)
        self._result.removed += [one.ref for one in going if one.ref in present]

    def _collect(self) -> None:
        """Shorten the log, then delete; the other way round where there is no room to begin with."""
        if self._method is Method.ALONE and self._repo.exclusive:
            full = not self._compacted()
            self._delete_alone(self._options)
            if full and not self._compacted():
                self._result.notes.append("the log of commits was not shortened: no space is left for it")
            return
        self._compact()
        if self._method is Method.OTHERS:
            self._leave_to_others()
        elif self._method is Method.ALONE:
            raise Locked("packs are deleted under the exclusive lock only", obj=self._repo.store.url)
        else:
            from lamella.operations.prune.lockless import LocklessPruning  # most destinations have a lock

            LocklessPruning(self._survey, self._options, self._reporter, self._result).run()

    def _compacted(self) -> bool:
        try:
            self._compact()
        except StoreFull:
            return False
        return True

    def _compact(self) -> None:
        """Let chains begin with audited checkpoints. Records missing from one still count, and are reported."""
        delete = self._repo.store.abilities.delete and self._repo.exclusive
        self._result.deleted_commits, wrong = compact_log(self._repo, self._options.delays_ms[1], delete=delete)
        self._result.blocked += [RolledBack(problem.message, obj=self._repo.store.url) for problem in wrong]

    def _leave_to_others(self) -> None:
        """Nothing may be deleted from here: say how much whoever may could free."""
        needed = self._survey.mark()
        plan = plan_packs(self._survey, needed, self._options)
        self._result.condemned_bytes = plan.condemned_bytes
        self._result.live_bytes, self._result.dead_bytes = plan.live_bytes, plan.unused_bytes
        self._result.saw(needed)
        self._result.notes.append(
            "nothing can be deleted from here: prune where the repository may be changed to free the space"
        )

    # -- under the exclusive lock (FORMAT 8, exclusive mode) -----------------------------------------------------------

    def _delete_alone(self, options: PruneOptions) -> None:
        """Delete packs that nothing needs, which takes no room; then rewrite those that are worth it, in batches."""
        needed = self._survey.mark()
        plan = plan_packs(self._survey, needed, options)
        self._result.live_bytes, self._result.dead_bytes = plan.live_bytes, plan.unused_bytes
        wasteful = self._delete_dead(needed, plan.uses(Fate.DELETE)) + plan.uses(Fate.REWRITE)
        for batch in batches(wasteful, options.batch_bytes) if options.repack else ():
            if not self._rewrite(needed, batch):
                break
        self._result.saw(needed)

    def _delete_dead(self, needed: Needed, dead: Sequence[PackUse]) -> list[PackUse]:
        """Delete; returns packs that hold something after all, as a tree note of a snapshot that stays."""
        left: list[PackUse] = []
        for start in range(0, len(dead), _PACKS_AT_ONCE):
            judged = judge(self._repo, needed, dead[start : start + _PACKS_AT_ONCE])
            self._delete([one for one in judged if not one.needed])
            left += [one.use for one in judged if one.needed]
        return left

    def _delete(self, judged: Sequence[JudgedPack]) -> None:
        """Delete packs and say so."""
        if judged:
            delete_packs(self._repo, judged, self._result)
            packs = tuple(one.use.pack for one in judged)
            self._repo.publish([Reaped(os.urandom(16), packs, tuple(sorted(self._repo.history.heads)))])

    def _rewrite(self, needed: Needed, batch: Sequence[PackUse]) -> bool:
        """Copy, then delete; False if there is no room to go on."""
        rewriting = Rewriting(self._repo, self._reporter)
        judged = judge(self._repo, needed, batch)
        try:
            gone = rewriting.run(judged)
        except StoreFull as error:
            rewriting.withdraw()
            self._result.notes.append(f"packs that are partly needed were not rewritten: {error.message}")
            self._reporter(Warned(self._result.notes[-1], error.obj))
            return False
        self._delete(gone)
        rewriting.report_to(self._result, gone)
        return True
