"""Manifest trees: reading them (FORMAT 6).

A tree is never held in memory: reading streams runs of slots with one node a level at hand. The cost follows what is
read or differs. `tree_changes` compares trees, `tree_writer` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from lamella.base.ids import ChunkId
from lamella.base.trust import Opened
from lamella.format import node
from lamella.format.container import Kind
from lamella.format.node import FAN_OUT, Node, Shape, SlotValue

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
