"""The closed view: what is needed, and where that is known completely (FORMAT 8, docs/decisions/0036).

Anything that cannot be read may still be needed: below a commit that does not open, a missing part of a chain, a node
that cannot be read. History concerns everything; a node only its own domain.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from lamella.base.errors import IntegrityError, ObjectNotFound, RolledBack, StoreError, shown_bytes
from lamella.base.ids import CATALOGUE, ChunkId, DomainId
from lamella.format.node import Shape
from lamella.format.records import NO_REF, AddSnap, Checkpoint, Ref
from lamella.history.catalogue import Snapshot
from lamella.history.history import AUDITS_KEPT, History
from lamella.history.open_sessions import OpenSession
from lamella.memory.first_seen import FirstSeen
from lamella.operations.prune.health import Flaw, Health, damage
from lamella.operations.prune.removal import revivable, revive
from lamella.operations.shared.gaps import GapFinder, lost_by
from lamella.operations.shared.marking import Roots, roots_of
from lamella.packs import census
from lamella.packs.reach import require_alive
from lamella.packs.tree import Tree
from lamella.packs.usage import LiveIds
from lamella.repository.repository import Repository

DAY_MS = 86_400_000
SESSION_KEPT_MS = 7 * DAY_MS
"""How long after its last commit an unfinished run still holds what it relies on."""


def history_troubles(repo: Repository) -> Iterator[IntegrityError]:
    """Why the history as a whole may not be relied on."""
    for problem in repo.problems:
        yield RolledBack(problem.message, obj=repo.store.url, hint=problem.remedy)
    for text in repo.catalogue.unread.values():
        hint = "upgrade lamella: this version cannot read that writer's later records"
        yield IntegrityError(text, obj=repo.store.url, hint=hint)
    for text in repo.catalogue.malformed:
        yield IntegrityError(f"a record cannot be read, and nobody knows what it needs: {text}", obj="w/")


@dataclass(slots=True)
class Needed:
    """The needed blobs, and the domains for which they are known completely."""

    live: LiveIds
    closed: set[DomainId]
    """Domains whose packs may be judged."""
    roots: dict[DomainId, set[ChunkId]] = field(default_factory=dict)
    """The roots of snapshots, for tree notes."""
    pinned: set[bytes] = field(default_factory=set)
    """Packs of open sessions."""
    troubles: list[IntegrityError] = field(default_factory=list)
    """Why nothing is deleted in a part of the repository."""
    damaged: list[IntegrityError] = field(default_factory=list)
    """Snapshots that stay and are not whole, unless a LOST that counts says so."""
    claims: list[IntegrityError] = field(default_factory=list)
    """Claims of other hosts that were never whole here: what lies below their nodes may be needed, or nothing."""
    notes: list[str] = field(default_factory=list)
    cold: dict[bytes, int] = field(default_factory=dict)
    """Packs that would be deleted or rewritten, and must be thawed first, with their bytes."""

    @property
    def cold_notes(self) -> list[str]:
        """What stays for that reason, in words."""
        if not self.cold:
            return []
        size = shown_bytes(sum(self.cold.values()))
        return [f"packs that stay because they must be thawed first: {len(self.cold)}, {size}"]

    def leave(self, domain_id: DomainId, text: str, obj: str, hint: str = "") -> None:
        """Delete nothing in this domain, and say why."""
        self.closed.discard(domain_id)
        self.troubles.append(IntegrityError(text, obj=obj, hint=hint))


class Survey:
    """Looks at one repository for a prune. Snapshots that `health` has read are not read again.

    A `dry` survey writes nothing: it says which snapshots would come back, and takes them as needed.
    """

    def __init__(self, repo: Repository, health: Health, delays_ms: tuple[int, int], *, dry: bool = False) -> None:
        self.repo = repo
        self.health = health
        self.dry = dry
        self._delays_ms = delays_ms
        self.first_seen = FirstSeen(repo.memory, repo.clock, dry=dry)
        self.revived: list[AddSnap] = []
        """Snapshots that were published again, or would be."""
        self._waiting: list[tuple[AddSnap, str]] = []
        """Snapshots that were not revived, and why; without a reason nobody tried."""

    def revived_names(self) -> tuple[str, ...]:
        """`revived` as users name them."""
        names = self.repo.catalogue.shown_names()
        return tuple(f"{names.get(one.volume_id, one.volume_id.hex())}@{one.name}" for one in self.revived)

    def begin(self) -> list[IntegrityError]:
        """As `reread`; earlier judgements stay valid only if nobody has written since. Raises StoreError."""
        troubles = self.reread()
        if set(self.repo.history.heads) != self.health.heads:
            self.health.begin()
        return troubles

    def reread(self) -> list[IntegrityError]:
        """Read the whole history again; why it may not be relied on. Raises StoreError."""
        self.repo.reload(whole=True, stored=True)
        return list(history_troubles(self.repo))

    def mark(self, without: Collection[Ref] = (), *, again: bool = False) -> Needed:
        """Mark everything that is needed, as if the snapshots `without` were removed; valid until the next call.

        A volume that removals left without a whole snapshot first gets one back. With `again` nothing that was read
        before counts. Raises StoreError.
        """
        if again:
            self.health.begin()
        flaws = self.secured(without)
        # A node that could not be read once may open a moment later: what is below it was not marked all the same.
        needed = Needed(self.health.live, census.domains(self.repo.blobs) - self.health.unread)
        self._judge(needed, self._standing(without), flaws)
        self._hold_lost(needed, self._standing(without))
        self._hold_returning(needed)
        self._hold_expelled(needed, without)
        self._hold_removed(needed, without)
        self._hold_sessions(needed)
        self.health.hold_ids(self._catalogue_ids())
        needed.closed |= {CATALOGUE}
        if not self.dry:
            roots = (root for some in needed.roots.values() for root in some)
            census.keep_complete(self.repo.blobs, roots)
        return needed

    def _standing(self, without: Collection[Ref]) -> list[Snapshot]:
        found = self.repo.catalogue.snapshots
        return [snapshot for snapshot in found if snapshot.ref not in without and not snapshot.expelled]

    # -- volumes without a whole snapshot ------------------------------------------------------------------------------

    def secured(self, without: Collection[Ref] = ()) -> dict[Ref, Flaw]:
        """The flaws of all snapshots, once every volume that can have a whole one back has it."""
        self._waiting.clear()
        flaws = self.health.flaws(self._standing(without))
        tried = set(without)
        while not self.health.gone and self._revive(flaws, tried) and not self.dry:
            self.repo.reload(whole=True, stored=True)
            flaws = self.health.flaws(self._standing(without))
        return flaws

    def _revive(self, flaws: Mapping[Ref, Flaw], tried: set[Ref]) -> bool:
        """Whether any volume without a whole snapshot got one back. `tried` grows; nothing in it is tried again."""
        catalogue = self.repo.catalogue
        whole = {one.series for one in catalogue.snapshots if one.ref not in flaws and one.ref not in tried}
        before = len(self.revived)
        for rows in revivable(catalogue, whole):
            for ref, added in rows:
                if ref in tried:
                    continue
                tried.add(ref)
                if self.health.trace(added) is None and self._came_back(ref, added):
                    break
        return len(self.revived) > before

    def _came_back(self, ref: Ref, added: AddSnap) -> bool:
        """Publish it again. Where that fails nothing that it needs is deleted, and the next run tries again."""
        if self.dry:
            self._waiting.append((added, ""))
            self.revived.append(added)
            return True
        try:
            revive(self.repo, ref, added)
        except (StoreError, IntegrityError) as error:
            self.repo.require_sound_history()
            require_alive(self.repo.store, error)
            self._waiting.append((added, error.message))
            # What can be had later must not give way to an older one now.
            return not isinstance(error, IntegrityError | ObjectNotFound)
        self.revived.append(added)
        return True

    # -- what stands ---------------------------------------------------------------------------------------------------

    def _judge(self, needed: Needed, standing: Collection[Snapshot], flaws: Mapping[Ref, Flaw]) -> None:
        """The domains that may be judged, and the flaws of the snapshots that stay."""
        names = self.repo.catalogue.shown_names()
        for snapshot in standing:
            added = snapshot.added
            needed.roots.setdefault(added.domain_id, set()).add(added.root)
            flaw = flaws.get(snapshot.ref)
            if flaw is None or snapshot.given_up:
                continue
            error = damage(f"{names[added.volume_id]}@{snapshot.name}", flaw)
            if flaw.never:
                needed.claims.append(error)
                text = "a host that does not own the volume claims it, and it was never whole here"
                needed.notes.append(f"{error.message}; {text}: nothing waits for it")
                continue
            needed.damaged.append(error)
            if flaw.unreadable:
                text = f"nothing is deleted where a snapshot cannot be read: {error.message}"
                needed.leave(added.domain_id, text, error.obj, error.hint)
        if self.health.unread and not needed.troubles:
            text = "nothing is deleted where a manifest could not be read for a moment"
            needed.troubles.append(IntegrityError(text, obj=self.repo.store.url, hint="run prune again"))
        suspicion = self.health.suspicion()
        if suspicion is not None:
            needed.closed.clear()
            needed.troubles.append(suspicion)

    def _hold_lost(self, needed: Needed, standing: Collection[Snapshot]) -> None:
        """The rest of snapshots that are given up in part; no more than that part may be out of reach."""
        for snapshot in standing:
            domain_id = snapshot.added.domain_id
            unread = self.health.hold(domain_id, roots_of(snapshot.added)) if snapshot.given_up else None
            if not unread or snapshot.lost is None:
                continue
            gaps = GapFinder(self.repo, domain_id).find(snapshot)
            ranges = lost_by(snapshot, gaps).ranges
            said = all(any(a <= start and end <= b for a, b in snapshot.lost.ranges) for start, end in ranges)
            if not said or not unread <= {gap.id for gap in gaps}:
                text = f"more of {snapshot.name} cannot be read than was recorded as lost: nothing is deleted"
                hint = "look with: lamella verify; mend with: lamella repair"
                needed.leave(domain_id, text, snapshot.name, hint)

    # -- what is needed besides ----------------------------------------------------------------------------------------

    def _hold_returning(self, needed: Needed) -> None:
        for added, why in self._waiting:
            if self.health.hold(added.domain_id, roots_of(added)):
                needed.closed.discard(added.domain_id)
            needed.roots.setdefault(added.domain_id, set()).add(added.root)
            text = f"{added.name}, removed before, is the last whole snapshot of its volume and cannot be brought back"
            if why:
                needed.troubles.append(IntegrityError(f"{text}: {why}", obj=added.name, hint="run prune again"))

    def _hold_removed(self, needed: Needed, without: Collection[Ref]) -> None:
        """Snapshots whose removal this host has not known for long enough."""
        removed, own = self._removed(without), self.repo.catalogue.own_line
        if not any(self._delays_ms):
            return
        ages = {ref.encode(): self.first_seen.age_ms("removals", ref.encode()) for ref in removed}
        self.first_seen.younger("removals", list(ages), max(self._delays_ms))  # forgets what is gone
        young = {ref.encode() for ref in removed if ages[ref.encode()] < self._delays_ms[ref.writer not in own]}
        by_domain: dict[DomainId, Roots] = {}
        waiting: dict[DomainId, list[ChunkId]] = {}
        for ref, added in removed.items():
            if added is not None and ref.encode() in young:
                by_domain.setdefault(added.domain_id, Roots()).add(added)
                waiting.setdefault(added.domain_id, []).append(added.root)
                needed.roots.setdefault(added.domain_id, set()).add(added.root)
        kept = 0
        for domain_id, roots in by_domain.items():
            unread = self.health.hold(domain_id, roots)
            kept += sum(root not in unread for root in waiting[domain_id])
            if self._may_return(unread):
                # It is removed: that it cannot be read is no finding, and delays only what lies beside it.
                needed.closed.discard(domain_id)
                text = f"nothing is deleted yet in domain {domain_id.hex()[:8]}"
                needed.notes.append(f"{text}: a snapshot cannot be read whose removal is too young")
        if kept:
            needed.notes.append(f"{kept} removed snapshots are kept until their removal is old enough")

    def _may_return(self, unread: Collection[ChunkId]) -> bool:
        """Whether a pack that is there may hold one of these nodes. Other packs were deleted after the removal."""
        if not unread:
            return False
        from lamella.packs.census import troubled  # rarely needed

        suspects = self.repo.suspects
        bad = any(blob.id in unread for pack in suspects.packs() for blob in suspects.blobs(pack))
        return bad or bool(troubled(self.repo.blobs))

    def _hold_expelled(self, needed: Needed, without: Collection[Ref]) -> None:
        """The blobs that expelled writers published, as far as they can be read; an unreadable part blocks nothing."""
        for snapshot in self.repo.catalogue.snapshots:
            if snapshot.expelled and snapshot.ref not in without:
                self.health.hold(snapshot.added.domain_id, roots_of(snapshot.added))
                needed.roots.setdefault(snapshot.added.domain_id, set()).add(snapshot.added.root)

    def _removed(self, without: Collection[Ref]) -> dict[Ref, AddSnap | None]:
        """The removed snapshots, with those that this run would remove."""
        going = {one.ref: one.added for one in self.repo.catalogue.snapshots if one.ref in without}
        return going | {ref: removal.added for ref, removal in self.repo.catalogue.removed.items()}

    def _hold_sessions(self, needed: Needed) -> None:
        """The bases of unfinished runs, and the packs they stored."""
        known = self._removed(()) | {shot.ref: shot.added for shot in self.repo.catalogue.snapshots}
        by_domain: dict[DomainId, Roots] = {}
        for session in self.sessions():
            needed.pinned |= set(session.packs)
            for base in (known.get(volume.base) for volume in session.volumes if volume.base != NO_REF):
                if base is not None:
                    by_domain.setdefault(base.domain_id, Roots()).add(base)
            for partial in session.partial_roots:
                shape = Shape(partial.volume_id, partial.size, partial.chunk_log2)
                by_domain.setdefault(partial.domain_id, Roots()).trees.append(Tree(shape, partial.root))
        for domain_id, roots in by_domain.items():
            if self.health.hold(domain_id, roots):
                needed.notes.append("the data of an unfinished run cannot be read, and is not kept")

    def sessions(self) -> list[OpenSession]:
        """Unfinished runs that still hold what they rely on."""
        found = self.repo.catalogue.sessions
        kept = self.first_seen.younger("sessions", [one.key for one in found], SESSION_KEPT_MS)
        return [one for one in found if one.key in kept]

    def _catalogue_ids(self) -> Iterator[ChunkId]:
        """The segments of every checkpoint of every chain, and of the audited ones before its beginning."""
        for chain in self.repo.history.chains.values():
            carried = [commit.checkpoint for commit in chain.commits]
            # The chain begins with the last audited checkpoint that can be read.
            audits = self.repo.history.audits.get(chain.writer, [])[-AUDITS_KEPT:]
            audited = [self.repo.log.reader.load(History(), head) for head in audits]
            carried += [commit.checkpoint for commit in audited if commit is not None]
            for checkpoint in (*carried, chain.carried):
                if isinstance(checkpoint, Checkpoint):
                    yield from (place.id for place in checkpoint.segments)
