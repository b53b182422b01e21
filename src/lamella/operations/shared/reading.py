"""The parts of a volume that a run reads, as ascending tasks: everything, or a change map's ranges and a sample."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import replace
from enum import IntEnum
from typing import NamedTuple

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.extents import chunk_ranges
from lamella.format.node import Shape, Slot
from lamella.operations.shared.ranges import RANGE
from lamella.sources.base import FrozenVolume


class Act(IntEnum):
    """The work on the chunks of a task."""

    READ = 0
    """Read them: they may have changed."""
    SAMPLE = 1
    """Read them although the change map calls them unchanged; any difference refutes the map."""
    SET = 2
    """Do not read them: they are known to be a hole, or zeros."""
    SAMPLE_ZERO = 3
    """Read them although the change map calls them zero; anything else refutes the map."""


class Task(NamedTuple):
    """Chunks `[first, end)`, at most one range of them unless nothing is read; `slot` counts for SET only."""

    first: int
    end: int
    act: Act
    slot: Slot = Slot.HOLE


def everything(frozen: FrozenVolume, shape: Shape, position: int = 0) -> Iterator[Task]:
    """Read what is allocated from chunk `position` on; what is not is a hole."""
    for low, end in chunk_ranges(frozen.allocated(), shape.chunk_size):
        first = max(low, position)
        if end <= position:
            continue
        if first > position:
            yield Task(position, first, Act.SET)
        yield from _cut(first, end, Act.READ, shape)
        position = end
    if position < shape.chunks:
        yield Task(position, shape.chunks, Act.SET)


def changes(frozen: FrozenVolume, shape: Shape, delta: Delta, sample: ChunkSet) -> Iterator[Task]:
    """Read what may have changed and the sample, set what reads as zero, and say nothing of the rest."""
    streams: list[Iterable[Task]] = [
        (task for first, end in delta.changed.runs() for task in _cut(first, end, Act.READ, shape)),
        (task for first, end in (sample - delta.zeroed).runs() for task in _cut(first, end, Act.SAMPLE, shape)),
        (task for first, end in (sample & delta.zeroed).runs() for task in _cut(first, end, Act.SAMPLE_ZERO, shape)),
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


def _cut(first: int, end: int, act: Act, shape: Shape) -> Iterator[Task]:
    """Pieces of at most one range, cut on the grid of ranges."""
    per_task = max(1, RANGE >> shape.chunk_log2)
    while first < end:
        stop = min(end, (first // per_task + 1) * per_task)
        yield Task(first, stop, act)
        first = stop
