"""One snapshot of a volume as bytes at any offset."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from lamella.base.ids import ChunkId, DomainId
from lamella.base.trust import Opened
from lamella.format.node import FAN_OUT, Slot, SlotValue
from lamella.operations.access.decoded import CACHE_BYTES, DecodedChunks, Recent
from lamella.operations.shared.selection import Selected
from lamella.packs.tree import Tree
from lamella.repository.repository import Repository

PIECE = 1024 * 1024
"""Bytes that are fetched and decoded at once, at least one chunk."""
_AHEAD_MOST = 8 * PIECE
_READERS = 32
"""Readers whose place is remembered: more take turns at being recognised."""
_LEAVES_KEPT = 2048

Part = bytes | memoryview | int
"""Some of the bytes that were asked for; a number stands for so many zeros."""


class Stretch(NamedTuple):
    """Bytes of one kind: data, zeros that the source had allocated, or a hole."""

    length: int
    hole: bool
    """The source had nothing here; reads as zeros."""
    zero: bool
    """Reads as zeros; so does every hole."""


class Reading:
    """The common memory of the views of one repository: decoded chunks, and leaves of trees. Thread-safe.

    The repository must stay open, with its lock held, until `close`: a prune could remove what is read.
    """

    def __init__(self, repo: Repository, cache_bytes: int = CACHE_BYTES, workers: int | None = None) -> None:
        repo.refresh_map()
        self.repo = repo
        self.chunks = DecodedChunks(repo.contents, cache_bytes, workers)
        self.leaves: Recent[tuple[ChunkId, int], tuple[SlotValue, ...]] = Recent(_LEAVES_KEPT)

    def view(self, selected: Selected) -> SnapshotView:
        """A snapshot. Nothing is read until somebody reads it."""
        return SnapshotView(self, self.repo.tree(selected.snapshot), selected.snapshot.added.domain_id)

    def close(self) -> None:
        """End the reading ahead."""
        self.chunks.close()


class SnapshotView:
    """The bytes of one snapshot. Thread-safe; made by `Reading.view`, and costs next to nothing until it is read.

    Whoever reads on where a read ended is a sequential reader: what comes next is decoded in advance.
    """

    def __init__(self, reading: Reading, tree: Tree, domain_id: DomainId) -> None:
        self.size: int = tree.shape.size
        """Bytes of the volume."""
        self._reading = reading
        self._tree = tree
        self._shape = tree.shape
        self._domain_id = domain_id
        self._reader = reading.chunks.tree_reader(domain_id)
        self._ahead = _ReadAhead(min(_AHEAD_MOST, reading.chunks.limit_bytes // 8))

    def read(self, offset: int, length: int) -> bytes:
        """The bytes `[offset, offset + length)`; fewer where the volume ends. Holes read as zeros.

        Raises IntegrityError that names the chunk if a chunk of this range is damaged, StoreError.
        """
        return b"".join(bytes(part) if isinstance(part, int) else part for part in self.parts(offset, length))

    def parts(self, offset: int, length: int) -> Iterator[Part]:
        """The bytes of `read` in parts, at most a piece each; not copied where that holds hardly more memory."""
        end = min(offset + length, self.size)
        if offset >= end:
            return
        self._read_ahead(offset, end)
        for start in range(offset - offset % PIECE, end, PIECE):
            yield from self._piece(max(start, offset), min(start + PIECE, end))

    def expect(self, offset: int, length: int) -> None:
        """Say that these bytes will soon be read: they are decoded beside, as far as there is room."""
        end = min(offset + length, self.size)
        for start in range(offset - offset % PIECE, end, PIECE):
            self._decode_beside(max(start, offset), min(start + PIECE, end))

    def extents(self, offset: int, length: int, most: int | None = None) -> list[Stretch]:
        """The stretches of the range, in order, equal neighbours merged; at most so many of the first ones.

        From the tree alone: no chunk is read. Raises IntegrityError, StoreError.
        """
        end = min(offset + length, self.size)
        found: list[Stretch] = []
        if offset >= end:
            return found
        log2 = self._shape.chunk_log2
        for run in self._reader.runs(self._tree, offset >> log2, -(-end >> log2)):
            start, stop = max(offset, run.first << log2), min(end, run.end << log2)
            hole, zero = run.slot == Slot.HOLE, not isinstance(run.slot, bytes)
            if found and found[-1][1:] == (hole, zero):
                found[-1] = Stretch(found[-1].length + stop - start, hole, zero)
            elif most is not None and len(found) == most:
                break
            else:
                found.append(Stretch(stop - start, hole, zero))
        return found

    def _piece(self, start: int, end: int) -> Iterator[Part]:
        """The bytes `[start, end)`, at most one piece of them."""
        slots = list(self._slots(start, end))
        contents = self._contents(slots)
        for chunk, slot in slots:
            first = chunk << self._shape.chunk_log2
            low, high = max(start - first, 0), min(end - first, self._shape.chunk_length(chunk))
            if not isinstance(slot, bytes):
                yield high - low
            elif 2 * (high - low) < self._shape.chunk_size:
                # A small part of a chunk would keep all of the chunk in memory until it is sent.
                yield contents[slot][low:high]
            else:
                yield memoryview(contents[slot])[low:high]

    def _contents(self, slots: list[tuple[int, SlotValue]]) -> dict[ChunkId, Opened]:
        wanted = [(slot, self._shape.chunk_length(chunk)) for chunk, slot in slots if isinstance(slot, bytes)]
        return self._reading.chunks.get(self._domain_id, wanted) if wanted else {}

    def _slots(self, start: int, end: int) -> Iterator[tuple[int, SlotValue]]:
        """The chunks that bytes `[start, end)` touch, with their slots."""
        first, last = start >> self._shape.chunk_log2, end - 1 >> self._shape.chunk_log2
        for number in range(first // FAN_OUT, last // FAN_OUT + 1):
            base = number * FAN_OUT
            for position, slot in enumerate(self._leaf(number)):
                if first <= base + position <= last:
                    yield base + position, slot

    def _leaf(self, number: int) -> tuple[SlotValue, ...]:
        key = (self._tree.root, number)
        leaf = self._reading.leaves.get(key)
        if leaf is None:
            base = number * FAN_OUT
            runs = self._reader.runs(self._tree, base, base + FAN_OUT)
            leaf = tuple(slot for first, end, slot in runs for _ in range(first, end))
            self._reading.leaves.put(key, leaf)
        return leaf

    def _read_ahead(self, start: int, end: int) -> None:
        wanted = self._ahead.after(start, end)
        if wanted is not None:
            self.expect(wanted[0], wanted[1] - wanted[0])

    def _decode_beside(self, start: int, end: int) -> None:
        log2, chunks = self._shape.chunk_log2, self._reading.chunks
        (number, first), (other, last) = divmod(start >> log2, FAN_OUT), divmod(end - 1 >> log2, FAN_OUT)
        leaf = self._reading.leaves.get((self._tree.root, number)) if number == other else None
        # Waking another thread costs more than this look.
        if leaf and all(not isinstance(slot, bytes) or chunks.has(slot) for slot in leaf[first : last + 1]):
            return
        chunks.ahead(lambda: self._contents(list(self._slots(start, end))))


class _ReadAhead:
    """Recognises readers that continue where they ended, and how far ahead of each to decode. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._readers: OrderedDict[int, tuple[int, int]] = OrderedDict()
        """Where a reader will continue -> how far ahead of it to look, and what has been asked for already."""

    def after(self, start: int, end: int) -> tuple[int, int] | None:
        """The bytes to decode in advance now that `[start, end)` is read."""
        with self._lock:
            known = self._readers.pop(start, None)
            window, reached = (0, end) if known is None else known
            reached = max(reached, end)
            if known is not None:
                window = min(max(PIECE, 2 * window), self._most)
            # Whole pieces: every wake-up of another thread costs.
            wanted = (end + window) // PIECE * PIECE
            asked = (reached, wanted) if wanted - reached >= min(PIECE, window) > 0 else None
            self._readers[end] = (window, reached if asked is None else wanted)
            while len(self._readers) > _READERS:
                self._readers.popitem(last=False)
            return asked
