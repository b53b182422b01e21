"""The parts of a volume that may have changed between two moments. Pure: no I/O, no clock.

A delta may say too much, never too little: every chunk outside `changed` and `zeroed` has the bytes it had at the
earlier moment. It is an upper bound by which a backup chooses what to read; ids decide what really changed.
"""

from __future__ import annotations

from dataclasses import dataclass

from lamella.base.chunkset import ChunkSet


@dataclass(frozen=True, slots=True)
class Delta:
    """Chunks of `grain` bytes on the absolute grid that may differ between `base_size` and later `size` bytes of a
    volume.

    `changed` must be read; `zeroed` reads as zero; the two are disjoint, lie below the end of the volume, and together
    hold every chunk at or beyond the smaller end, the chunk with that end included unless both sizes are equal.
    """

    grain: int
    base_size: int
    size: int
    changed: ChunkSet
    zeroed: ChunkSet

    @classmethod
    def bounded(cls, grain: int, base_size: int, size: int, changed: ChunkSet, zeroed: ChunkSet) -> Delta:
        """A delta that keeps the rules above whatever a driver reported: the ends are added, the overlap is changed."""
        end = -(-size // grain)
        reported, changed = changed, changed.copy()
        if base_size != size:
            changed.add(min(base_size, size) // grain, end)
            # What a driver proved to be zero beyond the old end stays so; a chunk that is part old data does not.
            whole = -(-min(base_size, size) // grain)
            proved = zeroed.copy()
            proved.discard(0, whole)
            changed = reported | (changed - proved)
        changed.discard(end, max(end, 1 << 62))
        zeroed = zeroed - changed
        zeroed.discard(end, max(end, 1 << 62))
        return cls(grain, base_size, size, changed, zeroed)

    @classmethod
    def everything(cls, grain: int, base_size: int, size: int) -> Delta:
        """Nothing is known: every chunk may have changed."""
        return cls(grain, base_size, size, ChunkSet([(0, -(-size // grain))]), ChunkSet())

    def coarsened(self, grain: int) -> Delta:
        """The same on a coarser grid: a chunk is zeroed if all of it is. Raises ValueError for a finer or odd grid."""
        if grain % self.grain:
            raise ValueError("a delta can only be put on a coarser grid")
        factor = grain // self.grain
        touched = ChunkSet((first // factor, -(-end // factor)) for first, end in (self.changed | self.zeroed).runs())
        end = -(-self.size // self.grain)
        zeroed = ChunkSet()
        for first, stop in self.zeroed.runs():
            # The last chunk may be short: it is whole when the zeros reach the end of the volume.
            high = -(-stop // factor) if stop == end else stop // factor
            zeroed.add(-(-first // factor), high)
        return Delta.bounded(grain, self.base_size, self.size, touched - zeroed, zeroed)

    def then(self, later: Delta) -> Delta:
        """This delta followed by `later`, as one from this one's base. Raises ValueError if they do not meet."""
        if (self.grain, self.size) != (later.grain, later.base_size):
            raise ValueError("deltas of another grain, or whose sizes do not meet")
        changed = later.changed | (self.changed - later.zeroed)
        zeroed = later.zeroed | (self.zeroed - later.changed)
        return Delta.bounded(self.grain, self.base_size, later.size, changed, zeroed)

    def spliced(self, chunk: int, later: Delta) -> Delta:
        """This delta below `chunk` and `later` from there on, as one from this one's base size.

        Raises ValueError for deltas of another grain, or to another size.
        """
        if (self.grain, self.size) != (later.grain, later.size):
            raise ValueError("deltas of another grain, or to another size")
        left, right = ChunkSet([(0, chunk)]), ChunkSet([(chunk, max(chunk, -(-self.size // self.grain)))])
        changed = (self.changed & left) | (later.changed & right)
        zeroed = (self.zeroed & left) | (later.zeroed & right)
        return Delta.bounded(self.grain, self.base_size, self.size, changed, zeroed)
