"""The closed view: what must be true before anything may be deleted (FORMAT 8).

Anything that cannot be read may still be needed: below a commit that does not open, a missing part of a chain, a node
that cannot be read. History concerns everything; a node only its own domain.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from lamella.base.clock import Clock
from lamella.base.errors import IntegrityError, RolledBack
from lamella.base.ids import ChunkId, DomainId
from lamella.format.node import Shape
from lamella.format.records import NO_REF, AddSnap, Checkpoint, Ref
from lamella.history.catalogue import Catalogue
from lamella.history.open_sessions import OpenSession
from lamella.memory.host import HostMemory
from lamella.operations.prune.options import PruneResult
from lamella.operations.shared.marking import LiveIds, Roots
from lamella.packs.tree import Tree
from lamella.repository.repository import Repository

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
    """Why nothing is deleted in a part of the repository."""
    damaged: list[IntegrityError] = field(default_factory=list)
    """Snapshots that stay and are not whole, unless a LOST that counts says so."""
    notes: list[str] = field(default_factory=list)

    def report_to(self, result: PruneResult) -> None:
        """Add what was seen to the result of a prune, each line once."""
        result.blocked += [one for one in self.troubles if _is_new(one, result.blocked)]
        result.damaged += [one for one in self.damaged if _is_new(one, result.damaged)]
        result.notes += [one for one in self.notes if one not in result.notes]


def _is_new(error: IntegrityError, known: Collection[IntegrityError]) -> bool:
    return all((error.message, error.obj) != (one.message, one.obj) for one in known)


def pack_domains(repo: Repository) -> set[DomainId]:
    """Every domain that has a pack whose head opened."""
    with repo.cache.lock:
        query = "SELECT DISTINCT domain FROM packs WHERE trouble IS NULL"
        return {DomainId(domain) for (domain,) in repo.cache.connection.execute(query).fetchall()}


def removed_roots(catalogue: Catalogue, keep_removed: Collection[Ref]) -> dict[DomainId, Roots]:
    """The roots of snapshots whose removal does not count yet."""
    roots: dict[DomainId, Roots] = {}
    for ref in keep_removed:
        removal = catalogue.removed.get(ref)
        if removal is not None and removal.added is not None:
            roots.setdefault(removal.added.domain_id, Roots()).add_record(removal.added)
    return roots


def session_roots(catalogue: Catalogue, sessions: Collection[OpenSession]) -> dict[DomainId, Roots]:
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


def catalogue_ids(repo: Repository) -> Iterator[ChunkId]:
    """The segments of every checkpoint of every chain, and of the audited ones before its beginning."""
    for chain in repo.history.chains.values():
        carried = [commit.checkpoint for commit in chain.commits]
        for checkpoint in (*carried, chain.carried, *repo.log.audited_checkpoints(chain.writer)):
            if isinstance(checkpoint, Checkpoint):
                yield from (place.id for place in checkpoint.segments)
