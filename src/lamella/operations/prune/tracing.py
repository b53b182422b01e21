"""Which snapshots damage belongs to: each node of a domain is looked at once, whatever number of trees share it.

No data is read: a chunk is there if the map has a place for it, which bad addresses are taken out of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.ids import ChunkId, DomainId
from lamella.base.trust import Opened
from lamella.format import node
from lamella.format.container import Kind
from lamella.format.node import FAN_OUT, Shape
from lamella.format.records import AddSnap
from lamella.repository.repository import Repository

_IDS_AT_ONCE = 256


class Flaw(NamedTuple):
    """Why a snapshot is not whole. `unreadable`: what lies below a node is not known, so nothing may be deleted."""

    text: str
    unreadable: bool = False


class Tracer:
    """Looks for flaws in the snapshots of one domain, with the map as it is now."""

    def __init__(self, repo: Repository, domain_id: DomainId) -> None:
        self._repo = repo
        self._domain_id = domain_id
        self._known: dict[tuple[ChunkId, int, int], Flaw | None] = {}

    def flaw(self, added: AddSnap) -> Flaw | None:
        """What is wrong with a snapshot; an unreadable node before anything else. Raises StoreError."""
        shape = Shape(added.volume_id, added.size, added.chunk_log2)
        found = next(self._below(shape, shape.depth - 1, [(added.root, 0)]))
        if found is not None and found.unreadable:
            return found
        for document in added.documents:
            if self._absent(Kind.DOCUMENT, [(part, None) for part in document.parts]):
                return found or Flaw(f"a part of document {document.name} cannot be had")
        return found

    def _below(self, shape: Shape, level: int, places: Sequence[tuple[ChunkId, int]]) -> Iterator[Flaw | None]:
        """The flaw of each of these subtrees, in order."""
        fresh = [(id_, first) for id_, first in places if (id_, level, first) not in self._known]
        contents = self._opened(Kind.INNER if level else Kind.LEAF, [id_ for id_, _ in fresh])
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
        absent = self._absent(Kind.CHUNK, [(id_, shape.chunk_length(chunk)) for id_, chunk in below])
        if not absent:
            return None
        chunk = next(chunk for id_, chunk in below if id_ in absent)
        return Flaw(f"chunk {chunk} (from byte {chunk << shape.chunk_log2} on) cannot be had")

    def _opened(self, kind: Kind, ids: Sequence[ChunkId]) -> dict[ChunkId, Opened | str]:
        """These nodes, or why they cannot be had."""
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

    def _absent(self, kind: Kind, wanted: Sequence[tuple[ChunkId, int | None]]) -> set[ChunkId]:
        """Those that lie nowhere in this domain with the length their position implies."""
        absent: set[ChunkId] = set()
        for start in range(0, len(wanted), _IDS_AT_ONCE):
            some = wanted[start : start + _IDS_AT_ONCE]
            places = self._repo.blobs.find_many(kind, [id_ for id_, _ in some])
            for id_, length in some:
                if not any(
                    place.domain_id == self._domain_id and length in (None, place.blob.content_length)
                    for place in places.get(id_, [])
                ):
                    absent.add(id_)
        return absent
