"""The gaps below a snapshot's root: chunks, whole parts of the manifest, parts of documents."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lamella.base.errors import IntegrityError, StoreUnavailable, UnknownFormat
from lamella.base.ids import ChunkId, DomainId
from lamella.format.container import Kind
from lamella.format.lost import Lost, Range
from lamella.format.node import FAN_OUT, Shape, SlotValue
from lamella.history.catalogue import Snapshot
from lamella.operations.shared.selection import Selected
from lamella.packs.deltas import present
from lamella.repository.repository import Repository


class MissingBlob(NamedTuple):
    """A blob that cannot be had, and the chunks `[first, end)` it stands for; `end` may lie behind the volume's end.

    A node has its `level`; a chunk has level -1. For a part of a document `document` is its name.
    """

    kind: Kind
    id: ChunkId
    level: int
    first: int
    end: int
    document: str = ""


class GapFinder:
    """Looks for gaps in the snapshots of one domain; it looks once at what snapshots share."""

    def __init__(self, repo: Repository, domain_id: DomainId) -> None:
        self._repo = repo
        self._domain_id = domain_id
        self._reader = repo.tree_reader(domain_id)
        self._known: dict[ChunkId, tuple[MissingBlob, ...]] = {}

    def find(self, snapshot: Snapshot) -> list[MissingBlob]:
        """All gaps of a snapshot, in order. Raises StoreUnavailable."""
        tree = self._repo.tree(snapshot)
        gaps = list(self._below(tree.shape, tree.root, tree.shape.depth - 1, 0))
        parts = [(document.name, part) for document in snapshot.added.documents for part in document.parts]
        lacking = [(name, part) for name, part in parts if not self._is_had(Kind.DOCUMENT, part, None)]
        return gaps + [MissingBlob(Kind.DOCUMENT, part, -1, 0, 0, name) for name, part in lacking]

    def _below(self, shape: Shape, id_: ChunkId, level: int, first: int) -> tuple[MissingBlob, ...]:
        if id_ in self._known:
            return self._known[id_]
        try:
            node = self._reader.node(shape, id_, level, first)
        except StoreUnavailable:
            raise
        except (IntegrityError, UnknownFormat):
            kind = Kind.INNER if level else Kind.LEAF
            found: tuple[MissingBlob, ...] = (MissingBlob(kind, id_, level, first, first + FAN_OUT ** (level + 1)),)
        else:
            found = tuple(self._children(shape, node.slots, level, first))
        self._known[id_] = found
        return found

    def _children(self, shape: Shape, slots: Iterable[SlotValue], level: int, first: int) -> Iterable[MissingBlob]:
        step = FAN_OUT**level
        below = [(first + place * step, slot) for place, slot in enumerate(slots) if isinstance(slot, bytes)]
        if level:
            for begin, id_ in below:
                yield from self._below(shape, id_, level - 1, begin)
            return
        wanted = [(id_, shape.chunk_length(chunk)) for chunk, id_ in below]
        there = present(self._repo.blobs, self._domain_id, wanted)
        for (chunk, id_), found in zip(below, there, strict=True):
            if not found and not self._is_had(Kind.CHUNK, id_, shape.chunk_length(chunk)):
                yield MissingBlob(Kind.CHUNK, id_, -1, chunk, chunk + 1)

    def _is_had(self, kind: Kind, id_: ChunkId, length: int | None) -> bool:
        try:
            self._repo.contents.get(self._domain_id, kind, id_, length)
        except StoreUnavailable:
            raise
        except IntegrityError:
            return False
        return True


def find_gaps(repo: Repository, selected: Iterable[Selected]) -> list[tuple[Selected, list[MissingBlob]]]:
    """The gaps of each of these snapshots, those without any included. Raises StoreUnavailable."""
    finders: dict[DomainId, GapFinder] = {}
    found: list[tuple[Selected, list[MissingBlob]]] = []
    for one in selected:
        domain_id = one.snapshot.added.domain_id
        finder = finders.setdefault(domain_id, GapFinder(repo, domain_id))
        found.append((one, finder.find(one.snapshot)))
    return found


def lost_by(snapshot: Snapshot, gaps: Iterable[MissingBlob]) -> Lost:
    """The loss of a snapshot by its gaps, as it is recorded."""
    added = snapshot.added
    shape = Shape(added.volume_id, added.size, added.chunk_log2)
    ranges: list[Range] = []
    documents: set[str] = set()
    for gap in gaps:
        if gap.document:
            documents.add(gap.document)
        elif shape.size:
            end = min(gap.end << shape.chunk_log2, shape.size)
            ranges.append((gap.first << shape.chunk_log2, end))
    return Lost.of(snapshot.ref, ranges, documents)
