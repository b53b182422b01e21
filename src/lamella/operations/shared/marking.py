"""Which blobs the living trees need: the mark that every deletion rests on (FORMAT 8, Mark).

Trees are walked node by node, each node once whatever number of trees share it, every node opened, its id recomputed
and its place checked. The ids found are kept on disk, divided by their first byte, so that memory stays flat.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.ids import ChunkId, DomainId
from lamella.base.trust import Opened
from lamella.format import node
from lamella.format.container import Kind
from lamella.format.node import FAN_OUT, Shape, SlotValue
from lamella.format.records import AddSnap, Ref
from lamella.history.catalogue import Catalogue
from lamella.packs.contents import Contents
from lamella.packs.tree import Tree

_NODES_AT_ONCE = 256


@dataclass(slots=True)
class Roots:
    """The roots that keep blobs of one domain alive: trees, and parts of documents."""

    trees: list[Tree] = field(default_factory=list)
    documents: list[ChunkId] = field(default_factory=list)

    def add(self, added: AddSnap) -> None:
        """Everything the snapshot of this record needs."""
        self.trees.append(Tree(Shape(added.volume_id, added.size, added.chunk_log2), added.root))
        for document in added.documents:
            self.documents += document.parts


def roots_of(added: AddSnap) -> Roots:
    """The roots of one snapshot."""
    roots = Roots()
    roots.add(added)
    return roots


def roots_by_domain(catalogue: Catalogue, without: Collection[Ref] = ()) -> dict[DomainId, Roots]:
    """The roots of all snapshots except `without`, by the domain their ADD_SNAP names."""
    found: dict[DomainId, Roots] = {}
    for snapshot in catalogue.snapshots:
        if snapshot.ref not in without:
            found.setdefault(snapshot.added.domain_id, Roots()).add(snapshot.added)
    return found


class LiveWalk:
    """Walks trees of one domain; what was walked once is not walked again.

    With `lenient` a node that cannot be had is noted in `unreadable`, and the walk continues beside it.
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
                chunks = [slot for _, slots in nodes for slot in slots if isinstance(slot, bytes)]
                yield Kind.CHUNK, list(self._contents.blobs_of(self._domain_id, chunks))
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
