"""Removing snapshots and giving back what nothing needs any more: plan, then execute (docs/decisions/0019)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence

from lamella.errors import IntegrityError, RepositoryError, RolledBack, StoreFull
from lamella.events import Reporter, Warned, silent
from lamella.format.deletion import Reaped, Remove
from lamella.format.records import Ref
from lamella.operations.auditing import compact_log
from lamella.operations.prune_judge import Judged, judge
from lamella.operations.prune_options import DAY_MS, HOUR_MS, PruneOptions, PruneResult
from lamella.operations.prune_rewrite import Rewriting
from lamella.operations.prune_view import (
    SESSION_KEPT_MS,
    Sightings,
    View,
    history_troubles,
    lost_chunks,
    mark,
)
from lamella.repository.marking import LiveIds
from lamella.repository.open_sessions import OpenSession
from lamella.repository.repository import Repository
from lamella.repository.usage import PackUse, Usage

__all__ = ["DAY_MS", "HOUR_MS", "PruneOptions", "PrunePlan", "PruneResult", "plan_prune", "require_prune_key"]

_PACKS_AT_ONCE = 1000
_REMOVALS_AT_ONCE = 1000


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
        pruning = Pruning(self._repo, self.options, reporter)
        pruning.run(self.removals)
        pruning.result.seconds = round(time.monotonic() - started, 3)
        return pruning.result


class Pruning:
    """One prune under the exclusive lock."""

    def __init__(self, repo: Repository, options: PruneOptions, reporter: Reporter) -> None:
        self._repo = repo
        self._options = options
        self._reporter = reporter
        self._sightings = Sightings(repo.memory, repo.clock)
        self.result = PruneResult()

    def run(self, removals: Sequence[Ref]) -> None:
        """Remove, mark, delete, rewrite."""
        repo = self._repo
        # Heads are read again under the lock: what was planned may be older than the last backup.
        repo.reload(whole=True)
        self.result.blocked += history_troubles(repo)
        if self.result.blocked:
            return
        self._remove(removals)
        self._compact(delete=repo.store.abilities.delete and repo.exclusive)
        if not repo.store.abilities.delete:
            self.result.notes.append("this destination lets us delete nothing: whoever may must prune it there")
            return
        if not repo.exclusive:
            self.result.notes.append("the destination has no lock that would let packs be deleted at once")
            return
        self._collect()

    def _compact(self, *, delete: bool) -> None:
        """Let chains begin with audited checkpoints. What a checkpoint left out is live all the same, and is told."""
        self.result.deleted_commits, wrong = compact_log(self._repo, self._options.remove_delay_ms, delete=delete)
        self.result.blocked += [RolledBack(problem.message, obj=self._repo.store.url) for problem in wrong]

    def _remove(self, removals: Sequence[Ref]) -> None:
        present = {snapshot.ref for snapshot in self._repo.catalogue.snapshots}
        wanted = [ref for ref in removals if ref in present]
        for start in range(0, len(wanted), _REMOVALS_AT_ONCE):
            some = wanted[start : start + _REMOVALS_AT_ONCE]
            self._repo.publish([Remove(tuple(some))])
            self.result.removed += some
        if wanted:
            self._repo.reload(whole=True)

    def _collect(self) -> None:
        repo = self._repo
        repo.refresh_map()
        place = repo.cache.path.parent if repo.cache.path is not None else None
        with LiveIds(place) as live:
            view = View(live)
            mark(repo, view, self._sessions(), self._delayed(), self._reporter)
            usage = Usage(repo.cache, live)
            if usage.missing:
                lost_chunks(repo, view, usage.missing)
            self._forget_roots(view)
            dead, wasteful = self._chosen(view, usage)
            wasteful = [*self._delete_dead(view, dead), *wasteful]
            if self._options.repack:
                self._rewrite(view, wasteful)
            self.result.blocked += view.troubles
            self.result.notes += view.notes

    def _sessions(self) -> list[OpenSession]:
        """Unfinished runs that still hold what they rely on."""
        found = self._repo.catalogue.sessions
        kept = [one for one in found if self._sightings.age_ms("sessions", one.key) < SESSION_KEPT_MS]
        self._sightings.save("sessions", [one.key for one in found])
        return kept

    def _delayed(self) -> list[Ref]:
        """Snapshots whose removal this host has not known for long enough."""
        delay, removed = self._options.remove_delay_ms, self._repo.catalogue.removed
        if not delay:
            return []
        young = [ref for ref in removed if self._sightings.age_ms("removals", ref.encode()) < delay]
        self._sightings.save("removals", [ref.encode() for ref in removed])
        if young:
            self.result.notes.append(f"{len(young)} removed snapshots are kept until their removal is old enough")
        return young

    def _forget_roots(self, view: View) -> None:
        """Trees of removed snapshots are no longer known to be complete."""
        self._repo.blobs.keep_complete(root for roots in view.roots.values() for root in roots)

    # -- choosing ------------------------------------------------------------------------------------------------------

    def _chosen(self, view: View, usage: Usage) -> tuple[list[PackUse], list[PackUse]]:
        """Packs that hold nothing needed, and those to rewrite, most wasteful first."""
        dead: list[PackUse] = []
        partly: list[PackUse] = []
        live = unused = 0
        for use in usage.packs():
            if use.domain_id not in view.closed or use.pack in view.pinned:
                live += use.needed
            elif not use.held:
                dead.append(use)
            else:
                live += use.needed
                unused += use.blobs - use.needed
                if use.needed < use.blobs:
                    partly.append(use)
        partly.sort(key=lambda use: (use.needed / use.blobs, use.pack))
        wasteful: list[PackUse] = []
        for use in partly:
            share = 100 * use.needed / use.blobs
            if share >= self._options.repack_below and unused * 100 <= self._options.max_unused * live:
                break
            wasteful.append(use)
            unused -= use.blobs - use.needed
        rewritten = sum(use.blobs - use.needed for use in wasteful)
        self.result.live_bytes, self.result.dead_bytes = live, unused + rewritten
        return dead, wasteful

    # -- deleting ------------------------------------------------------------------------------------------------------

    def _delete_dead(self, view: View, dead: Sequence[PackUse]) -> list[PackUse]:
        """Delete; returns packs that hold something after all, as a tree note of a snapshot that stays."""
        left: list[PackUse] = []
        for start in range(0, len(dead), _PACKS_AT_ONCE):
            judged = judge(self._repo, view, dead[start : start + _PACKS_AT_ONCE])
            self._delete([one for one in judged if not one.needed])
            left += [one.use for one in judged if one.needed]
        return left

    def _delete(self, judged: Sequence[Judged]) -> int:
        """Delete packs and say so; returns their bytes."""
        if not judged:
            return 0
        repo = self._repo
        packs = [one.use.pack for one in judged]
        for one in judged:
            repo.store.delete(one.head.name)
        repo.store.sync()
        repo.blobs.forget(packs)
        repo.blobs.drop_stale_segments()
        heads = tuple(sorted(repo.history.heads))
        repo.publish([Reaped(os.urandom(16), tuple(packs), heads)])
        size = sum(one.use.length for one in judged)
        self.result.freed_bytes += size
        self.result.deleted_packs += len(packs)
        return size

    def _rewrite(self, view: View, wasteful: Iterable[PackUse]) -> None:
        batch: list[PackUse] = []
        size = 0
        for use in wasteful:
            if batch and size + use.held > self._options.batch_bytes:
                if not self._rewrite_batch(view, batch):
                    return
                batch, size = [], 0
            batch.append(use)
            size += use.held
        if batch:
            self._rewrite_batch(view, batch)

    def _rewrite_batch(self, view: View, batch: Sequence[PackUse]) -> bool:
        """Copy, then delete; False if there is no room to go on."""
        rewriting = Rewriting(self._repo, self._reporter)
        judged = judge(self._repo, view, batch)
        try:
            gone = rewriting.run(judged)
        except StoreFull as error:
            rewriting.withdraw()
            self.result.notes.append(f"packs that are partly needed were not rewritten: {error.message}")
            self._reporter(Warned(self.result.notes[-1], error.obj))
            return False
        self.result.blocked += [IntegrityError(f"a needed blob is damaged: {text}") for text in rewriting.bad]
        self._delete(gone)
        self.result.freed_bytes -= rewriting.put_bytes
        self.result.repacked_bytes += rewriting.copied_bytes
        self.result.dead_bytes -= sum(one.use.blobs - one.use.needed for one in gone)
        return True
