"""Deleting where there is no lock: condemn, wait, hear from every writer, look again, delete (FORMAT 8, grace mode).

Each rule here has its counter-example in tests/model/test_grace.py. Times only add to what acknowledgements prove.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence

from lamella.base.errors import IntegrityError, ObjectNotFound
from lamella.base.events import Reporter
from lamella.format.commit import Head
from lamella.format.deletion import Condemn, Reaped, Rescue
from lamella.format.known import Signed
from lamella.format.records import RawRecord, raw
from lamella.format.sessions import Abandon, Session
from lamella.history.condemned import Batch
from lamella.operations.prune.judge import Judged, judge
from lamella.operations.prune.lockless.acknowledged import Acknowledgements
from lamella.operations.prune.lockless.orphans import OldEnough
from lamella.operations.prune.options import PruneOptions, PruneResult
from lamella.operations.prune.rewrite import Rewriting
from lamella.operations.prune.survey import Surveyor, batches
from lamella.operations.prune.usage import PackUse, Usage
from lamella.operations.prune.view import View
from lamella.packs.blobmap import Place, pack_name
from lamella.repository.repository import Repository

PACKS_AT_ONCE = 1000


class GracePruning:
    """One collection: what earlier ones condemned is deleted if it may be, and what is not needed now is condemned."""

    def __init__(self, repo: Repository, options: PruneOptions, reporter: Reporter, result: PruneResult) -> None:
        self._repo = repo
        self._options = options
        self._reporter = reporter
        self._result = result
        self._looked: set[Head] = set()
        self._view: tuple[View, Usage] | None = None

    def run(self, surveyor: Surveyor) -> None:
        """Go as far as is allowed now."""
        knowledge = Acknowledgements(self._repo, surveyor, self._options)
        knowledge.retire()
        # What others condemned may be all that a volume has left: it gets a snapshot back before this host agrees.
        if self._fresh(surveyor) is not None:
            knowledge.acknowledge(lambda: self._publish([]))
            for batch in list(self._repo.log.condemned.batches.values()):
                if batch.waiting:
                    self._reap(surveyor, knowledge, batch)
            if not self._result.blocked:
                self._condemn(surveyor)
        self._figures(surveyor)

    # -- a fresh view --------------------------------------------------------------------------------------------------

    def _fresh(self, surveyor: Surveyor) -> tuple[View, Usage] | None:
        """Read the heads again; what was marked counts on if they are the same. None if nothing may be relied on."""
        troubles = surveyor.reread()
        if troubles:
            self._result.blocked += troubles
            return None
        heads = set(self._repo.history.heads)
        if self._view is None or heads != self._looked:
            self._view = surveyor.view(again=self._view is not None)
            self._looked = set(self._repo.history.heads)
            self._view[0].report_to(self._result)
        return self._view

    def _publish(self, records: Sequence[RawRecord | Signed]) -> None:
        """Publish; that the own chain grew by this very commit changes nothing in the view."""
        published = self._repo.publish(records)
        self._looked = {head for head in self._looked if head.writer != published.head.writer} | {published.head}

    # -- deleting what was condemned -----------------------------------------------------------------------------------

    def _reap(self, surveyor: Surveyor, knowledge: Acknowledgements, batch: Batch) -> None:
        packs = sorted(batch.waiting)
        for start in range(0, len(packs), PACKS_AT_ONCE):
            found = self._fresh(surveyor)
            if found is None:
                return
            now = self._repo.log.condemned.batches.get(batch.batch, batch)
            reasons = knowledge.lacking(now)
            if reasons:
                self._result.waiting += [reason for reason in reasons if reason not in self._result.waiting]
                return
            some = [pack for pack in packs[start : start + PACKS_AT_ONCE] if pack in now.waiting]
            self._reap_some(found, now, some)

    def _reap_some(self, found: tuple[View, Usage], batch: Batch, packs: Sequence[bytes]) -> None:
        view, usage = found
        repo, wanted = self._repo, set(packs)
        there = [use for use in usage.packs() if use.pack in wanted]
        judged = judge(repo, view, there)
        doomed = [one for one in judged if all(self._kept_elsewhere(batch, one, blob.id) for blob in one.needed)]
        rescued = [one for one in judged if one not in doomed]
        if rescued:
            self._publish([Rescue(batch.batch, tuple(one.use.pack for one in rescued))])
        for one in doomed:
            repo.store.delete(one.head.name)
        repo.store.sync()
        repo.blobs.forget(one.use.pack for one in doomed)
        repo.blobs.drop_stale_segments()
        # A run that was killed while it deleted left packs that are gone and not said to be.
        gone = {pack for pack in wanted - {use.pack for use in there} if self._is_gone(pack)}
        said = tuple(sorted(gone | {one.use.pack for one in doomed}))
        if said:
            self._publish([Reaped(batch.batch, said, tuple(sorted(self._looked))), raw(Abandon(batch.batch))])
        self._result.freed_bytes += sum(one.use.length for one in doomed)
        self._result.deleted_packs += len(doomed)

    def _kept_elsewhere(self, batch: Batch, one: Judged, id_: bytes) -> bool:
        """Whether a needed blob opens in a pack that the same batch wrote and nobody condemned."""
        for blob in one.needed:
            if blob.id != id_:
                continue
            for place in self._repo.blobs.reusable(blob.kind, blob.id):
                if place.pack in batch.written and place.domain_id == one.head.domain_id and self._opens(place):
                    return True
        return False

    def _is_gone(self, pack: bytes) -> bool:
        try:
            self._repo.store.stat(pack_name(pack))
        except ObjectNotFound:
            return True
        return False

    def _opens(self, place: Place) -> bool:
        try:
            self._repo.contents.open_at(place)
        except IntegrityError:
            return False
        return True

    # -- condemning ----------------------------------------------------------------------------------------------------

    def _condemn(self, surveyor: Surveyor) -> None:
        found = self._fresh(surveyor)
        if found is None:
            return
        view, usage = found
        choice = surveyor.choose(view, usage, self._repo.blobs.condemned, twins=False)
        self._result.live_bytes, self._result.dead_bytes = choice.live_bytes, choice.unused_bytes
        old_enough = OldEnough(self._repo, surveyor.first_seen)
        dead = judge(self._repo, view, old_enough.among(choice.dead))
        going = [one.use.pack for one in dead if not one.needed]
        for some in _slices(going):
            self._publish([Condemn(os.urandom(16), tuple(some), tuple(sorted(self._looked)))])
        wasteful = [*(one.use for one in dead if one.needed), *choice.wasteful]
        for batch in batches(wasteful, self._options.batch_bytes) if self._options.repack else ():
            self._rewrite(view, batch)
        view.report_to(self._result)

    def _rewrite(self, view: View, packs: Collection[PackUse]) -> None:
        """Copy, then condemn the old packs in favour of the new ones, in one commit."""
        rewriting = Rewriting(self._repo, self._reporter, twins=False)
        gone = rewriting.run(judge(self._repo, view, list(packs)))
        self._result.blocked += [IntegrityError(f"a needed blob is damaged: {text}") for text in rewriting.bad]
        if gone:
            batch = os.urandom(16)
            old = tuple(one.use.pack for one in gone)
            written = Session(batch, "prune", packs=tuple(rewriting.new_packs))
            self._publish([Condemn(batch, old, tuple(sorted(self._looked))), raw(written)])
        self._result.freed_bytes -= rewriting.put_bytes
        self._result.repacked_bytes += rewriting.copied_bytes
        self._result.dead_bytes -= sum(one.use.blobs - one.use.needed for one in gone)

    def _figures(self, surveyor: Surveyor) -> None:
        """What is condemned now, and from when it can go."""
        repo, first_seen = self._repo, surveyor.first_seen
        repo.reload(whole=True)
        waiting = [batch for batch in repo.log.condemned.batches.values() if batch.waiting]
        packs = set().union(*(batch.waiting for batch in waiting))
        self._result.condemned_bytes = sum(repo.blobs.length(pack) or 0 for pack in packs)
        now, grace = repo.clock(), self._options.grace_ms
        until = [now + max(0, grace - first_seen.age_ms("condemned", batch.batch)) for batch in waiting]
        self._result.condemned_until_ms = min(until, default=0)
        first_seen.save("condemned", [batch.batch for batch in waiting])


def _slices(packs: Sequence[bytes], most: int = 10 * PACKS_AT_ONCE) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(packs), most):
        yield packs[start : start + most]
