"""A disk cut into blocks, for disks that take writes over a snapshot: a block is kept as a whole, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from lamella.operations.access.disk import ReadableDisk

Run = tuple[int, int, bool]
"""The first block of a run, the block after the run, and whether its blocks are kept; or the same in bytes."""


class Blocks(NamedTuple):
    """The size of a disk and of its blocks, in bytes. The last block may be shorter."""

    size: int
    block: int

    def touched(self, start: int, end: int) -> tuple[int, int]:
        """The blocks of which a range has a part: the first, and the one after the last."""
        return start // self.block, -(-end // self.block)

    def covered(self, start: int, end: int) -> tuple[int, int]:
        """The blocks that lie in a range as a whole; without any, the first is not before the end."""
        return -(-start // self.block), -(-end // self.block) if end == self.size else end // self.block

    def whole(self, start: int, end: int) -> tuple[int, int]:
        """The bytes of full blocks that lie in a range; without any, the first is not before the end."""
        return -(-start // self.block) * self.block, end // self.block * self.block

    def clipped(self, runs: Callable[[int, int], Iterable[Run]], start: int, end: int) -> Iterator[Run]:
        """The `runs` of blocks in a range, in bytes."""
        for first, stop, kept in runs(*self.touched(start, end)):
            yield max(start, first * self.block), min(end, stop * self.block), kept

    def edges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of a range that do not cover their block."""
        if start % self.block:
            stop = min(end, (start // self.block + 1) * self.block)
            yield start, stop
            start = stop
        if start < end and end % self.block and end != self.size:
            yield max(start, end // self.block * self.block), end

    def rests(self, start: int, end: int, has: Callable[[int], bool], view: ReadableDisk) -> dict[int, bytes]:
        """The blocks that a write touches in part and that are not kept yet, as the snapshot has them."""
        blocks = sorted({start // self.block for start, _ in self.edges(start, end)})
        return {block: view.read(block * self.block, self.block) for block in blocks if not has(block)}
