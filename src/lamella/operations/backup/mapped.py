"""The parts of a volume that a change map tells to read, and a sample of the others, as ascending tasks."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import replace

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.extents import chunk_ranges
from lamella.format.node import Shape, Slot
from lamella.operations.shared.reading import Act, Task, everything, pieces
from lamella.sources.base import FrozenVolume


def changes(frozen: FrozenVolume, shape: Shape, delta: Delta, sample: ChunkSet) -> Iterator[Task]:
    """Read what may have changed and the sample, set what reads as zero, and say nothing of the rest."""
    streams: list[Iterable[Task]] = [
        (task for first, end in delta.changed.runs() for task in pieces(first, end, Act.READ, shape)),
        (task for first, end in (sample - delta.zeroed).runs() for task in pieces(first, end, Act.SAMPLE, shape)),
        (task for first, end in (sample & delta.zeroed).runs() for task in pieces(first, end, Act.SAMPLE_ZERO, shape)),
        _zeroed(frozen, shape, delta.zeroed),
    ]
    return heapq.merge(*streams)


def resumed(frozen: FrozenVolume, shape: Shape, delta: Delta, sample: ChunkSet, done: int) -> Iterator[Task]:
    """`changes` below chunk `done`, `everything` from there on."""
    below = ChunkSet([(0, done)])
    first = replace(delta, changed=delta.changed & below, zeroed=delta.zeroed & below)
    yield from changes(frozen, shape, first, sample & below)
    yield from everything(frozen, shape, done)


def _zeroed(frozen: FrozenVolume, shape: Shape, zeroed: ChunkSet) -> Iterator[Task]:
    """Zeros are ZERO where the source has space for them, HOLE where it has none."""
    if not zeroed:
        return
    allocated = chunk_ranges(frozen.allocated(), shape.chunk_size)
    low, high = next(allocated, (shape.chunks, shape.chunks))
    for first, end in zeroed.runs():
        position = first
        while position < end:
            while high <= position and low < shape.chunks:
                low, high = next(allocated, (shape.chunks, shape.chunks))
            inside = low <= position < high
            stop = min(end, high if inside else max(low, position + 1))
            yield Task(position, stop, Act.SET, Slot.ZERO if inside else Slot.HOLE)
            position = stop
