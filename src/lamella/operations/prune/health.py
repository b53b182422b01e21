"""Which snapshots are whole, by what is read in this run (docs/decisions/0036).

One walk serves the judging and the mark that deletion rests on: the ids of all that was walked are needed. Damage is
traced to snapshots only where the walk or the count met any.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import NamedTuple, Self

from lamella.base.errors import IntegrityError, ObjectCold, RolledBack, UnknownFormat
from lamella.base.events import Progress, Reporter, silent
from lamella.base.ids import ChunkId, DomainId
from lamella.base.names import pack_name
from lamella.base.trust import Opened
from lamella.format import node
from lamella.format.commit import Head
from lamella.format.container import Kind
from lamella.format.lost import Address
from lamella.format.node import FAN_OUT, Shape
from lamella.format.records import AddSnap, Ref
from lamella.history.catalogue import Series, Snapshot
from lamella.memory.first_seen import FirstSeen
from lamella.operations.shared.marking import LiveWalk, Roots, roots_of
from lamella.operations.shared.rereading import reread
from lamella.packs import census
from lamella.packs.usage import LiveIds, Usage
from lamella.repository.repository import Repository

REREAD_BYTES = 1 << 30
"""Blobs at bad addresses that one run reads again; further ones count as bad."""
GONE_PERCENT = 1
"""Where more of the needed ids are gone, more is wrong than a few packs: nothing is deleted."""
_IDS_AT_ONCE = 256
_WHOLE = "whole claims"


class Flaw(NamedTuple):
    """Why a snapshot is not whole. `unreadable`: what lies below a node is not known, so nothing may be deleted.

    `never`: somebody claims it in others' volume, and it was never whole here. Junk looks the same: it delays deletion,
    and stops nothing.
    """

    text: str
    unreadable: bool = False
    never: bool = False


class Health:
    """Judges the snapshots of one repository, with its whole history as the store has it.

    A context manager: leaving it gives the temporary file of the ids back.
    """

    def __init__(self, repo: Repository, reporter: Reporter = silent) -> None:
        self.repo = repo
        self.reporter = reporter
        self._held = ExitStack()
        self._left = REREAD_BYTES
        self._asked: set[Address] = set()
        self._first_seen = FirstSeen(repo.memory, repo.clock)
        self.begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def begin(self) -> None:
        """Judge again: objects that were read before may have changed. Raises StoreError."""
        self._held.close()
        self.heads = set(self.repo.history.heads)
        """The history that was judged."""
        cache = self.repo.cache.path
        self.live = self._held.enter_context(LiveIds(None if cache is None else cache.parent))
        """The ids of everything that was walked."""
        self._walks: dict[tuple[DomainId, bool], LiveWalk] = {}
        """Claims that were never whole here are walked apart: they may name others' nodes in wrong places."""
        self._walked: set[Ref] = set()
        self._usage: Usage | None = None
        self._counted = 0
        self._mixed = False
        self.unread: set[DomainId] = set()
        """Domains in which a node of a judged snapshot could not be read: the blobs below that node were not kept."""
        self._tracers: dict[DomainId, Tracer] = {}
        self.gone = False
        """Of the judged snapshots more is gone than a few packs hold: nothing may be deleted."""
        self.repo.refresh_map(again=not self.repo.exclusive)
        if unknown := self.repo.blobs.unknown_cold():
            text = f"nobody knows what {len(unknown)} packs hold before they are thawed: nothing is deleted"
            hint = "prune on the host that wrote them, or have them thawed"
            raise ObjectCold(text, obj=pack_name(unknown[0]), hint=hint)
        self._mapped = self._others()
        """The heads of other writers when packs were listed."""

    def _others(self) -> set[Head]:
        own = self.repo.own_writer
        return {head for head in self.repo.history.heads if head.writer != own}

    def _catch_up(self) -> None:
        """Where no lock keeps others out: packs of commits that were read since the map was made. Raises StoreError.

        Without them a snapshot that another host has just published would pass for damaged.
        """
        others = self._others()
        if others != self._mapped and not self.repo.exclusive:
            self.repo.refresh_map(again=True)
            self._mapped, self._usage = others, None
            self._tracers.clear()

    def suspicion(self) -> RolledBack | None:
        """Why nothing may be deleted, whatever the rules say, as far as snapshots were judged; None: it may."""
        if not self.gone:
            return None
        text = f"more than {GONE_PERCENT} % of the needed data is gone, which no prune causes"
        hint = "look with: lamella verify; mend with: lamella repair"
        return RolledBack(text, obj=self.repo.store.url, hint=hint)

    # -- judging -------------------------------------------------------------------------------------------------------

    def flaws(self, snapshots: Iterable[Snapshot]) -> dict[Ref, Flaw]:
        """The snapshots among these that are not whole, and why. All are walked, and needed from then on.

        Raises StoreError.
        """
        self._catch_up()
        # The oldest first: what several share lies together in the packs of the first, so fewer reads fetch it.
        rows = sorted(snapshots, key=lambda one: (one.added.domain_id, one.added.time_ms, one.ref))
        never = {snapshot.ref for snapshot in rows if self._was_never_whole(snapshot)}
        for snapshot in rows:
            if not (snapshot.given_up or snapshot.ref in never):
                self._walk(snapshot)
        usage = self.usage()
        if not self._mixed:  # what is given up, unfinished or only claimed may lack anything
            self.gone = usage.absent * 100 > usage.needed * GONE_PERCENT
        for snapshot in rows:
            if snapshot.ref in never - self._walked and not snapshot.given_up:
                self._walked.add(snapshot.ref)
                self._mixed = True
                self._keep(snapshot.added.domain_id, roots_of(snapshot.added), never=True)
        usage = self.usage()
        clean = not (usage.absent or usage.suspected or any(walk.unreadable for walk in self._walks.values()))
        found: dict[Ref, Flaw] = {}
        for snapshot in rows:
            flaw = _said(snapshot)
            if not clean and not snapshot.given_up:
                traced = self.trace(snapshot.added)
                flaw = traced if traced is not None and (flaw is None or traced.unreadable) else flaw
            if flaw is not None:
                found[snapshot.ref] = flaw._replace(never=snapshot.ref in never)
        self._remember_whole(never - found.keys())
        return found

    def _was_never_whole(self, snapshot: Snapshot) -> bool:
        """Whether it is another host's claim that this host has not found whole so far."""
        return not snapshot.counts and snapshot.ref.encode().hex() not in self._first_seen.rows.get(_WHOLE, {})

    def _remember_whole(self, fresh: Collection[Ref]) -> None:
        """From now on blobs that these claims need are missed where they are gone."""
        if fresh:
            claims = [one for one in self.repo.catalogue.snapshots if not one.counts]
            names = [one.ref.encode() for one in claims if one.ref in fresh or not self._was_never_whole(one)]
            with self.repo.memory.may_fail():
                self._first_seen.younger(_WHOLE, names, 0)

    def whole_series(self, snapshots: Iterable[Snapshot]) -> set[Series]:
        """The series of which one of these snapshots is whole. Raises StoreError."""
        rows = list(snapshots)
        flaws = self.flaws(rows)
        return {one.series for one in rows if one.ref not in flaws}

    def trace(self, added: AddSnap) -> Flaw | None:
        """The flaw of a snapshot's tree and documents; the blobs it needs are not kept. Raises StoreError."""
        if added.domain_id not in self._tracers:
            self._tracers[added.domain_id] = Tracer(self.repo, added.domain_id)
        return self._tracers[added.domain_id].flaw(added)

    def _walk(self, snapshot: Snapshot) -> None:
        if snapshot.ref in self._walked:
            return
        self._walked.add(snapshot.ref)
        if self._keep(snapshot.added.domain_id, roots_of(snapshot.added)):
            self.unread.add(snapshot.added.domain_id)

    # -- the mark ------------------------------------------------------------------------------------------------------

    def hold(self, domain_id: DomainId, roots: Roots) -> set[ChunkId]:
        """Keep everything below these roots that can be read; returns the nodes that cannot. Raises StoreError."""
        self._mixed = True
        return self._keep(domain_id, roots)

    def _keep(self, domain_id: DomainId, roots: Roots, *, never: bool = False) -> set[ChunkId]:
        walk = self._walks.setdefault((domain_id, never), LiveWalk(self.repo.contents, domain_id, lenient=True))
        before = set(walk.unreadable)
        for _, ids in walk.referenced(roots):
            self.live.add(ids)
            self.reporter(Progress("mark", "", self.live.added, 0))
        return walk.unreadable - before

    def hold_ids(self, ids: Iterable[ChunkId]) -> None:
        """Keep these blobs."""
        self.live.add(ids)

    def usage(self) -> Usage:
        """Count every pack against the blobs that are needed by now. Raises StoreError."""
        if self._usage is None or self._counted != self.live.added:
            self._read_again()
            self._usage = Usage(self.repo.cache, self.live)
            hinted = self._usage.hinted()
            if hinted and self.repo.blobs.open_hinted(hinted):
                # A row of an index segment alone proves nothing: the head decides.
                self._usage = Usage(self.repo.cache, self.live)
            self._counted = self.live.added
            self._tracers.clear()
        return self._usage

    def _read_again(self) -> None:
        """Read bad addresses again, as far as they are needed: only a successful reading clears an address.

        First what nobody here has read since, and of that all that the budget does not reach counts as bad.
        """
        repo = self.repo
        local = {
            Address(pack, blob.kind, blob.id) for pack in repo.suspects.packs() for blob in repo.suspects.blobs(pack)
        }
        for known, cleared in ((local, False), (set(repo.catalogue.bad) - local, True)):
            due = self._due(known - self._asked)
            self._asked |= due
            found = reread(repo, due, self._left) if due else None
            if found is not None:
                self._left -= min(self._left, found.read_bytes)
                self._distrust(() if cleared else found.unread)

    def _due(self, known: Collection[Address]) -> set[Address]:
        """The addresses of needed blobs, and of heads of packs that are there."""
        needed = self.live.among(one.id for one in known if one.kind != Kind.DIRECTORY)
        heads = {one for one in known if one.kind == Kind.DIRECTORY}
        there = census.known(self.repo.blobs, (one.pack for one in heads))
        return {one for one in known if one.id in needed} | {one for one in heads if one.pack in there}

    def _distrust(self, addresses: Collection[Address]) -> None:
        """Addresses that were not read again count as bad."""
        for one in addresses:
            blobs: list[tuple[Kind, ChunkId]] = [(one.kind, one.id)]
            if one.kind == Kind.DIRECTORY:
                directory = self.repo.blobs.directory(one.pack)
                blobs = [] if directory is None else [(blob.kind, blob.id) for blob in directory.blobs]
            self.repo.suspects.mark(one.pack, blobs)


def _said(snapshot: Snapshot) -> Flaw | None:
    """The flaw that records alone show."""
    if snapshot.given_up:
        return Flaw("parts of it are lost")
    if not snapshot.added.usable:
        return Flaw("it needs a newer version of lamella")
    return Flaw("its id was published twice") if snapshot.conflict else None


def damage(name: str, flaw: Flaw) -> IntegrityError:
    """A flaw as it is reported."""
    hint = "mend it with: lamella repair; or delete that snapshot"
    return IntegrityError(f"{name} is not whole: {flaw.text}", obj=name, hint=hint)


class Tracer:
    """Tells which snapshots of one domain damage belongs to, with the map as it is now.

    Each node is looked at once, whatever number of trees share it. No data is read: a chunk is there if the map has a
    place for it, which bad addresses are taken out of.
    """

    def __init__(self, repo: Repository, domain_id: DomainId) -> None:
        self._repo = repo
        self._domain_id = domain_id
        self._known: dict[tuple[ChunkId, int, int], Flaw | None] = {}

    def flaw(self, added: AddSnap) -> Flaw | None:
        """The flaw of a snapshot: an unreadable node before anything else. Raises StoreError."""
        shape = Shape(added.volume_id, added.size, added.chunk_log2)
        found = next(self._below(shape, shape.depth - 1, [(added.root, 0)]))
        if found is not None and found.unreadable:
            return found
        for document in added.documents:
            if self._absent(document.parts):
                return found or Flaw(f"a part of document {document.name} is unavailable")
        return found

    def _below(self, shape: Shape, level: int, places: Sequence[tuple[ChunkId, int]]) -> Iterator[Flaw | None]:
        """The flaw of each of these subtrees, in order."""
        fresh = [(id_, first) for id_, first in places if (id_, level, first) not in self._known]
        contents = self.opened(Kind.INNER if level else Kind.LEAF, [id_ for id_, _ in fresh])
        for id_, first in fresh:
            self._known[id_, level, first] = self._one(shape, level, first, contents.get(id_))
        return (self._known[id_, level, first] for id_, first in places)

    def _one(self, shape: Shape, level: int, first: int, content: Opened | str | None) -> Flaw | None:
        if not isinstance(content, bytes):
            return Flaw(f"the manifest from chunk {first} on cannot be read: {content}", unreadable=True)
        try:
            slots = node.decode(content, shape, level, first).slots
        except (IntegrityError, UnknownFormat) as error:
            return Flaw(f"the manifest from chunk {first} on cannot be read: {error.message}", unreadable=True)
        step = FAN_OUT**level
        below = [(slot, first + at * step) for at, slot in enumerate(slots) if isinstance(slot, bytes)]
        if level:
            flaws = [flaw for flaw in self._below(shape, level - 1, below) if flaw is not None]
            return next((flaw for flaw in flaws if flaw.unreadable), flaws[0] if flaws else None)
        from lamella.packs.deltas import present  # where something is amiss

        wanted = [(id_, shape.chunk_length(chunk)) for id_, chunk in below]
        there = present(self._repo.blobs, self._domain_id, wanted)
        chunk = next((chunk for (_, chunk), had in zip(below, there, strict=True) if not had), None)
        if chunk is None:
            return None
        return Flaw(f"chunk {chunk} (from byte {chunk << shape.chunk_log2} on) is unavailable")

    def opened(self, kind: Kind, ids: Sequence[ChunkId]) -> dict[ChunkId, Opened | str]:
        """The nodes, or why they cannot be read. Raises StoreError."""
        contents = self._repo.contents
        found: dict[ChunkId, Opened | str] = {}
        try:
            found |= contents.get_many(self._domain_id, kind, [(id_, None) for id_ in ids])
        except IntegrityError:
            for id_ in ids:
                try:
                    found[id_] = contents.get(self._domain_id, kind, id_)
                except IntegrityError as error:
                    found[id_] = error.message
        return found

    def _absent(self, parts: Sequence[ChunkId]) -> set[ChunkId]:
        """The parts of documents that lie nowhere in this domain."""
        absent: set[ChunkId] = set()
        for start in range(0, len(parts), _IDS_AT_ONCE):
            some = parts[start : start + _IDS_AT_ONCE]
            places = self._repo.blobs.find_many(Kind.DOCUMENT, some)
            for id_ in some:
                if not any(place.domain_id == self._domain_id for place in places.get(id_, [])):
                    absent.add(id_)
        return absent
