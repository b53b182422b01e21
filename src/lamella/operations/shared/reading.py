"""The parts of a volume that a run reads, as ascending tasks: here all that is allocated.

What a change map tells to read is found in `operations.backup.mapped`.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

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
        yield from pieces(first, end, Act.READ, shape)
        position = end
    if position < shape.chunks:
        yield Task(position, shape.chunks, Act.SET)


def pieces(first: int, end: int, act: Act, shape: Shape) -> Iterator[Task]:
    """The tasks of chunks `[first, end)`: pieces of at most one range, cut on the grid of ranges."""
    per_task = max(1, RANGE >> shape.chunk_log2)
    while first < end:
        stop = min(end, (first // per_task + 1) * per_task)
        yield Task(first, stop, act)
        first = stop
