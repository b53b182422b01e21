"""The closed view: what must be true before anything may be deleted (FORMAT 8).

What is not known cannot be needed by nobody: a commit that does not open, a chain that lacks a part, a tree that cannot
be read, a chunk that lies nowhere. History concerns everything; a tree or chunk only its own domain.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from lamella.clock import Clock
from lamella.errors import IntegrityError, LamellaError, RolledBack, UnknownFormat
from lamella.events import Progress, Reporter
from lamella.format.node import Shape
from lamella.format.records import NO_REF, AddSnap, Checkpoint, Ref
from lamella.ids import CATALOGUE, ChunkId, DomainId
from lamella.repository.catalogue import Catalogue
from lamella.repository.host import HostMemory
from lamella.repository.marking import LiveIds, Roots, Walk, roots_by_domain
from lamella.repository.open_sessions import OpenSession
from lamella.repository.repository import Repository
from lamella.repository.tree import Tree

SESSION_KEPT_MS = 7 * 86_400_000
"""How long after its last commit an unfinished run still holds what it relies on."""
_FIRST_SEEN = "first_seen.json"


class FirstSeen:
    """When this host first saw something: the only clock that nobody else can set."""

    def __init__(self, memory: HostMemory, clock: Clock) -> None:
        self._memory = memory
        self._now = clock()
        rows = memory.read(_FIRST_SEEN)
        self._rows: dict[str, dict[str, int]] = {kind: _numbers(rows.get(kind)) for kind in rows}

    def age_ms(self, kind: str, name: bytes) -> int:
        """Milliseconds since the first sight, which may be now. A clock that went back starts again."""
        rows = self._rows.setdefault(kind, {})
        first = rows.setdefault(name.hex(), self._now)
        if first > self._now:
            rows[name.hex()] = first = self._now
        return self._now - first

    def save(self, kind: str, still_there: Collection[bytes]) -> None:
        """Keep the sightings of these, forget the others. Raises RepositoryError."""
        wanted = {name.hex() for name in still_there}
        self._rows[kind] = {name: when for name, when in self._rows.get(kind, {}).items() if name in wanted}
        self._memory.write(_FIRST_SEEN, dict(self._rows))


def _numbers(rows: Any) -> dict[str, int]:  # noqa: ANN401 - as it was read
    if not isinstance(rows, dict):
        return {}
    return {name: when for name, when in rows.items() if isinstance(name, str) and isinstance(when, int)}


def history_troubles(repo: Repository) -> Iterator[IntegrityError]:
    """Why the history as a whole may not be relied on."""
    for problem in repo.problems:
        yield RolledBack(problem.message, obj=repo.store.url, hint=problem.remedy)
    for text in repo.catalogue.unread.values():
        hint = "upgrade lamella: what that writer says from there on is not known to this version"
        yield IntegrityError(text, obj=repo.store.url, hint=hint)
    for text in repo.catalogue.malformed:
        yield IntegrityError(f"a record cannot be read, and nobody knows what it needs: {text}", obj="w/")


@dataclass(slots=True)
class View:
    """What is needed, and where that is known completely."""

    live: LiveIds
    closed: set[DomainId] = field(default_factory=set)
    """Domains whose packs may be judged."""
    roots: dict[DomainId, set[ChunkId]] = field(default_factory=dict)
    """The roots of snapshots, for tree notes."""
    pinned: set[bytes] = field(default_factory=set)
    """Packs of open sessions."""
    troubles: list[IntegrityError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def mark(
    repo: Repository, view: View, sessions: Collection[OpenSession], keep_removed: Collection[Ref], reporter: Reporter
) -> None:
    """Walk everything that is needed and enter it into `view`.

    A domain is closed if all its trees were read; of domains that nothing names, nothing is needed.
    """
    roots = _all_roots(repo.catalogue, keep_removed)
    for domain_id, some in roots.items():
        view.roots[domain_id] = {tree.root for tree in some.trees}
    held = _session_roots(repo.catalogue, sessions)
    for domain_id in {*roots, *held}:
        walk = Walk(repo.contents, domain_id)
        try:
            for _, ids in walk.referenced(roots.get(domain_id, Roots())):
                view.live.add(ids)
                reporter(Progress("mark", "", view.live.added, 0))
            view.closed.add(domain_id)
        except (IntegrityError, UnknownFormat) as error:
            text = f"nothing is deleted where a snapshot cannot be read: {error.message}"
            hint = "mend it with: lamella check --repair; or delete that snapshot"
            view.troubles.append(IntegrityError(text, obj=error.obj, hint=hint))
        _mark_sessions(view, walk, held.get(domain_id, Roots()))
    for session in sessions:
        view.pinned |= set(session.packs)
    view.closed |= {domain for _, domain in _pack_domains(repo)} - set(roots)
    _mark_catalogue(repo, view)


def _pack_domains(repo: Repository) -> list[tuple[int, DomainId]]:
    with repo.cache.lock:
        query = "SELECT min(number), domain FROM packs WHERE trouble IS NULL GROUP BY domain"
        return [(number, DomainId(domain)) for number, domain in repo.cache.connection.execute(query).fetchall()]


def _all_roots(catalogue: Catalogue, keep_removed: Collection[Ref]) -> dict[DomainId, Roots]:
    roots = roots_by_domain(catalogue)
    for ref in keep_removed:
        removal = catalogue.removed.get(ref)
        if removal is not None and removal.added is not None:
            roots.setdefault(removal.added.domain_id, Roots()).add_record(removal.added)
    return roots


def _session_roots(catalogue: Catalogue, sessions: Collection[OpenSession]) -> dict[DomainId, Roots]:
    """What unfinished runs share from, and what they stored."""
    known: dict[Ref, AddSnap] = {shot.ref: shot.added for shot in catalogue.snapshots}
    known |= {ref: removal.added for ref, removal in catalogue.removed.items() if removal.added is not None}
    roots: dict[DomainId, Roots] = {}
    for session in sessions:
        for volume in session.volumes:
            added = known.get(volume.base) if volume.base != NO_REF else None
            if added is not None:
                roots.setdefault(added.domain_id, Roots()).add_record(added)
        for partial in session.partial_roots:
            shape = Shape(partial.volume_id, partial.size, partial.chunk_log2)
            roots.setdefault(partial.domain_id, Roots()).trees.append(Tree(shape, partial.root))
    return roots


def _mark_sessions(view: View, walk: Walk, held: Roots) -> None:
    """What cannot be read there cannot be shared from either: it holds nothing up."""
    for tree in held.trees:
        try:
            for _, ids in walk.referenced(Roots([tree])):
                view.live.add(ids)
        except (LamellaError, ValueError) as error:
            if not isinstance(error, IntegrityError | UnknownFormat | ValueError):
                raise
            view.notes.append(f"what an unfinished run stored cannot be read and is not kept for it: {error}")
    view.live.add(held.documents)


def _mark_catalogue(repo: Repository, view: View) -> None:
    """The segments of every checkpoint of every chain, and of the audited ones before its beginning."""
    for chain in repo.history.chains.values():
        carried = [commit.checkpoint for commit in chain.commits]
        for checkpoint in (*carried, chain.carried, *repo.audited_checkpoints(chain.writer)):
            if isinstance(checkpoint, Checkpoint):
                view.live.add(place.id for place in checkpoint.segments)
    view.closed.add(CATALOGUE)


def lost_chunks(repo: Repository, view: View, missing: Collection[bytes]) -> None:
    """Needed ids lie nowhere: find out whose they are, and open those domains again.

    What a repair said to be lost (LOST) holds nothing up: nobody expects it back.
    """
    wanted = set(missing)
    known_lost = {snapshot.ref for snapshot in repo.catalogue.snapshots if snapshot.lost is not None}
    for domain_id, roots in roots_by_domain(repo.catalogue, known_lost).items():
        walk = Walk(repo.contents, domain_id)
        if domain_id in view.closed and any(wanted & set(ids) for _, ids in walk.referenced(roots)):
            view.closed.discard(domain_id)
            text = "chunks of a snapshot are in no pack that is listed: nothing is deleted beside them"
            hint = "look with: lamella verify; mend with: lamella check --repair"
            view.troubles.append(IntegrityError(text, obj=f"domain {domain_id.hex()[:8]}", hint=hint))
