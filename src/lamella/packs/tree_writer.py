"""Manifest trees: path-copying them (FORMAT 6).

A tree is never held in memory: changes stream in and nodes out, with one node a level at hand. The cost follows what is
changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from lamella.base.errors import IntegrityError
from lamella.base.ids import ChunkId
from lamella.format import node
from lamella.format.container import Kind
from lamella.format.node import FAN_OUT, Node, Shape, Slot, SlotValue
from lamella.packs.tree import SlotRun, Tree, TreeReader

PutNode = Callable[[Kind, bytes], ChunkId]


class Partial(NamedTuple):
    """A tree being written, closed as if no change came any more: chunks `[0, done)` are as they will be, the rest is
    as in the base, or HOLE where there is none to take it from.
    """

    root: ChunkId
    done: int


class _Changes:
    """Ascending, disjoint runs with one run of look-ahead."""

    def __init__(self, runs: Iterable[SlotRun]) -> None:
        self._runs = iter(runs)
        self._next: SlotRun | None = None
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
        self._writing: _Writing | None = None

    def update(self, shape: Shape, base: Tree | None, changes: Iterable[SlotRun]) -> ChunkId:
        """Build the tree that equals `base` except for `changes`; returns the root's id.

        Chunks that neither the base nor a change names are HOLE. When the sizes differ, the caller has put everything
        from the smaller end on into `changes`. Raises IntegrityError if the base cannot be read, ValueError for bad
        changes.
        """
        if base is not None and (base.shape.volume_id, base.shape.chunk_log2) != (shape.volume_id, shape.chunk_log2):
            raise ValueError("a base of another volume or chunk size")
        self._writing = _Writing(self._reader, self._put, shape, base, _Changes(changes))
        return self._writing.root()

    def partial(self) -> Partial | None:
        """The tree as far as it has come; None before the first node is open and after the last one was closed.

        To be called only while `update` waits for the next change, so by the iterator that yields them: every change
        yielded before is then in the tree, and `done` is the end of the last one. Costs one node a level.
        """
        return None if self._writing is None else self._writing.partial()


_Base = SlotValue | tuple[ChunkId, int]


@dataclass(slots=True)
class _Open:
    """A node being written: its old slots, and the new ones as far as they are known."""

    level: int
    start: int
    old: _Base
    olds: list[_Base]
    old_below: int
    slots: list[SlotValue] = field(default_factory=list)
    more: int = 0
    """How many more DATA chunks the new slots have than the old ones."""

    @property
    def next_chunk(self) -> int:
        """The first chunk below the slot that comes next."""
        return self.start + (len(self.slots) << 6 * self.level)

    def add(self, slot: SlotValue, more: int) -> None:
        """The next slot is known."""
        self.slots.append(slot)
        self.more += more


class _Writing:
    def __init__(self, reader: TreeReader, put: PutNode, shape: Shape, base: Tree | None, changes: _Changes) -> None:
        self._reader = reader
        self._put = put
        self._shape = shape
        self._base = base
        self._changes = changes
        self._old_chunks = 0 if base is None else base.shape.chunks
        self._path: list[_Open] = []
        """The open nodes, from the root down to where the writing is."""

    def root(self) -> ChunkId:
        level = self._shape.depth - 1
        slot, _ = self._child(level, 0, self._base_at_top(level))
        if not self._changes.finished(self._shape.chunks):
            raise ValueError("changes past the end of the volume")
        return self._as_root(slot)

    def _as_root(self, slot: SlotValue) -> ChunkId:
        """A root is stored even if it is uniform."""
        if isinstance(slot, bytes):
            return slot
        level = self._shape.depth - 1
        inside = [place * FAN_OUT**level < self._shape.chunks for place in range(FAN_OUT)]
        slots: list[SlotValue] = [slot if used else Slot.HOLE for used in inside]
        return self._store(level, 0, slots, 0)

    def partial(self) -> Partial | None:
        if not self._path:
            return None
        done = self._path[-1].next_chunk
        rest = _Writing(self._reader, self._put, self._shape, self._base, _Changes(self._tail(done)))
        closed: tuple[SlotValue, int] | None = None
        for node_ in reversed(self._path):
            copied = _Open(node_.level, node_.start, node_.old, node_.olds, node_.old_below, [*node_.slots], node_.more)
            if closed is not None:
                copied.add(*closed)
            closed = rest._filled(copied)
        return None if closed is None else Partial(rest._as_root(closed[0]), done)

    def _tail(self, done: int) -> list[SlotRun]:
        """Stand-ins for changes that never came. Beyond the smaller end a base of another size is no help."""
        chunks = self._shape.chunks
        if self._base is None or self._base.shape.size == self._shape.size:
            return []
        first = max(done, min(self._base.shape.size, self._shape.size) >> self._shape.chunk_log2)
        return [SlotRun(first, chunks, Slot.HOLE)] if first < chunks else []

    def _base_at_top(self, level: int) -> _Base:
        """The base's node at the place of the new root, which may be higher or lower than the base's own root."""
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
        opened = _Open(level, start, old, olds, old_below)
        self._path.append(opened)
        closed = self._filled(opened)
        self._path.pop()
        return closed

    def _filled(self, node_: _Open) -> tuple[SlotValue, int]:
        """Add the slots that are missing, and store the node if it has to be."""
        for old in node_.olds[len(node_.slots) :]:
            node_.add(*self._slot(node_.level, node_.next_chunk, old))
        if isinstance(node_.old, bytes) and node_.slots == node_.olds:
            return node_.old, 0
        chunks_left = self._shape.chunks - node_.start
        inside = node_.slots[: min(FAN_OUT, max(1, -(-chunks_left // FAN_OUT**node_.level)))]
        if not isinstance(inside[0], bytes) and len(set(inside)) == 1:
            return inside[0], -node_.old_below
        below = node_.old_below + node_.more
        return self._store(node_.level, node_.start, node_.slots, below), node_.more

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
