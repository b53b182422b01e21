"""Filling a target with a volume: what it does not hold yet is fetched, and everything is proven (decision 0046).

The id of each chunk is computed once, from what the target reads back from its disk. Past the page cache that is done
with each piece at once, while other threads decode; elsewhere at the end, when everything has been written out.
"""

from __future__ import annotations

from array import array
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from lamella.base.errors import SourceError
from lamella.base.ids import ChunkId
from lamella.crypto.chunk_id import Identify
from lamella.format.node import Slot
from lamella.operations.shared.ranges import RANGE, ThreadBuffers, is_zero
from lamella.operations.shared.streaming import ChunkBatch, VolumeStream
from lamella.packs.tree import SlotRun
from lamella.sources.target import Target

Row = tuple[int, ChunkId]
"""A DATA chunk: its number and id."""


class Filled(NamedTuple):
    """The figures of one piece of a volume. Bytes."""

    chunks: int
    """Its DATA chunks, a number."""
    data: int
    written: int
    proven: list[Row]
    """The chunks whose contents were seen on the target's disk."""
    proven_bytes: int


class Filling:
    """Fills one target with one volume. `fill` and `prove` may be called from several threads."""

    def __init__(self, stream: VolumeStream, identify: Identify, target: Target) -> None:
        self._stream = stream
        self._identify = identify
        self._target = target
        self._log2 = stream.shape.chunk_log2
        self._decoded = ThreadBuffers(stream.shape.chunk_size)
        # Never the same memory: what a read leaves as it was must not pass for what was read.
        self._read = ThreadBuffers(stream.shape.chunk_size)
        self._proven = array("Q")  # first chunk and end of each run, ascending
        self._left = 0

    def pieces(self) -> Iterator[ChunkBatch | SlotRun]:
        """The arguments of `fill`."""
        return self._stream.pieces(data_only=self._target.starts_zeroed)

    def fill(self, piece: ChunkBatch | SlotRun) -> Filled:
        """Make a piece of the target what it must be. Raises IntegrityError, StoreError, SourceError."""
        if isinstance(piece, SlotRun):
            (self._target.punch if piece.slot == Slot.HOLE else self._target.zero)(*self._stream.span(*piece[:2]))
            return Filled(0, 0, 0, [], 0)
        held = {row for run in adjoining(piece.chunks) for row in self._right(run)} if self._target.holds else set()
        missing = [row for row in piece.chunks if row not in held] if held else piece.chunks
        written = self._write(missing)
        proven = sorted([*held, *(row for run in adjoining(missing) for row in self._proven_now(run))])
        return Filled(len(piece.chunks), self._bytes(piece.chunks), written, proven, self._bytes(proven))

    def note(self, part: Filled) -> None:
        """Take in what came of a piece, in the order of the pieces."""
        self._left += part.chunks - len(part.proven)
        for run in adjoining(part.proven):
            if self._proven and self._proven[-1] == run[0][0]:
                self._proven[-1] = run[-1][0] + 1
            else:
                self._proven.extend((run[0][0], run[-1][0] + 1))

    def unproven(self) -> Iterator[ChunkBatch | SlotRun]:
        """The arguments of `prove`, after the target has settled: everything that no noted part has proven."""
        if not self._left:  # the manifest need not be read again
            yield from self._between()
            return
        for piece in self._stream.pieces():
            if isinstance(piece, SlotRun):
                yield piece
            elif left := tuple(row for row in piece.chunks if bisect(self._proven, row[0]) % 2 == 0):
                yield ChunkBatch(left)

    def _between(self) -> Iterator[SlotRun]:
        """Everything but the proven chunks, as runs of zeros."""
        bounds = iter((0, *self._proven, self._stream.shape.chunks))
        yield from (SlotRun(first, end, Slot.ZERO) for first, end in zip(bounds, bounds, strict=True) if first < end)

    def prove(self, piece: ChunkBatch | SlotRun) -> int:
        """Compare what the target reads back. Returns the bytes compared; raises IntegrityError for a difference."""
        if isinstance(piece, SlotRun):
            start, end = self._stream.span(piece.first, piece.end)
            if (offset := self._not_zero(start, end)) is not None:
                from lamella.operations.restore.differing import difference  # hardly ever

                raise difference(self._target, offset)
            return end - start
        for run in adjoining(piece.chunks):
            self._proof(run)
        return self._bytes(piece.chunks)

    # -- writing ------------------------------------------------------------------------------------------------------

    def _write(self, rows: Sequence[Row]) -> int:
        """Decode chunks into one buffer, and write neighbours together. Returns the bytes written."""
        buffer = self._decoded.view(len(rows) << self._log2) if rows else memoryview(b"")
        places: dict[ChunkId, list[int]] = {}
        for place, (_, id_) in enumerate(rows):
            places.setdefault(id_, []).append(place << self._log2)
        for id_, content in self._stream.decode(rows) if rows else ():
            for place in places[id_]:
                buffer[place : place + len(content)] = content
        position = 0
        for run in adjoining(rows):
            start, end = self._span(run)
            self._target.write(start, buffer[position : position + end - start])
            position += len(run) << self._log2
        return self._bytes(rows)

    # -- proving ------------------------------------------------------------------------------------------------------

    def _right(self, run: Sequence[Row]) -> list[Row]:
        """The chunks of a run that the target holds already, as its disk reads back."""
        stored = [(low >> self._log2, high - 1 >> self._log2) for low, high in self._target.stored(*self._span(run))]
        kept: list[Row] = []
        for part in adjoining([row for row in run if any(low <= row[0] <= high for low, high in stored)]):
            with suppress(SourceError):  # what the disk cannot read any more is written again, and proven then
                kept += [row for row, now in self._contents(part) if not is_zero(now) and self._identify(now) == row[1]]
        return kept

    def _proven_now(self, run: Sequence[Row]) -> Sequence[Row]:
        """The run if it can be proven before the target has settled, else nothing."""
        # Asked again afterwards: a disk that refuses direct access is found out while it is read.
        return run if self._is_direct(run) and self._proof(run) and self._is_direct(run) else ()

    def _proof(self, run: Sequence[Row]) -> Sequence[Row]:
        """The run, after its ids were recomputed from what the target reads back."""
        wrong = [(row, bytes(content)) for row, content in self._contents(run) if self._identify(content) != row[1]]
        for row, held in wrong:
            from lamella.operations.restore.differing import look_again  # hardly ever

            look_again(self._stream, self._target, row, held)
        return run

    def _not_zero(self, start: int, end: int) -> int | None:
        """Where about `[start, end)` is anything but zeros; None if it is nothing else."""
        for low, high in self._target.stored(start, end):
            for offset in range(low, high, RANGE):
                view = self._read.view(min(RANGE, high - offset))
                self._target.read_into(offset, view)
                if not is_zero(view):
                    return offset
        return None

    def _contents(self, run: Sequence[Row]) -> Iterator[tuple[Row, memoryview]]:
        """Each chunk of a run with what the target reads back, until the next is asked for."""
        start, end = self._span(run)
        view = self._read.view(end - start)
        self._target.read_into(start, view)
        for place, row in enumerate(run):
            yield row, view[place << self._log2 : place + 1 << self._log2]

    def _bytes(self, rows: Sequence[Row]) -> int:
        return sum(end - start for start, end in map(self._span, adjoining(rows)))

    def _is_direct(self, run: Sequence[Row]) -> bool:
        return self._target.is_direct(*self._span(run))

    def _span(self, run: Sequence[Row]) -> tuple[int, int]:
        return self._stream.span(run[0][0], run[-1][0] + 1)


def adjoining(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Cut ascending chunks into runs without a gap."""
    first = 0
    for place in range(1, len(rows) + 1):
        if place == len(rows) or rows[place][0] != rows[place - 1][0] + 1:
            yield rows[first:place]
            first = place
