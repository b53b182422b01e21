"""Which blobs the living trees need: the mark that every deletion rests on (FORMAT 8, Mark).

Trees are walked node by node, each node once whatever number of trees share it, every node opened, its id recomputed
and its place checked. The ids found are kept on disk, divided by their first byte, so that memory stays flat.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.ids import ChunkId, DomainId
from lamella.base.trust import Opened
from lamella.format import node
from lamella.format.container import Kind
from lamella.format.node import FAN_OUT, Shape, SlotValue
from lamella.format.records import AddSnap, Ref
from lamella.history.catalogue import Catalogue, Snapshot
from lamella.packs.contents import Contents
from lamella.packs.tree import Tree

PARTS = 256
_ID = 24
_NODES_AT_ONCE = 256
_SPILL_BYTES = 64 * 1024


@dataclass(slots=True)
class Roots:
    """What keeps blobs of one domain alive: trees, and parts of documents."""

    trees: list[Tree] = field(default_factory=list)
    documents: list[ChunkId] = field(default_factory=list)

    def add(self, snapshot: Snapshot) -> None:
        """Everything a snapshot needs."""
        self.add_record(snapshot.added)

    def add_record(self, added: AddSnap) -> None:
        """Everything the snapshot of this record needs."""
        self.trees.append(Tree(Shape(added.volume_id, added.size, added.chunk_log2), added.root))
        for document in added.documents:
            self.documents += document.parts


def roots_of(snapshot: Snapshot) -> Roots:
    """What one snapshot keeps alive."""
    roots = Roots()
    roots.add(snapshot)
    return roots


def roots_by_domain(catalogue: Catalogue, without: Collection[Ref] = ()) -> dict[DomainId, Roots]:
    """The roots of all snapshots except `without`, by the domain their ADD_SNAP names."""
    found: dict[DomainId, Roots] = {}
    for snapshot in catalogue.snapshots:
        if snapshot.ref not in without:
            found.setdefault(snapshot.added.domain_id, Roots()).add(snapshot)
    return found


class Walk:
    """Walks trees of one domain; what was walked once is not walked again.

    With `lenient` a node that cannot be had is noted in `unreadable`, and the walk goes on beside it.
    """

    def __init__(self, contents: Contents, domain_id: DomainId, *, lenient: bool = False) -> None:
        self._contents = contents
        self._domain_id = domain_id
        self._lenient = lenient
        self._visited: dict[ChunkId, tuple[int, int]] = {}
        self.unreadable: set[ChunkId] = set()
        """Nodes that do not open, or lie where their content says they do not belong."""

    def referenced(self, roots: Roots) -> Iterator[tuple[Kind, list[ChunkId]]]:
        """Everything these roots need and no earlier call yielded for a shared node, in lists of one kind.

        A chunk may come more than once. Unless the walk is lenient, raises IntegrityError, UnknownFormat if a node
        cannot be had: then nothing may be concluded from what was yielded so far.
        """
        if roots.documents:
            yield Kind.DOCUMENT, roots.documents
        for tree in roots.trees:
            yield from self._tree(tree)

    def _tree(self, tree: Tree) -> Iterator[tuple[Kind, list[ChunkId]]]:
        pending = [(tree.shape.depth - 1, [(tree.root, 0)])]
        while pending:
            level, places = pending.pop()
            fresh = {id_: first for id_, first in places if self._is_fresh(id_, (level, first))}
            if not fresh:
                continue
            kind = Kind.INNER if level else Kind.LEAF
            yield kind, list(fresh)
            nodes = self._nodes(tree.shape, level, self._opened(kind, fresh), fresh)
            if level:
                below = [child for first, slots in nodes for child in _below(level, first, slots)]
                starts = range(0, len(below), _NODES_AT_ONCE)
                pending += [(level - 1, below[start : start + _NODES_AT_ONCE]) for start in starts]
            else:
                yield Kind.CHUNK, [slot for _, slots in nodes for slot in slots if isinstance(slot, bytes)]
            self._visited.update((id_, (level, first)) for id_, first in fresh.items())

    def _is_fresh(self, id_: ChunkId, place: tuple[int, int]) -> bool:
        known = self._visited.get(id_)
        if self._lenient and known is not None and known != place:
            # Only somebody with the keys can write such a tree; its own snapshot is not whole.
            self.unreadable.add(id_)
        return known is None

    def _nodes(
        self, shape: Shape, level: int, contents: dict[ChunkId, Opened], places: dict[ChunkId, int]
    ) -> list[tuple[int, Sequence[SlotValue]]]:
        """The slots of these nodes, each with the node's first chunk."""
        found: list[tuple[int, Sequence[SlotValue]]] = []
        for id_, content in contents.items():
            first = places[id_]
            full = None if level else node.full_leaf(content, shape, first)
            try:
                found.append((first, full or node.decode(content, shape, level, first).slots))
            except (IntegrityError, UnknownFormat) as error:
                self._miss(id_, error)
        return found

    def _opened(self, kind: Kind, ids: Iterable[ChunkId]) -> dict[ChunkId, Opened]:
        wanted = list(ids)
        try:
            return self._contents.get_many(self._domain_id, kind, [(id_, None) for id_ in wanted])
        except IntegrityError:
            if not self._lenient:
                raise
        found: dict[ChunkId, Opened] = {}
        for id_ in wanted:
            try:
                found[id_] = self._contents.get(self._domain_id, kind, id_)
            except IntegrityError as error:
                self._miss(id_, error)
        return found

    def _miss(self, id_: ChunkId, error: IntegrityError | UnknownFormat) -> None:
        if not self._lenient:
            raise error
        self.unreadable.add(id_)


def _below(level: int, first: int, slots: Sequence[SlotValue]) -> Iterator[tuple[ChunkId, int]]:
    """The DATA slots of an inner node, each with its first chunk."""
    step = FAN_OUT**level
    return ((slot, first + place * step) for place, slot in enumerate(slots) if isinstance(slot, bytes))


class LiveIds:
    """The ids that are needed. They lie in one temporary file; a part (all ids with one first byte) fits in memory.

    The kind is not kept: it is part of what an id is the hash of. A context manager: leaving it gives the file back.
    `directory` is where the file may grow to 24 bytes an id; None is the system's place for temporary files.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._buffers = [bytearray() for _ in range(PARTS)]
        self._pieces: list[list[tuple[int, int]]] = [[] for _ in range(PARTS)]
        self._file: IO[bytes] | None = None
        self._size = 0
        self.added = 0
        """Ids added, repetitions included."""

    def __enter__(self) -> LiveIds:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, ids: Iterable[ChunkId]) -> None:
        """These are needed. Raises OSError if the temporary file cannot be written."""
        buffers = self._buffers
        touched: set[int] = set()
        for id_ in ids:
            first = id_[0]
            buffers[first] += id_
            touched.add(first)
            self.added += 1
        for number in touched:
            if len(buffers[number]) >= _SPILL_BYTES:
                self._spill(number)

    def _spill(self, number: int) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - closed by __exit__
        buffer = self._buffers[number]
        self._file.seek(self._size)
        self._file.write(buffer)
        self._pieces[number].append((self._size, len(buffer)))
        self._size += len(buffer)
        buffer.clear()

    def part(self, number: int) -> set[bytes]:
        """All needed ids whose first byte is `number`."""
        pieces = [bytes(self._buffers[number])]
        for offset, length in self._pieces[number]:
            assert self._file is not None
            self._file.seek(offset)
            pieces.append(self._file.read(length))
        return {piece[at : at + _ID] for piece in pieces for at in range(0, len(piece), _ID)}

    def among(self, ids: Iterable[ChunkId]) -> set[ChunkId]:
        """Those of `ids` that are needed."""
        wanted: dict[int, set[ChunkId]] = {}
        for id_ in ids:
            wanted.setdefault(id_[0], set()).add(id_)
        return {id_ for number, some in wanted.items() for id_ in some & self.part(number)}
