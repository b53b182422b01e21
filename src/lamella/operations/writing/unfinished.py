"""What earlier runs of this host left unfinished that concerns the volumes of this one (FORMAT 8, SESSION).

The lock of a source is held from a run's beginning to its end. So whoever holds the lock of one of a session's volumes
knows that the run which wrote it is over.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field

from lamella.base.ids import NO_CHUNK, ChunkId, DomainId, VolumeId
from lamella.format.node import Shape
from lamella.history.open_sessions import OpenSession
from lamella.memory.resume import ResumeMemory, ResumePoint
from lamella.operations.shared.completeness import tree_is_complete
from lamella.packs.tree import Tree
from lamella.repository.repository import Repository
from lamella.sources.base import Source


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The session a run writes under, and the sessions whose place it takes; by default a session of its own."""

    session_id: bytes = field(default_factory=lambda: os.urandom(16))
    continued: bool = False
    """A session of that id is open: what it names need not be named again."""
    earlier: tuple[OpenSession, ...] = ()
    """Whose packs are pinned on: the continued session, and all others with a volume of this run."""
    closing: tuple[bytes, ...] = ()
    """Ids of sessions that pin nothing any more once this run is published."""


def unfinished(repo: Repository, volumes: Collection[VolumeId]) -> Unfinished:
    """What to go on with, for a run over `volumes`, whose sources' locks are held."""
    published = _last_published(repo)
    closing: list[OpenSession] = []
    earlier: list[OpenSession] = []
    for session in repo.catalogue.sessions:
        if session.writer != repo.own_writer:
            continue
        left = {row.volume_id for row in session.volumes if published.get(row.volume_id, 0) <= session.seq}
        if not left or left <= set(volumes):
            closing.append(session)
        if left & set(volumes):
            earlier.append(session)
    continued = next((session for session in reversed(closing) if session in earlier), None)
    others = tuple(session.session_id for session in closing if session is not continued)
    if continued is None:
        return Unfinished(earlier=tuple(earlier), closing=others)
    return Unfinished(continued.session_id, True, tuple(earlier), others)


def _last_published(repo: Repository) -> dict[VolumeId, int]:
    """The number of this host's last commit with a snapshot of each volume."""
    found: dict[VolumeId, int] = {}
    for snapshot in repo.catalogue.snapshots:
        if snapshot.ref.writer == repo.own_writer:
            volume_id = snapshot.added.volume_id
            found[volume_id] = max(found.get(volume_id, 0), snapshot.ref.seq)
    return found


def resume_point(
    repo: Repository, source: Source, volume_id: VolumeId, domain_id: DomainId, base_root: ChunkId = NO_CHUNK
) -> ResumePoint | None:
    """How far a broken run came whose moment this host kept; None if there is none that agrees in everything.

    Raises StoreError.
    """
    if not source.tracks:
        return None
    named = {
        (session.session_id, *partial[2:])
        for session in repo.catalogue.sessions
        for partial in session.partial_roots
        if session.writer == repo.own_writer and partial[:2] == (volume_id, domain_id)
        # What is condemned is not relied on, also if it was one's own.
        if not repo.blobs.condemned.intersection(session.packs)
    }
    found = [
        point
        for point in ResumeMemory(repo.memory, repo.keys).points(volume_id)
        if (point.identity, point.driver, point.base_root) == (source.identity, source.driver, base_root)
        and (point.session_id, point.root, point.size, point.chunk_log2, point.done) in named
    ]
    found.sort(key=lambda point: point.done, reverse=True)
    return next((one for one in found if tree_is_complete(repo, domain_id, partial_tree(volume_id, one))), None)


def partial_tree(volume_id: VolumeId, point: ResumePoint) -> Tree:
    """The tree of a resume point."""
    return Tree(Shape(volume_id, point.size, point.chunk_log2), point.root)
