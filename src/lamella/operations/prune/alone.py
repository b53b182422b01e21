"""Deleting under the store's exclusive lock: mark, delete, rewrite, done (FORMAT 8, exclusive mode)."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lamella.base.errors import IntegrityError, StoreFull
from lamella.base.events import Reporter, Warned
from lamella.format.deletion import Reaped
from lamella.operations.prune.judge import Judged, judge
from lamella.operations.prune.options import PruneOptions, PruneResult
from lamella.operations.prune.rewrite import Rewriting
from lamella.operations.prune.survey import Surveyor, batches
from lamella.operations.prune.usage import PackUse
from lamella.operations.prune.view import View
from lamella.repository.repository import Repository

PACKS_AT_ONCE = 1000


class AlonePruning:
    """One collection. Whenever it is broken off, nothing that is needed is gone, and the next one goes on."""

    def __init__(self, repo: Repository, options: PruneOptions, reporter: Reporter, result: PruneResult) -> None:
        self._repo = repo
        self._options = options
        self._reporter = reporter
        self._result = result

    def run(self, surveyor: Surveyor) -> None:
        """Give back what nothing needs."""
        view, usage = surveyor.view()
        choice = surveyor.choose(view, usage)
        self._result.live_bytes, self._result.dead_bytes = choice.live_bytes, choice.unused_bytes
        wasteful = [*self._delete_dead(view, choice.dead), *choice.wasteful]
        for batch in batches(wasteful, self._options.batch_bytes) if self._options.repack else ():
            if not self._rewrite(view, batch):
                break
        view.report_to(self._result)

    def _delete_dead(self, view: View, dead: Sequence[PackUse]) -> list[PackUse]:
        """Delete; returns packs that hold something after all, as a tree note of a snapshot that stays."""
        left: list[PackUse] = []
        for start in range(0, len(dead), PACKS_AT_ONCE):
            judged = judge(self._repo, view, dead[start : start + PACKS_AT_ONCE])
            self._delete([one for one in judged if not one.needed])
            left += [one.use for one in judged if one.needed]
        return left

    def _delete(self, judged: Sequence[Judged]) -> None:
        """Delete packs and say so."""
        if not judged:
            return
        repo = self._repo
        packs = [one.use.pack for one in judged]
        for one in judged:
            repo.store.delete(one.head.name)
        repo.store.sync()
        repo.blobs.forget(packs)
        repo.blobs.drop_stale_segments()
        repo.publish([Reaped(os.urandom(16), tuple(packs), tuple(sorted(repo.history.heads)))])
        self._result.freed_bytes += sum(one.use.length for one in judged)
        self._result.deleted_packs += len(packs)

    def _rewrite(self, view: View, batch: Sequence[PackUse]) -> bool:
        """Copy, then delete; False if there is no room to go on."""
        rewriting = Rewriting(self._repo, self._reporter)
        judged = judge(self._repo, view, batch)
        try:
            gone = rewriting.run(judged)
        except StoreFull as error:
            rewriting.withdraw()
            self._result.notes.append(f"packs that are partly needed were not rewritten: {error.message}")
            self._reporter(Warned(self._result.notes[-1], error.obj))
            return False
        self._result.blocked += [IntegrityError(f"a needed blob is damaged: {text}") for text in rewriting.bad]
        self._delete(gone)
        self._result.freed_bytes -= rewriting.put_bytes
        self._result.repacked_bytes += rewriting.copied_bytes
        self._result.dead_bytes -= sum(one.use.blobs - one.use.needed for one in gone)
        return True
