"""Deleting where no lock keeps others out: condemn, wait, hear from every writer, look again, delete (FORMAT 8).

Each rule here has its counter-example in tests/model/test_grace.py. Times only add to what acknowledgements prove.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from lamella.base.clock import iso
from lamella.base.errors import IntegrityError, ObjectCold, ObjectNotFound, RepositoryError
from lamella.base.events import Reporter
from lamella.base.ids import DomainId, WriterId
from lamella.base.names import pack_name
from lamella.format.commit import Head
from lamella.format.container import Blob
from lamella.format.deletion import Condemn, Reaped, Rescue, Retire
from lamella.format.known import understood
from lamella.format.records import AddSnap, RawRecord, Signed, raw
from lamella.format.sessions import Abandon, Session
from lamella.history.condemned import Batch
from lamella.history.history import Chain
from lamella.operations.prune.needed import DAY_MS, Needed, Survey
from lamella.operations.prune.plan import (
    Fate,
    PlannedPack,
    PruneOptions,
    PrunePlan,
    PruneResult,
    batches,
    plan_packs,
)
from lamella.operations.prune.rewrite import JudgedPack, Rewriting, delete_packs, judge
from lamella.packs.blobmap import Place
from lamella.packs.usage import PackUse
from lamella.repository.repository import Repository

IDLE_MS = 30 * DAY_MS
"""How long a writer must have been silent before it may be retired."""
ORPHAN_MS = 7 * DAY_MS
"""How long this host must have known a pack that nobody named before it is condemned."""
_PACKS_AT_ONCE = 1000


# -- planning ----------------------------------------------------------------------------------------------------------


def old_enough(survey: Survey, dead: Sequence[PackUse]) -> list[PackUse]:
    """The packs among these that a commit named once, or that have been here long enough.

    A run may be writing the others right now (FORMAT 12).
    """
    named = _named_packs(survey.repo)
    unnamed = [use.pack for use in dead if use.pack not in named]
    young = survey.first_seen.younger("orphans", unnamed, ORPHAN_MS)
    return [use for use in dead if use.pack not in young]


def _named_packs(repo: Repository) -> set[bytes]:
    named: set[bytes] = set()
    for chain in repo.history.chains.values():
        for entry in chain.entries:
            if entry.record.type in (AddSnap.TYPE, Session.TYPE):
                with suppress(IntegrityError):
                    known = understood(entry.record)
                    named.update(known.packs if isinstance(known, AddSnap | Session) else ())
    return named


def with_condemned(plan: PrunePlan, survey: Survey, needed: Needed, options: PruneOptions) -> PrunePlan:
    """The plan with the fates of packs that were condemned before: deleted, rescued, or waiting."""
    repo = survey.repo
    knowledge = Acknowledgements(survey, options)
    knowledge.to_retire()
    batches_ = [batch for batch in repo.log.condemned.batches.values() if batch.waiting]
    uses = {use.pack: use for use in survey.health.usage().packs() if use.pack in repo.blobs.condemned}
    wanted = _needed_blobs(repo, needed, uses.values())
    fates: dict[bytes, PlannedPack] = {}
    waiting: list[str] = []
    for batch in batches_:
        reasons = knowledge.lacking(batch)
        waiting += [reason for reason in reasons if reason not in waiting]
        for use in (uses[pack] for pack in sorted(batch.waiting) if pack in uses and not reasons):
            if use.domain_id not in needed.closed or use.pack in needed.pinned:
                continue
            kept = all(any(_places(repo, batch, use.domain_id, blob)) for blob in wanted.get(use.pack, ()))
            fate, why = (Fate.DELETE, "who may need it knows") if kept else (Fate.RESCUE, "it is needed again")
            fates[use.pack] = PlannedPack(use, fate, f"condemned before, and {why}")
    left = frozenset().union(*(batch.waiting for batch in batches_)) - fates.keys()
    return replace(
        plan,
        packs=(*fates.values(), *plan.packs),
        waiting=tuple(waiting),
        waiting_bytes=sum(uses[pack].length for pack in left if pack in uses),
    )


def _needed_blobs(repo: Repository, needed: Needed, uses: Iterable[PackUse]) -> dict[bytes, list[Blob]]:
    """The needed blobs of these packs, as the map says."""
    directories = [(use.pack, repo.blobs.directory(use.pack)) for use in uses if use.held]
    blobs = {pack: found.blobs for pack, found in directories if found is not None}
    live = needed.live.among(blob.id for some in blobs.values() for blob in some)
    return {pack: [blob for blob in some if blob.id in live] for pack, some in blobs.items()}


def _places(repo: Repository, batch: Batch, domain_id: DomainId, blob: Blob) -> Iterator[Place]:
    """Where a blob lies in packs that the same batch wrote and nobody condemned."""
    for place in repo.blobs.reusable(blob.kind, blob.id):
        if place.pack in batch.written and place.domain_id == domain_id:
            yield place


# -- doing -------------------------------------------------------------------------------------------------------------


class LocklessPruning:
    """One collection: delete packs that earlier ones condemned, where allowed, and condemn packs nobody needs now."""

    def __init__(self, survey: Survey, options: PruneOptions, reporter: Reporter, result: PruneResult) -> None:
        self._repo = survey.repo
        self._survey = survey
        self._options = options
        self._reporter = reporter
        self._result = result
        self._looked: set[Head] = set()
        self._needed: Needed | None = None

    def run(self) -> None:
        """Go as far as is allowed now."""
        knowledge = Acknowledgements(self._survey, self._options)
        retired = knowledge.to_retire()
        if retired:
            self._repo.publish(retired)
            self._repo.reload(whole=True)
        # What others condemned may be all that a volume has left: it gets a snapshot back before this host agrees.
        if self._fresh() is not None:
            knowledge.acknowledge(lambda: self._publish([]))
            for batch in list(self._repo.log.condemned.batches.values()):
                if batch.waiting:
                    self._reap(knowledge, batch)
            if not self._result.blocked:
                self._condemn()
        self._figures()

    # -- a fresh view --------------------------------------------------------------------------------------------------

    def _fresh(self) -> Needed | None:
        """Read the heads again: marks stay valid if the heads are the same. None if nothing may be relied on."""
        troubles = self._survey.reread()
        if troubles:
            self._result.blocked += troubles
            return None
        if self._needed is None or set(self._repo.history.heads) != self._looked:
            self._needed = self._survey.mark(again=self._needed is not None)
            self._looked = set(self._repo.history.heads)
            self._result.saw(self._needed)
        return self._needed

    def _publish(self, records: Sequence[RawRecord | Signed]) -> None:
        """Publish; that the own chain grew by this very commit changes nothing in the view."""
        published = self._repo.publish(records)
        self._looked = {head for head in self._looked if head.writer != published.head.writer} | {published.head}

    # -- deleting what was condemned -----------------------------------------------------------------------------------

    def _reap(self, knowledge: Acknowledgements, batch: Batch) -> None:
        packs = sorted(batch.waiting)
        for start in range(0, len(packs), _PACKS_AT_ONCE):
            needed = self._fresh()
            if needed is None:
                return
            now = self._repo.log.condemned.batches.get(batch.batch, batch)
            reasons = knowledge.lacking(now)
            if reasons:
                self._result.waiting += [reason for reason in reasons if reason not in self._result.waiting]
                return
            some = {pack for pack in packs[start : start + _PACKS_AT_ONCE] if pack in now.waiting}
            self._reap_some(needed, now, some)

    def _reap_some(self, needed: Needed, batch: Batch, packs: Collection[bytes]) -> None:
        repo = self._repo
        there = [use for use in self._survey.health.usage().packs() if use.pack in packs]
        judged = judge(repo, needed, there)
        doomed = [one for one in judged if all(self._kept_elsewhere(batch, one, blob) for blob in one.needed)]
        rescued = [one for one in judged if one not in doomed]
        if rescued:
            self._publish([Rescue(batch.batch, tuple(one.use.pack for one in rescued))])
        delete_packs(repo, doomed, self._result)
        # A run that was killed while it deleted left packs that are gone and not said to be.
        gone = {pack for pack in set(packs) - {use.pack for use in there} if self._is_gone(pack)}
        said = tuple(sorted(gone | {one.use.pack for one in doomed}))
        if said:
            self._publish([Reaped(batch.batch, said, tuple(sorted(self._looked))), raw(Abandon(batch.batch))])

    def _kept_elsewhere(self, batch: Batch, one: JudgedPack, blob: Blob) -> bool:
        """Whether a needed blob opens in a pack that the same batch wrote and nobody condemned."""
        return any(self._opens(place) for place in _places(self._repo, batch, one.head.domain_id, blob))

    def _is_gone(self, pack: bytes) -> bool:
        try:
            self._repo.store.stat(pack_name(pack))
        except ObjectNotFound:
            return True
        return False

    def _opens(self, place: Place) -> bool:
        try:
            self._repo.contents.open_at(place)
        except (IntegrityError, ObjectCold, ObjectNotFound):
            return False
        return True

    # -- condemning ----------------------------------------------------------------------------------------------------

    def _condemn(self) -> None:
        needed = self._fresh()
        if needed is None:
            return
        plan = plan_packs(self._survey, needed, self._options)
        self._result.live_bytes, self._result.dead_bytes = plan.live_bytes, plan.unused_bytes
        dead = judge(self._repo, needed, plan.uses(Fate.CONDEMN))
        going = [one.use.pack for one in dead if not one.needed]
        for start in range(0, len(going), 10 * _PACKS_AT_ONCE):
            some = tuple(going[start : start + 10 * _PACKS_AT_ONCE])
            self._publish([Condemn(os.urandom(16), some, tuple(sorted(self._looked)))])
        wasteful = [*(one.use for one in dead if one.needed), *plan.uses(Fate.REWRITE)]
        for batch in batches(wasteful, self._options.batch_bytes) if self._options.repack else ():
            self._rewrite(needed, batch)
        self._result.saw(needed)

    def _rewrite(self, needed: Needed, packs: Sequence[PackUse]) -> None:
        """Copy, then condemn the old packs in favour of the new ones, in one commit."""
        rewriting = Rewriting(self._repo, self._reporter, twins=False)
        gone = rewriting.run(judge(self._repo, needed, packs))
        if gone:
            batch = os.urandom(16)
            old = tuple(one.use.pack for one in gone)
            written = Session(batch, "prune", packs=tuple(rewriting.new_packs))
            self._publish([Condemn(batch, old, tuple(sorted(self._looked))), raw(written)])
        rewriting.report_to(self._result, gone)

    def _figures(self) -> None:
        """The packs that are condemned now, and from when on they can go."""
        repo, first_seen = self._repo, self._survey.first_seen
        repo.reload(whole=True)
        waiting = [batch for batch in repo.log.condemned.batches.values() if batch.waiting]
        packs = frozenset().union(*(batch.waiting for batch in waiting))
        self._result.condemned_bytes = sum(repo.blobs.length(pack) or 0 for pack in packs)
        now, grace = repo.clock(), self._options.grace_ms
        until = [now + max(0, grace - first_seen.age_ms("condemned", batch.batch)) for batch in waiting]
        self._result.condemned_until_ms = min(until, default=0)
        first_seen.younger("condemned", [batch.batch for batch in waiting], grace)


class Acknowledgements:
    """The state of each batch, by the chains as they were read last."""

    def __init__(self, survey: Survey, options: PruneOptions) -> None:
        self._repo = survey.repo
        self._survey = survey
        self._options = options

    def to_retire(self) -> list[Retire]:
        """RETIRE for the writers that the user gave up. Raises RepositoryError for one that is not silent."""
        heads = self._repo.history.heads
        young = self._survey.first_seen.younger("heads", [head.sha256 for head in heads], IDLE_MS)
        found: list[Retire] = []
        for writer in self._options.retire:
            chain = self._repo.history.chains.get(writer)
            if chain is None or chain.head is None:
                raise RepositoryError("there is no such writer", obj=writer.hex())
            if any(head.sha256 in young for head in chain.heads):
                text = f"writer {self._name(writer)} wrote within the last 30 days: it is not retired"
                raise RepositoryError(text, obj=writer.hex())
            if not self._retired(chain):
                found.append(Retire(chain.head))
        return found

    def acknowledge(self, publish: Callable[[], None]) -> None:
        """Publish that this host knows what others condemned, unless it has said so before."""
        repo = self._repo
        own = repo.own_writer
        chain = None if own is None else repo.history.chains.get(own)
        waiting = [batch for batch in repo.log.condemned.batches.values() if batch.waiting and batch.writer != own]
        if any(chain is None or not _knows(chain, batch) for batch in waiting):
            publish()

    def lacking(self, batch: Batch) -> list[str]:
        """Why the packs of a batch may not be deleted yet; empty if they may."""
        reasons: list[str] = []
        repo = self._repo
        excused: set[WriterId | None] = {batch.writer}
        if self._survey.dry:  # a run first publishes that it knows, and RETIRE
            excused |= {repo.own_writer, *self._options.retire}
        age = self._survey.first_seen.age_ms("condemned", batch.batch)
        if age < self._options.grace_ms:
            until = iso(self._survey.first_seen.now_ms + self._options.grace_ms - age)
            reasons.append(f"condemned packs stay until {until}")
        for writer, chain in sorted(repo.history.chains.items()):
            if not (writer in excused or self._retired(chain) or _knows(chain, batch)):
                hint = f"after 30 days it can be given up with --retire {writer.hex()}"
                reasons.append(f"{self._name(writer)} has not written since packs were condemned; {hint}")
        reasons += self._open_sessions(batch)
        return reasons

    def _open_sessions(self, batch: Batch) -> list[str]:
        """Runs that were begun before the CONDEMN and may rely on its packs."""
        reasons: list[str] = []
        for session in self._survey.sessions():
            if session.session_id in self._repo.log.condemned.batches:
                continue  # what a collector copied
            if session.writer == batch.writer:
                knows = session.seq > batch.seq
            else:
                clock = self._repo.history.clocks.get((session.writer, session.seq), {})
                knows = clock.get(batch.writer, 0) >= batch.seq
            if not knows:
                reasons.append(f"a run of {self._name(session.writer)} that began before packs were condemned is open")
        return reasons

    def _retired(self, chain: Chain) -> bool:
        """Whether RETIRE names its end; a writer that went on is not retired."""
        head = self._repo.catalogue.retired.get(chain.writer)
        return head is not None and chain.head is not None and chain.head.seq <= head.seq

    def _name(self, writer: WriterId) -> str:
        known = self._repo.catalogue.writers.get(writer)
        return f"writer {writer.hex()[:8]}" + (f" ({known.label})" if known is not None and known.label else "")


def _knows(chain: Chain, batch: Batch) -> bool:
    """Whether every branch of a chain had seen the CONDEMN."""
    if chain.writer == batch.writer:
        return True
    return bool(chain.heads) and all(
        chain.clocks.get(head.sha256, {}).get(batch.writer, 0) >= batch.seq for head in chain.heads
    )
