"""Manifest trees: reading, comparing and path-copying them (FORMAT 6).

A tree is never held in memory: reading streams runs of slots, updating streams changes in and nodes out, both with one
node a level at hand. The cost follows what is read or changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from lamella.errors import IntegrityError
from lamella.format import node
from lamella.format.container import Kind
from lamella.format.node import FAN_OUT, Node, Shape, Slot, SlotValue
from lamella.ids import ChunkId
from lamella.trust import Opened

FetchNode = Callable[[Kind, ChunkId], Opened]
PutNode = Callable[[Kind, bytes], ChunkId]


class Run(NamedTuple):
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

    def runs(self, tree: Tree, first: int = 0, end: int | None = None) -> Iterator[Run]:
        """The slots of chunks `[first, end)` in order, equal neighbours that are not DATA merged."""
        limit = tree.shape.chunks if end is None else min(end, tree.shape.chunks)
        merged: Run | None = None
        for run in self._below(tree.shape, tree.root, tree.shape.depth - 1, 0, first, limit):
            if merged is not None and merged.slot == run.slot and not isinstance(run.slot, bytes):
                merged = Run(merged.first, run.end, run.slot)
                continue
            if merged is not None:
                yield merged
            merged = run
        if merged is not None:
            yield merged

    def _below(self, shape: Shape, slot: SlotValue, level: int, start: int, first: int, limit: int) -> Iterator[Run]:
        """Runs below one child; `start` is its first chunk."""
        low, high = max(start, first), min(start + FAN_OUT ** (level + 1), limit)
        if low >= high:
            return
        if not isinstance(slot, bytes):
            yield Run(low, high, slot)
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
                yield Run(max(begin, first), min(begin + step, limit), child)

    def changes(self, old: Tree, new: Tree) -> Iterator[tuple[Run, SlotValue]]:
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
    ) -> Iterator[tuple[Run, SlotValue]]:
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
                yield Run(begin, begin + 1, other), one

    def _uniform(
        self, shapes: tuple[Shape, Shape], old: Slot, new: Slot, level: int, start: int
    ) -> Iterator[tuple[Run, SlotValue]]:
        """Two children without nodes: what was ZERO or HOLE ends where the old volume ended."""
        stop = min(start + FAN_OUT ** (level + 1), shapes[1].chunks)
        middle = min(max(start, shapes[0].chunks), stop)
        if old != new and start < middle:
            yield Run(start, middle, new), old
        if new != Slot.HOLE and middle < stop:
            yield Run(middle, stop, new), Slot.HOLE

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


class _Changes:
    """Ascending, disjoint runs with one run of look-ahead."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs = iter(runs)
        self._next: Run | None = None
        self._end = 0
        self._advance()

    def _advance(self) -> None:
        run = next(self._runs, None)
        if run is not None and (run.first < self._end or run.first >= run.end):
            raise ValueError("changes must ascend, not overlap and not be empty")
        self._end = run.end if run is not None else self._end
        self._next = run

    def touches(self, first: int, end: int) -> bool:
        """Whether the next change begins before `end` (it never ends before `first`)."""
        while self._next is not None and self._next.end <= first:
            self._advance()
        return self._next is not None and self._next.first < end

    def covering(self, first: int, end: int) -> Slot | None:
        """The slot of the next change if it covers all of `[first, end)` and is not DATA."""
        run = self._next
        if run is None or isinstance(run.slot, bytes) or run.first > first or run.end < end:
            return None
        return run.slot

    def at(self, chunk: int) -> SlotValue | None:
        """The change of one chunk, None if it has none."""
        if not self.touches(chunk, chunk + 1) or self._next is None:
            return None
        return self._next.slot

    def finished(self, end: int) -> bool:
        """Whether no change lies past `end`."""
        while self._next is not None and self._next.end <= end:
            self._advance()
        return self._next is None


class TreeWriter:
    """Path-copies trees: unchanged children are shared with the base, changed ones are put."""

    def __init__(self, reader: TreeReader, put: PutNode) -> None:
        self._reader = reader
        self._put = put

    def update(self, shape: Shape, base: Tree | None, changes: Iterable[Run]) -> ChunkId:
        """Build the tree that equals `base` except for `changes`; returns the root's id.

        Chunks that neither the base nor a change names are HOLE. When the sizes differ, the caller has put everything
        from the smaller end on into `changes`. Raises IntegrityError if the base cannot be read, ValueError for bad
        changes.
        """
        if base is not None and (base.shape.volume_id, base.shape.chunk_log2) != (shape.volume_id, shape.chunk_log2):
            raise ValueError("a base of another volume or chunk size")
        writing = _Writing(self._reader, self._put, shape, base, _Changes(changes))
        return writing.root()


_Base = SlotValue | tuple[ChunkId, int]


class _Writing:
    def __init__(self, reader: TreeReader, put: PutNode, shape: Shape, base: Tree | None, changes: _Changes) -> None:
        self._reader = reader
        self._put = put
        self._shape = shape
        self._base = base
        self._changes = changes
        self._old_chunks = 0 if base is None else base.shape.chunks

    def root(self) -> ChunkId:
        level = self._shape.depth - 1
        slot, _ = self._child(level, 0, self._base_at_top(level))
        if not self._changes.finished(self._shape.chunks):
            raise ValueError("changes past the end of the volume")
        if isinstance(slot, bytes):
            return slot
        inside = [place * FAN_OUT**level < self._shape.chunks for place in range(FAN_OUT)]
        slots: list[SlotValue] = [slot if used else Slot.HOLE for used in inside]
        return self._store(level, 0, slots, 0)

    def _base_at_top(self, level: int) -> _Base:
        """What the base has at the place of the new root, which may be higher or lower than the base's own."""
        if self._base is None:
            return Slot.HOLE
        own = self._base.shape.depth - 1
        if own == level:
            return self._base.root
        if own < level:
            return self._lifted_base(self._base, own)
        slot: SlotValue = self._base.root
        while own > level and isinstance(slot, bytes):
            slot = self._reader.node(self._base.shape, slot, own, 0).slots[0]
            own -= 1
        return slot

    def _lifted_base(self, base: Tree, own: int) -> _Base:
        """A root that becomes a child: only roots may be uniform, so a uniform one becomes a plain slot."""
        slots = self._reader.node(base.shape, base.root, own, 0).slots
        inside = slots[: max(1, -(-self._old_chunks // FAN_OUT**own))]
        if not isinstance(inside[0], bytes) and len(set(inside)) == 1:
            return inside[0]
        return base.root, own

    def _child(self, level: int, start: int, old: _Base) -> tuple[SlotValue, int]:
        """The new slot for the child at `level` and `start`, and how many more DATA chunks it has than the old one."""
        end = min(start + FAN_OUT ** (level + 1), self._shape.chunks)
        if (
            not self._changes.touches(start, end)
            and not isinstance(old, tuple)
            and not self._resized(level, start, old)
        ):
            return old, 0
        uniform = self._changes.covering(start, end)
        if uniform is not None:
            return uniform, -self._below(level, start, old)
        return self._rewritten(level, start, old)

    def _resized(self, level: int, start: int, old: SlotValue) -> bool:
        """Whether the end of the volume moved within this child, so that it cannot be kept as it is."""
        stop = start + FAN_OUT ** (level + 1)
        shrunk = self._shape.chunks < min(stop, self._old_chunks)
        return shrunk or (old == Slot.ZERO and self._old_chunks < min(stop, self._shape.chunks))

    def _below(self, level: int, start: int, old: _Base) -> int:
        """The number of DATA chunks below an old child."""
        if self._base is None or isinstance(old, Slot):
            return 0
        id_, own = old if isinstance(old, tuple) else (old, level)
        return self._reader.node(self._base.shape, id_, own, start).data_below

    def _rewritten(self, level: int, start: int, old: _Base) -> tuple[SlotValue, int]:
        olds, old_below = self._old_slots(level, start, old)
        slots: list[SlotValue] = []
        more = 0
        step = FAN_OUT**level
        for position, one in enumerate(olds):
            slot, difference = self._slot(level, start + position * step, one)
            slots.append(slot)
            more += difference
        if isinstance(old, bytes) and slots == olds:
            return old, 0
        inside = slots[: min(FAN_OUT, max(1, -(-(self._shape.chunks - start) // step)))]
        if not isinstance(inside[0], bytes) and len(set(inside)) == 1:
            return inside[0], -old_below
        return self._store(level, start, slots, old_below + more), more

    def _slot(self, level: int, begin: int, old: _Base) -> tuple[SlotValue, int]:
        if begin >= self._shape.chunks:
            return Slot.HOLE, -self._below(level - 1, begin, old) if level else -int(isinstance(old, bytes))
        if level:
            return self._child(level - 1, begin, old)
        change = self._changes.at(begin)
        slot = old if change is None else change
        if isinstance(slot, tuple):
            raise IntegrityError("a base whose root lies below its leaves")
        return slot, int(isinstance(slot, bytes)) - int(isinstance(old, bytes))

    def _old_slots(self, level: int, start: int, old: _Base) -> tuple[list[_Base], int]:
        if isinstance(old, tuple):
            root, own = old
            child: _Base = root if own == level - 1 else old
            return [child, *([Slot.HOLE] * (FAN_OUT - 1))], self._below(level, start, old)
        if isinstance(old, Slot) or self._base is None:
            step = FAN_OUT**level
            return [old if start + place * step < self._old_chunks else Slot.HOLE for place in range(FAN_OUT)], 0
        found = self._reader.node(self._base.shape, old, level, start)
        return list(found.slots), found.data_below

    def _store(self, level: int, start: int, slots: list[SlotValue], below: int) -> ChunkId:
        made = Node(level, start, below, tuple(slots))
        return self._put(made.kind, node.encode(made, self._shape))
