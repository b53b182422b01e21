"""Looking at the whole: what is needed, what every pack holds of it, and which packs are to go."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from lamella.base.errors import IntegrityError, ObjectNotFound, StoreError
from lamella.base.ids import CATALOGUE, VolumeId
from lamella.format.deletion import Remove, RemoveLast
from lamella.format.records import AddSnap, Ref
from lamella.history.catalogue import Snapshot
from lamella.history.open_sessions import OpenSession
from lamella.memory.pins import FirstSeen
from lamella.operations.prune.health import Health, damage
from lamella.operations.prune.options import DAY_MS, PruneOptions
from lamella.operations.prune.removal import removals as records_of
from lamella.operations.prune.revival import candidates, revive
from lamella.operations.prune.tracing import Flaw
from lamella.operations.prune.usage import PackUse, Usage
from lamella.operations.prune.view import (
    SESSION_KEPT_MS,
    View,
    catalogue_ids,
    history_troubles,
    pack_domains,
    removed_roots,
    session_roots,
)
from lamella.operations.shared.gaps import GapFinder, lost_by
from lamella.operations.shared.marking import Roots, roots_of
from lamella.packs.reach import require_alive
from lamella.repository.repository import Repository

UNEXPLAINED_MS = 30 * DAY_MS
"""How long a pack stays that nothing needs, while an object under a commit's name is not explained."""


@dataclass(slots=True)
class Choice:
    """The packs of the closed domains. Bytes are those of blobs."""

    dead: list[PackUse] = field(default_factory=list)
    """Nothing in them is needed."""
    wasteful: list[PackUse] = field(default_factory=list)
    """Worth rewriting, most wasteful first."""
    live_bytes: int = 0
    unused_bytes: int = 0
    """Not needed, in packs that hold something needed."""


class Surveyor:
    """Looks at one repository for a prune. What `health` has read already is not read again."""

    def __init__(self, repo: Repository, options: PruneOptions, health: Health) -> None:
        self._repo = repo
        self._options = options
        self._health = health
        self.first_seen = FirstSeen(repo.memory, repo.clock)
        self.revived: list[AddSnap] = []
        """Snapshots that were published anew."""
        self._waiting: list[tuple[AddSnap, str]] = []
        """Those that could not be, and why."""

    def begin(self) -> list[IntegrityError]:
        """As `reread`; what was judged before counts on only if nobody has written since. Raises StoreError."""
        troubles = self.reread()
        if set(self._repo.history.heads) != self._health.heads:
            self._health.begin()
        return troubles

    def reread(self) -> list[IntegrityError]:
        """Read the whole history again; why it may not be relied on. Raises StoreError."""
        self._repo.reload(whole=True, stored=True)
        return list(history_troubles(self._repo))

    # -- what may be removed -------------------------------------------------------------------------------------------

    def allowed(self, removals: Collection[Ref], *, last: bool) -> tuple[list[Remove], list[IntegrityError]]:
        """The records that remove these snapshots, and what is refused: a volume's last whole one, unless `last`."""
        catalogue = self._repo.catalogue
        left = [snapshot for snapshot in catalogue.snapshots if snapshot.ref not in removals]
        flaws = self._health.flaws(left)
        suspicion = self._health.suspicion()
        if suspicion is not None:
            return [], [suspicion]
        whole = {snapshot.added.volume_id for snapshot in left if snapshot.ref not in flaws}
        going = [snapshot for snapshot in catalogue.snapshots if snapshot.ref in removals]
        plain = [snapshot.ref for snapshot in going if snapshot.added.volume_id in whole]
        emptied = {snapshot.added.volume_id for snapshot in going} - whole
        if last:
            final = [snapshot.ref for snapshot in going if snapshot.added.volume_id in emptied]
            return records_of(plain) + records_of([*final, *self._removed_of(emptied)], RemoveLast), []
        names = catalogue.shown_names()
        return records_of(plain), [_last_of(names[volume_id]) for volume_id in sorted(emptied)]

    def _removed_of(self, volumes: Collection[VolumeId]) -> list[Ref]:
        """What was removed before of volumes that are given up: REMOVE_LAST names it, too, so that none comes back."""
        return [
            ref
            for ref, removal in sorted(self._repo.catalogue.removed.items())
            if removal.added is not None and removal.added.volume_id in volumes and not removal.last
        ]

    # -- what is needed ------------------------------------------------------------------------------------------------

    def view(self, *, again: bool = False) -> tuple[View, Usage]:
        """Mark everything that is needed, and count every pack against it; valid until the next call.

        A volume that removals left without a whole snapshot first gets one back. With `again` nothing that was read
        before counts. Raises StoreError.
        """
        repo, health = self._repo, self._health
        if again:
            health.begin()
        flaws = self.secured()
        view = View(health.live)
        self._judge(view, flaws)
        self._hold(view)
        view.closed |= {CATALOGUE}
        repo.blobs.keep_complete(root for roots in view.roots.values() for root in roots)
        return view, health.usage()

    def secured(self) -> dict[Ref, Flaw]:
        """The flaws of all snapshots, once every volume that can have a whole one back has it."""
        repo, health = self._repo, self._health
        self._waiting.clear()
        flaws = health.flaws(repo.catalogue.snapshots)
        tried: set[Ref] = set()
        while not health.gone and self._revive(flaws, tried):
            repo.reload(whole=True, stored=True)
            flaws = health.flaws(repo.catalogue.snapshots)
        return flaws

    def _revive(self, flaws: Mapping[Ref, Flaw], tried: set[Ref]) -> bool:
        """Whether any volume without a whole snapshot got one back."""
        repo = self._repo
        whole = {one.added.volume_id for one in repo.catalogue.snapshots if one.ref not in flaws}
        before = len(self.revived)
        for rows in candidates(repo.catalogue, whole):
            for ref, added in rows:
                if ref in tried:
                    continue
                tried.add(ref)
                if self._health.trace(added) is None and self._came_back(ref, added):
                    break
        return len(self.revived) > before

    def _came_back(self, ref: Ref, added: AddSnap) -> bool:
        """Publish it anew. Where that fails nothing that it needs is deleted, and the next run tries again."""
        repo = self._repo
        try:
            revive(repo, ref, added)
        except (StoreError, IntegrityError) as error:
            repo.require_sound_history()
            require_alive(repo.store, error)
            self._waiting.append((added, error.message))
            # What can be had later must not give way to an older one now.
            return not isinstance(error, IntegrityError | ObjectNotFound)
        self.revived.append(added)
        return True

    def _judge(self, view: View, flaws: Mapping[Ref, Flaw]) -> None:
        """Which domains may be judged, and what is wrong with the snapshots that stay."""
        repo, names = self._repo, self._repo.catalogue.shown_names()
        # A node that could not be read once may open a moment later: what is below it was not marked all the same.
        view.closed = pack_domains(repo) - self._health.unread
        for snapshot in repo.catalogue.snapshots:
            added = snapshot.added
            view.roots.setdefault(added.domain_id, set()).add(added.root)
            flaw = flaws.get(snapshot.ref)
            if flaw is None or snapshot.given_up:
                continue
            error = damage(f"{names[added.volume_id]}@{snapshot.name}", flaw)
            view.damaged.append(error)
            if flaw.unreadable:
                view.closed.discard(added.domain_id)
                text = f"nothing is deleted where a snapshot cannot be read: {error.message}"
                view.troubles.append(IntegrityError(text, obj=error.obj, hint=error.hint))
        if self._health.unread and not view.troubles:
            text = "nothing is deleted where a manifest could not be read for a moment"
            view.troubles.append(IntegrityError(text, obj=repo.store.url, hint="run prune again"))
        suspicion = self._health.suspicion()
        if suspicion is not None:
            view.closed.clear()
            view.troubles.append(suspicion)

    def _hold(self, view: View) -> None:
        """What is needed besides the snapshots that stand and were not given up."""
        repo, health = self._repo, self._health
        for snapshot in repo.catalogue.snapshots:
            if snapshot.given_up:
                self._hold_lost(view, snapshot)
        for added, why in self._waiting:
            roots = Roots()
            roots.add_record(added)
            if health.hold(added.domain_id, roots):
                view.closed.discard(added.domain_id)
            view.roots.setdefault(added.domain_id, set()).add(added.root)
            text = f"{added.name}, removed before, is the last whole snapshot of its volume and cannot be brought back"
            view.troubles.append(IntegrityError(f"{text}: {why}", obj=added.name, hint="run prune again"))
        for domain_id, roots in removed_roots(repo.catalogue, self._delayed(view)).items():
            view.roots.setdefault(domain_id, set()).update(tree.root for tree in roots.trees)
            if health.hold(domain_id, roots):
                view.closed.discard(domain_id)
                text = "nothing is deleted where a snapshot cannot be read whose removal is too young"
                view.troubles.append(IntegrityError(text, obj=f"domain {domain_id.hex()[:8]}"))
        sessions = self.sessions()
        for domain_id, roots in session_roots(repo.catalogue, sessions).items():
            if health.hold(domain_id, roots):
                view.notes.append("what an unfinished run stored cannot be read and is not kept for it")
        for session in sessions:
            view.pinned |= set(session.packs)
        health.hold_ids(catalogue_ids(repo))

    def _hold_lost(self, view: View, snapshot: Snapshot) -> None:
        """What is left of a snapshot of which a part was given up; no more than that part may be out of reach."""
        domain_id = snapshot.added.domain_id
        unread = self._health.hold(domain_id, roots_of(snapshot))
        if not unread or snapshot.lost is None:
            return
        gaps = GapFinder(self._repo, domain_id).find(snapshot)
        ranges = lost_by(snapshot, gaps).ranges
        said = all(any(a <= start and end <= b for a, b in snapshot.lost.ranges) for start, end in ranges)
        if not said or not unread <= {gap.id for gap in gaps}:
            view.closed.discard(domain_id)
            text = f"more of {snapshot.name} cannot be read than was recorded as lost: nothing is deleted beside it"
            hint = "look with: lamella verify; mend with: lamella check --repair"
            view.troubles.append(IntegrityError(text, obj=snapshot.name, hint=hint))

    def sessions(self) -> list[OpenSession]:
        """Unfinished runs that still hold what they rely on."""
        found = self._repo.catalogue.sessions
        kept = [one for one in found if self.first_seen.age_ms("sessions", one.key) < SESSION_KEPT_MS]
        self.first_seen.save("sessions", [one.key for one in found])
        return kept

    def _delayed(self, view: View) -> list[Ref]:
        """Snapshots whose removal this host has not known for long enough."""
        delay, removed = self._options.remove_delay_ms, self._repo.catalogue.removed
        if not delay:
            return []
        young = [ref for ref in removed if self.first_seen.age_ms("removals", ref.encode()) < delay]
        self.first_seen.save("removals", [ref.encode() for ref in removed])
        if young:
            view.notes.append(f"{len(young)} removed snapshots are kept until their removal is old enough")
        return young

    def choose(self, view: View, usage: Usage, without: Collection[bytes] = (), *, twins: bool = True) -> Choice:
        """Which packs are to go, but none of `without`. With `twins` what a twin holds is not needed a second time."""
        choice = Choice()
        partly: list[tuple[float, PackUse]] = []
        for use in usage.packs():
            if use.pack in without:
                continue
            needed = use.needed if twins else use.held
            if use.domain_id not in view.closed or use.pack in view.pinned:
                choice.live_bytes += needed
            elif not use.held:
                choice.dead.append(use)
            else:
                choice.live_bytes += needed
                choice.unused_bytes += use.blobs - needed
                if needed < use.blobs:
                    partly.append((needed / use.blobs, use if twins else use._replace(needed=needed, twins=())))
        choice.dead, kept = self._old_enough(view, choice.dead, [use for _, use in partly])
        partly = [(share, use) for share, use in partly if use.pack not in kept]
        partly.sort(key=lambda pair: (pair[0], pair[1].pack))
        unused = choice.unused_bytes
        for share, use in partly:
            enough = unused * 100 <= self._options.max_unused * choice.live_bytes
            if share * 100 >= self._options.repack_below and enough:
                break
            choice.wasteful.append(use)
            unused -= use.blobs - use.needed
        return choice

    def _old_enough(
        self, view: View, dead: list[PackUse], partly: list[PackUse]
    ) -> tuple[list[PackUse], Collection[bytes]]:
        """The dead packs that may go, and all that must stay: what an unexplained object may have been a commit of.

        Such an object delays deletion, and never stops it: of each pack by 30 days from when it was first unneeded.
        """
        unneeded = [use.pack for use in (*dead, *partly)] if self._repo.history.unexplained else []
        young = {pack for pack in unneeded if self.first_seen.age_ms("unneeded", pack) < UNEXPLAINED_MS}
        self.first_seen.save("unneeded", unneeded)
        if young:
            text = f"{len(young)} packs stay for 30 days: an object in w/ may have been a commit that needs them"
            view.notes.append(text)
        return [use for use in dead if use.pack not in young], young


def batches(packs: Collection[PackUse], most_bytes: int) -> Iterator[list[PackUse]]:
    """Packs in their order, so many at once that at most `most_bytes` of them are needed."""
    batch: list[PackUse] = []
    size = 0
    for use in packs:
        if batch and size + use.held > most_bytes:
            yield batch
            batch, size = [], 0
        batch.append(use)
        size += use.held
    if batch:
        yield batch


def _last_of(name: str) -> IntegrityError:
    text = f"nothing of {name} is removed: no whole snapshot of it would be left"
    return IntegrityError(text, obj=name, hint="look with: lamella verify; add --yes-last to remove it all the same")
