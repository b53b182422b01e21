"""Manifest trees: reading and comparing them (FORMAT 6).

A tree is never held in memory: reading streams runs of slots with one node a level at hand. The cost follows what is
read or differs. `lamella.packs.tree_writer` makes trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from lamella.base.ids import ChunkId
from lamella.base.trust import Opened
from lamella.format import node
from lamella.format.container import Kind
from lamella.format.node import FAN_OUT, Node, Shape, Slot, SlotValue

FetchNode = Callable[[Kind, ChunkId], Opened]


class SlotRun(NamedTuple):
    """Chunks `[first, end)` that all have the same slot; a run of DATA is one chunk long."""

    first: int
    end: int
    slot: SlotValue


class Tree(NamedTuple):
    """A stored manifest: its shape and the id of its root."""

    shape: Shape
    root: ChunkId


class TreeReader:
    """Reads nodes of one volume's trees."""

    def __init__(self, fetch: FetchNode) -> None:
        self._fetch = fetch
        # The newest node of each level: reading a tree in pieces then costs as little as reading it at once.
        self._path: dict[int, tuple[tuple[ChunkId, int, Shape], Node]] = {}

    def node(self, shape: Shape, id_: ChunkId, level: int, first_chunk: int) -> Node:
        """One node, checked against its place. Raises IntegrityError, UnknownFormat."""
        place = (id_, first_chunk, shape)
        remembered = self._path.get(level)
        if remembered is not None and remembered[0] == place:
            return remembered[1]
        kind = Kind.INNER if level else Kind.LEAF
        found = node.decode(self._fetch(kind, id_), shape, level, first_chunk)
        self._path[level] = (place, found)
        return found

    def runs(self, tree: Tree, first: int = 0, end: int | None = None) -> Iterator[SlotRun]:
        """The slots of chunks `[first, end)` in order, equal neighbours that are not DATA merged."""
        limit = tree.shape.chunks if end is None else min(end, tree.shape.chunks)
        merged: SlotRun | None = None
        for run in self._below(tree.shape, tree.root, tree.shape.depth - 1, 0, first, limit):
            if merged is not None and merged.slot == run.slot and not isinstance(run.slot, bytes):
                merged = SlotRun(merged.first, run.end, run.slot)
                continue
            if merged is not None:
                yield merged
            merged = run
        if merged is not None:
            yield merged

    def _below(
        self, shape: Shape, slot: SlotValue, level: int, start: int, first: int, limit: int
    ) -> Iterator[SlotRun]:
        """Runs below one child; `start` is its first chunk."""
        low, high = max(start, first), min(start + FAN_OUT ** (level + 1), limit)
        if low >= high:
            return
        if not isinstance(slot, bytes):
            yield SlotRun(low, high, slot)
            return
        found = self.node(shape, slot, level, start)
        step = FAN_OUT**level
        for position, child in enumerate(found.slots):
            begin = start + position * step
            if begin >= limit:
                return
            if begin + step <= first:
                continue
            if level and isinstance(child, bytes):
                yield from self._below(shape, child, level - 1, begin, first, limit)
            else:
                yield SlotRun(max(begin, first), min(begin + step, limit), child)

    def changes(self, old: Tree, new: Tree) -> Iterator[tuple[SlotRun, SlotValue]]:
        """Runs of `new` that differ from `old`, each with the old slot; the cost follows the difference.

        Both trees must have the same chunk size. Chunks past the old end count as HOLE before. Where a chunk's length
        changed with the size, its ids differ.
        """
        top = max(old.shape.depth, new.shape.depth) - 1
        pair = (self._lifted(old, top), self._lifted(new, top))
        yield from self._differ((old.shape, new.shape), pair, top, 0)

    def _lifted(self, tree: Tree, level: int) -> SlotValue | tuple[ChunkId, int]:
        return tree.root if tree.shape.depth - 1 == level else (tree.root, tree.shape.depth - 1)

    def _differ(
        self,
        shapes: tuple[Shape, Shape],
        pair: tuple[SlotValue | tuple[ChunkId, int], SlotValue | tuple[ChunkId, int]],
        level: int,
        start: int,
    ) -> Iterator[tuple[SlotRun, SlotValue]]:
        old, new = pair
        if old == new and (isinstance(new, bytes | tuple) or shapes[0].size == shapes[1].size):
            return
        if not isinstance(old, bytes | tuple) and not isinstance(new, bytes | tuple):
            yield from self._uniform(shapes, old, new, level, start)
            return
        olds = self._slots(shapes[0], old, level, start)
        news = self._slots(shapes[1], new, level, start)
        step = FAN_OUT**level
        for position, (one, other) in enumerate(zip(olds, news, strict=True)):
            begin = start + position * step
            if begin >= shapes[1].chunks:
                return
            if level:
                yield from self._differ(shapes, (one, other), level - 1, begin)
            elif one != other and not isinstance(one, tuple) and not isinstance(other, tuple):
                yield SlotRun(begin, begin + 1, other), one

    def _uniform(
        self, shapes: tuple[Shape, Shape], old: Slot, new: Slot, level: int, start: int
    ) -> Iterator[tuple[SlotRun, SlotValue]]:
        """Two children without nodes: what was ZERO or HOLE ends where the old volume ended."""
        stop = min(start + FAN_OUT ** (level + 1), shapes[1].chunks)
        middle = min(max(start, shapes[0].chunks), stop)
        if old != new and start < middle:
            yield SlotRun(start, middle, new), old
        if new != Slot.HOLE and middle < stop:
            yield SlotRun(middle, stop, new), Slot.HOLE

    def _slots(
        self, shape: Shape, value: SlotValue | tuple[ChunkId, int], level: int, start: int
    ) -> list[SlotValue | tuple[ChunkId, int]]:
        """The 64 slots below a child, as seen in a tree that may be higher than the child's own."""
        if isinstance(value, tuple):
            root, own_level = value
            child: SlotValue | tuple[ChunkId, int] = root if own_level == level - 1 else (root, own_level)
            return [child, *([Slot.HOLE] * (FAN_OUT - 1))]
        if isinstance(value, bytes):
            return list(self.node(shape, value, level, start).slots)
        step = FAN_OUT**level
        return [value if start + position * step < shape.chunks else Slot.HOLE for position in range(FAN_OUT)]
