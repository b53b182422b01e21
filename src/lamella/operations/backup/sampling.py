"""Choosing which chunks to re-read although the change map calls them unchanged. Pure.

A wrong "unchanged" is the one silent fault of change tracking, so each incremental run looks at some of them: at the
edges of what changed, at random, and at the next slice of a cursor that goes round the volume. What the map calls zero
is looked at like what it calls unchanged.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta

LEAST_CHUNKS = 64
ONE_IN = 1000
MOST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """Chunks to re-read, none of which the delta calls changed, and where the next run's slice begins."""

    chunks: ChunkSet
    cursor: int


def sample_size(chunks: int, chunk_size: int) -> int:
    """The number of chunks that a run samples by default: 64 or 0.1 %, whichever is more, at most 64 MiB of them."""
    return min(max(LEAST_CHUNKS, chunks // ONE_IN), max(1, MOST_BYTES // chunk_size), chunks)


def choose(delta: Delta, cursor: int, reread_bytes: int, source: random.Random) -> Sample:
    """Choose the sample of one run: half of it the cursor's slice, a quarter at edges of `delta`, the rest at random.

    `reread_bytes` makes the slice at least that large. Chunks that may have changed are read anyway and are left out;
    those that a delta calls zero are not read otherwise, and stay in.
    """
    chunk_size, chunks = delta.grain, -(-delta.size // delta.grain)
    if chunks == 0:
        return Sample(ChunkSet(), 0)
    wanted = sample_size(chunks, chunk_size)
    chosen = ChunkSet()
    slice_length = min(chunks, max(wanted // 2, -(-reread_bytes // chunk_size), 1))
    start = cursor % chunks
    chosen.add(start, min(start + slice_length, chunks))
    chosen.add(0, max(0, start + slice_length - chunks))
    for chunk in _edges(delta.changed | delta.zeroed, chunks, max(1, wanted // 4), source):
        chosen.add(chunk, chunk + 1)
    for _ in range(max(1, wanted // 4)):
        chunk = source.randrange(chunks)
        chosen.add(chunk, chunk + 1)
    return Sample(chosen - delta.changed, (start + slice_length) % chunks)


def _edges(touched: ChunkSet, chunks: int, limit: int, source: random.Random) -> list[int]:
    """Neighbours of changed ranges, a random selection where there are many (reservoir sampling)."""
    kept: list[int] = []
    seen = 0
    for first, end in touched.runs():
        for chunk in (first - 1, end):
            if not 0 <= chunk < chunks:
                continue
            seen += 1
            if len(kept) < limit:
                kept.append(chunk)
            elif (place := source.randrange(seen)) < limit:
                kept[place] = chunk
    return kept
