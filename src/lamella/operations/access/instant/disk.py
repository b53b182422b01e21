"""A volume that is used while it is restored: what has arrived is in the target, the rest in the repository."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lamella.operations.access.blocks import Blocks
from lamella.operations.access.instant.journal import Journal
from lamella.operations.access.view import PIECE, Part, SnapshotView, Stretch
from lamella.sources.served_target import ServedTarget


class InstantDisk:
    """A snapshot, its target and its journal as one disk that can be written to. Thread-safe.

    The guest and the restore change a chunk one after the other. A chunk counts as arrived from the moment when it is
    whole in the target, and then stays there: the restore never writes to it again.
    """

    def __init__(self, view: SnapshotView, target: ServedTarget, journal: Journal, chunk_size: int) -> None:
        self.size = view.size
        self.chunk_size = chunk_size
        self._view = view
        self._target = target
        self._journal = journal
        self._blocks = Blocks(view.size, chunk_size)
        self._busy = _Busy()

    # -- as a disk ----------------------------------------------------------------------------------------------------

    def parts(self, offset: int, length: int) -> Iterator[Part]:
        """The bytes of a range in parts. Raises IntegrityError, StoreError, OSError."""
        for start, end, arrived in self._blocks.clipped(self._journal.runs, offset, offset + length):
            if not arrived:
                yield from self._view.parts(start, end - start)
                continue
            for piece in range(start, end, PIECE):
                yield self._target.get(piece, min(PIECE, end - piece))

    def expect(self, offset: int, length: int) -> None:
        """The range will soon be read."""
        for start, end, arrived in self._blocks.clipped(self._journal.runs, offset, min(offset + length, self.size)):
            if not arrived:
                self._view.expect(start, end - start)

    def extents(self, offset: int, length: int, most: int | None = None) -> list[Stretch]:
        """The stretches of the range; written parts count as data."""
        found: list[Stretch] = []
        end_of_range = min(offset + length, self.size)
        for start, end, touched in self._blocks.clipped(self._journal.touched_runs, offset, end_of_range):
            if most is not None and len(found) >= most:
                break
            if touched:
                found.append(Stretch(end - start, hole=False, zero=False))
            else:
                found += self._view.extents(start, end - start, None if most is None else most - len(found))
        return found

    def write(self, offset: int, content: memoryview) -> None:
        """Put bytes there. Raises OSError; IntegrityError, StoreError if the rest of a chunk cannot be had."""
        end = offset + len(content)
        first, stop = self._blocks.touched(offset, end)
        rests = self._blocks.rests(offset, end, self._journal.has, self._view)
        with self.holding(first, stop):
            self._journal.touch(first, stop)
            for chunk, rest in rests.items():
                if not self._journal.has(chunk):
                    self._target.put(chunk * self.chunk_size, memoryview(rest))
            self._target.put(offset, content)
            self._journal.add(first, stop)

    def zero(self, offset: int, length: int, *, allocate: bool) -> None:
        """Make a range read as zeros; with `allocate` the space is taken. Raises as `write`."""
        end = offset + length
        for start, stop in self._blocks.edges(offset, end):
            self.write(start, memoryview(bytes(stop - start)))
        first, last = self._blocks.covered(offset, end)
        if first >= last:
            return
        with self.holding(first, last):
            self._journal.touch(first, last)
            end = min(last * self.chunk_size, self.size)
            self._target.clear(first * self.chunk_size, end, keep_space=allocate)
            self._journal.add(first, last)

    def trim(self, offset: int, length: int) -> None:
        """Whole chunks of the range become zeros without space. Raises OSError."""
        start, end = self._blocks.whole(offset, offset + length)
        if start < end:
            self.zero(start, end - start, allocate=False)

    def flush(self) -> None:
        """Make all that was written durable. Raises OSError."""
        self._journal.flush(self._target.sync)

    def settle(self) -> None:
        """Make everything durable, and have what is read next come from the target's disk. Raises OSError,
        SourceError."""
        self.flush()
        self._journal.synced(self._target.settle)

    # -- as what is being restored ------------------------------------------------------------------------------------

    def missing(self, first: int, end: int) -> list[int]:
        """The chunks of `[first, end)` that have not arrived."""
        runs = self._journal.runs(first, end)
        return [chunk for low, high, arrived in runs if not arrived for chunk in range(low, high)]

    def arrive(self, contents: Sequence[tuple[int, bytes]]) -> None:
        """Chunks of the repository, each written unless it has arrived meanwhile. Raises OSError."""
        for chunk, content in contents:
            with self.holding(chunk, chunk + 1):
                if not self._journal.has(chunk):
                    self._target.put(chunk * self.chunk_size, memoryview(content))
                    self._journal.add(chunk, chunk + 1)

    def arrive_as_zeros(self, first: int, end: int, *, hole: bool) -> None:
        """Chunks that read as zeros in the repository. Raises OSError."""
        with self.holding(first, end):
            for low, high, arrived in list(self._journal.runs(first, end)):
                if not arrived:
                    stop = min(high * self.chunk_size, self.size)
                    self._target.clear(low * self.chunk_size, stop, keep_space=not hole)
                    self._journal.add(low, high)

    @contextmanager
    def holding(self, first: int, end: int) -> Iterator[None]:
        """Nobody else changes these chunks meanwhile."""
        with self._busy.held(first, end):
            yield

    def untouched(self, first: int, end: int) -> list[tuple[int, int]]:
        """The parts of `[first, end)` that the guest has not written to: they are the repository's, byte for byte."""
        return [(low, high) for low, high, touched in self._journal.touched_runs(first, end) if not touched]


class _Busy:
    """Ranges of chunks that somebody is changing."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: list[tuple[int, int]] = []

    @contextmanager
    def held(self, first: int, end: int) -> Iterator[None]:
        """Wait until nobody holds any of `[first, end)`, and hold that."""
        with self._changed:
            self._changed.wait_for(lambda: all(end <= low or first >= high for low, high in self._held))
            self._held.append((first, end))
        try:
            yield
        finally:
            with self._changed:
                self._held.remove((first, end))
                self._changed.notify_all()
