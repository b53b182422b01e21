"""Comparing two manifest trees (FORMAT 6): the cost follows what differs."""

from __future__ import annotations

from collections.abc import Iterator

from lamella.base.ids import ChunkId
from lamella.format.node import FAN_OUT, DeltaChunk, Shape, Slot, SlotValue
from lamella.packs.tree import SlotRun, Tree, TreeReader


def changes(reader: TreeReader, old: Tree, new: Tree) -> Iterator[tuple[SlotRun, SlotValue]]:
    """Runs of `new` that differ from `old`, each with the old slot; the cost follows the difference.

    Both trees must have the same chunk size. Chunks past the old end count as HOLE before. Where a chunk's length
    changed with the size, its ids differ. A chunk that is stored in another way differs, too, although its slots are
    equal.
    """
    top = max(old.shape.depth, new.shape.depth) - 1
    pair = (_lifted(old, top), _lifted(new, top))
    yield from _differ(reader, (old.shape, new.shape), pair, top, 0)


def _lifted(tree: Tree, level: int) -> SlotValue | tuple[ChunkId, int]:
    return tree.root if tree.shape.depth - 1 == level else (tree.root, tree.shape.depth - 1)


def _differ(
    reader: TreeReader,
    shapes: tuple[Shape, Shape],
    pair: tuple[SlotValue | tuple[ChunkId, int], SlotValue | tuple[ChunkId, int]],
    level: int,
    start: int,
) -> Iterator[tuple[SlotRun, SlotValue]]:
    old, new = pair
    if old == new and (isinstance(new, bytes | tuple) or shapes[0].size == shapes[1].size):
        return
    if not isinstance(old, bytes | tuple) and not isinstance(new, bytes | tuple):
        yield from _uniform(shapes, old, new, level, start)
        return
    olds = _slots(reader, shapes[0], old, level, start)
    news = _slots(reader, shapes[1], new, level, start)
    step = FAN_OUT**level
    for position, (one, other) in enumerate(zip(olds, news, strict=True)):
        begin = start + position * step
        if begin >= shapes[1].chunks:
            return
        if level:
            yield from _differ(reader, shapes, (one, other), level - 1, begin)
        elif not _same(one, other) and not isinstance(one, tuple) and not isinstance(other, tuple):
            yield SlotRun(begin, begin + 1, other), one


def _same(one: SlotValue | tuple[ChunkId, int], other: SlotValue | tuple[ChunkId, int]) -> bool:
    """Whether two slots are equal to the last bit: equal chunks may be read from different blobs."""
    if isinstance(one, DeltaChunk) and isinstance(other, DeltaChunk):
        return one.encoded() == other.encoded()
    return one == other and not (isinstance(one, DeltaChunk) or isinstance(other, DeltaChunk))


def _uniform(
    shapes: tuple[Shape, Shape], old: Slot, new: Slot, level: int, start: int
) -> Iterator[tuple[SlotRun, SlotValue]]:
    """Two children without nodes: what was ZERO or HOLE ends where the old volume ended."""
    stop = min(start + FAN_OUT ** (level + 1), shapes[1].chunks)
    middle = min(max(start, shapes[0].chunks), stop)
    if old != new and start < middle:
        yield SlotRun(start, middle, new), old
    if new != Slot.HOLE and middle < stop:
        yield SlotRun(middle, stop, new), Slot.HOLE


def _slots(
    reader: TreeReader, shape: Shape, value: SlotValue | tuple[ChunkId, int], level: int, start: int
) -> list[SlotValue | tuple[ChunkId, int]]:
    """The 64 slots below a child, as seen in a tree that may be higher than the child's own."""
    if isinstance(value, tuple):
        root, own_level = value
        child: SlotValue | tuple[ChunkId, int] = root if own_level == level - 1 else (root, own_level)
        return [child, *([Slot.HOLE] * (FAN_OUT - 1))]
    if isinstance(value, bytes):
        return list(reader.node(shape, value, level, start).slots)
    step = FAN_OUT**level
    return [value if start + position * step < shape.chunks else Slot.HOLE for position in range(FAN_OUT)]
