"""Bringing the rest of a volume into a target that a guest uses already, and proving what the guest left alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lamella.base.errors import IntegrityError, LamellaError
from lamella.base.events import Progress, Reporter, Warned
from lamella.base.ids import ChunkId
from lamella.crypto.chunk_id import Identify
from lamella.format.node import Slot
from lamella.operations.access.instant.disk import InstantDisk
from lamella.operations.shared.ranges import RANGE, ThreadBuffers, is_zero
from lamella.operations.shared.streaming import ChunkBatch, VolumeStream
from lamella.packs.tree import SlotRun
from lamella.run.pipeline import default_workers, ordered_map
from lamella.sources.served_target import ServedTarget

PAUSE_SECONDS = 15.0
"""After trouble with the repository or the target, before what is missing is tried again; longer each time."""
_LONGEST_PAUSE = 600.0
FLUSH_BYTES = 64 * 1024 * 1024
"""After so many bytes the target is made durable: a guest's flush has to wait for no more than these."""
_ZEROS_AT_ONCE = 64 * 1024 * 1024
_SAMPLE = 16

Row = tuple[int, ChunkId]
Piece = ChunkBatch | SlotRun
Trouble = LamellaError | OSError


class Telling(NamedTuple):
    """The receiver of progress, the number of data bytes and the volume's name; and the number of threads."""

    reporter: Reporter
    name: str
    total_bytes: int
    workers: int | None = None


class Arrival:
    """The rest of one volume on its way. `run` belongs to one thread, `stop` to any.

    Trouble is told once, and what it concerns is tried again: the guest goes on with what can be had.
    """

    def __init__(
        self, disk: InstantDisk, stream: VolumeStream, identify: Identify, target: ServedTarget, telling: Telling
    ) -> None:
        self.trouble: Trouble | None = None
        """The reasons that keep the volume from being complete, as far as they are known."""
        self._disk = disk
        self._stream = stream
        self._identify = identify
        self._target = target
        self._reporter, self._name, self._total = telling.reporter, telling.name, telling.total_bytes
        self._workers = telling.workers or max(2, default_workers())
        self._buffers = ThreadBuffers(stream.shape.chunk_size)
        self._stopped = threading.Event()
        self._told: set[str] = set()

    def run(self, complete: Callable[[], None]) -> None:
        """Bring everything, prove it, and call `complete`; until that is done, or `stop` is called. Never raises."""
        steps: tuple[Callable[[], Trouble | None], ...] = (
            lambda: self._each("restore", self.bring),
            self._prove_all,
            lambda: _completed(complete),
        )
        for step in steps:
            pause = PAUSE_SECONDS
            while not self._stopped.is_set():
                self.trouble = step()
                if self.trouble is None:
                    break
                self._tell(self.trouble)
                self._stopped.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def stop(self) -> None:
        """Have `run` return soon."""
        self._stopped.set()

    def require_same_target(self) -> None:
        """Compare a few chunks that the target must hold: a journal goes with its own disk only.

        Raises IntegrityError if most of them differ, StoreError, SourceError.
        """
        seen = wrong = 0
        for piece in self._stream.pieces(data_only=True):
            assert isinstance(piece, ChunkBatch)
            rows = [row for row in piece.chunks if not self._disk.missing(row[0], row[0] + 1)]
            rows = [row for row in rows if self._disk.untouched(row[0], row[0] + 1)][: _SAMPLE - seen]
            seen += len(rows)
            wrong += len(self._wrong(rows))
            if seen >= _SAMPLE:
                break
        if 2 * wrong > seen:
            where = str(self._target.path)
            hint = "name the target that this restore was begun with"
            raise IntegrityError(f"{where} does not hold what its journal says", obj=where, hint=hint)

    # -- bringing -----------------------------------------------------------------------------------------------------

    def bring(self, piece: Piece) -> None:
        """Have a piece arrive, as far as it is missing. Raises IntegrityError, StoreError, OSError."""
        if isinstance(piece, SlotRun):
            for first in range(piece.first, piece.end, self._zeros_step):
                end = min(first + self._zeros_step, piece.end)
                self._disk.arrive_as_zeros(first, end, hole=piece.slot == Slot.HOLE)
            return
        missing = set(self._disk.missing(piece.chunks[0][0], piece.chunks[-1][0] + 1))
        rows = [row for row in piece.chunks if row[0] in missing]
        if not rows:
            return
        try:
            self._arrive(rows)
        except IntegrityError:  # one of them is damaged, the others can be had
            if len(rows) == 1:
                raise
            self._one_by_one(rows)

    def _arrive(self, rows: Sequence[Row]) -> None:
        contents = self._stream.fetch(ChunkBatch(tuple(rows)))
        self._disk.arrive([(chunk, contents[id_]) for chunk, id_ in rows])

    def _one_by_one(self, rows: Sequence[Row]) -> None:
        damage: IntegrityError | None = None
        for row in rows:
            try:
                self._arrive([row])
            except IntegrityError as error:
                damage = damage or error
        if damage is not None:
            raise damage

    # -- proving ------------------------------------------------------------------------------------------------------

    def _prove_all(self) -> Trouble | None:
        try:
            self._disk.settle()
        except (LamellaError, OSError) as error:
            return error
        return self._each("compare", self.prove)

    def prove(self, piece: Piece) -> None:
        """Compare what the guest left alone with what the disk reads back. Raises IntegrityError."""
        if isinstance(piece, SlotRun):
            for first in range(piece.first, piece.end, self._zeros_step):
                with self._disk.holding(first, min(first + self._zeros_step, piece.end)):
                    self._prove_zeros(first, min(first + self._zeros_step, piece.end))
            return
        first, end = piece.chunks[0][0], piece.chunks[-1][0] + 1
        with self._disk.holding(first, end):
            ours = {chunk for low, high in self._disk.untouched(first, end) for chunk in range(low, high)}
            for row in self._wrong([row for row in piece.chunks if row[0] in ours]):
                self._put_right(row)

    def _wrong(self, rows: Sequence[Row]) -> list[Row]:
        """The chunks that the target does not read back as they were restored."""
        found: list[Row] = []
        for row in rows:
            low, high = self._stream.span(row[0], row[0] + 1)
            buffer = self._buffers.view(high - low)
            self._target.read_into(low, buffer)
            if self._identify(buffer) != row[1]:
                found.append(row)
        return found

    def _put_right(self, row: Row) -> None:
        """Write a chunk again, which was right when it arrived. Raises IntegrityError if that does not help."""
        start, _ = self._stream.span(row[0], row[0] + 1)
        where = f"{self._target.working_path} did not hold what was written at offset {start}"
        self._target.put(start, memoryview(self._stream.fetch(ChunkBatch((row,)))[row[1]]))
        self._disk.settle()
        if self._wrong([row]):
            raise IntegrityError(where, obj=str(self._target.path), hint="its disk fails, or this machine's memory")
        self._tell(LamellaError(f"{where}: it was written again"))

    def _prove_zeros(self, first: int, end: int) -> None:
        for low, high in self._disk.untouched(first, end):
            for start, stop in self._target.stored(*self._stream.span(low, high)):
                for offset in range(start, stop, RANGE):
                    buffer = self._buffers.view(min(RANGE, stop - offset))
                    self._target.read_into(offset, buffer)
                    if not is_zero(buffer):
                        message = f"{self._target.working_path} does not read as zeros at offset {offset}"
                        raise IntegrityError(message, obj=str(self._target.path), hint="its disk fails")

    # -- what both share ----------------------------------------------------------------------------------------------

    @property
    def _zeros_step(self) -> int:
        return max(1, _ZEROS_AT_ONCE >> self._stream.shape.chunk_log2)

    def _each(self, stage: str, work: Callable[[Piece], None]) -> Trouble | None:
        """Do this with every piece, beside each other; what went wrong last. Damage lets the others go on."""
        damage: Trouble | None = None
        done = flushed = 0
        results = ordered_map(self._tried(work), self._pieces(), workers=self._workers)
        try:
            for size, trouble in results:
                done += size
                damage = trouble or damage
                if self._stopped.is_set() or not (trouble is None or isinstance(trouble, IntegrityError)):
                    return damage
                self._reporter(Progress(stage, self._name, min(done, self._total), self._total))
                if done - flushed >= FLUSH_BYTES:
                    self._disk.flush()
                    flushed = done
        except (LamellaError, OSError) as error:
            return error
        finally:
            results.close()
        return damage

    def _pieces(self) -> Iterator[Piece]:
        for piece in self._stream.pieces():
            if self._stopped.is_set():
                return
            yield piece

    def _tried(self, work: Callable[[Piece], None]) -> Callable[[Piece], tuple[int, Trouble | None]]:
        def tried(piece: Piece) -> tuple[int, Trouble | None]:
            size = 0 if isinstance(piece, SlotRun) else len(piece.chunks) << self._stream.shape.chunk_log2
            try:
                work(piece)
            except (LamellaError, OSError) as error:
                return size, error
            return size, None

        return tried

    def _tell(self, trouble: Trouble) -> None:
        message = trouble.message if isinstance(trouble, LamellaError) else trouble.strerror or str(trouble)
        if message not in self._told:
            self._told.add(message)
            self._reporter(Warned(message, trouble.obj if isinstance(trouble, LamellaError) else ""))


def _completed(complete: Callable[[], None]) -> Trouble | None:
    try:
        complete()
    except (LamellaError, OSError) as error:
        return error
    return None
