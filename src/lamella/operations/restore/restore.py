"""Restoring a volume: plan, write, re-read everything and compare, and only then give it its name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lamella.base.errors import IntegrityError, LamellaError, UsageError
from lamella.base.events import Progress, Reporter, Warned, silent
from lamella.crypto.chunk_id import Identify
from lamella.format.node import Slot
from lamella.operations.shared.ranges import RANGE, ThreadBuffers, is_zero
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.streaming import ChunkBatch, VolumeStream, identify_chunk
from lamella.packs.tree import SlotRun
from lamella.repository.repository import Repository
from lamella.run.pipeline import default_workers, ordered_map
from lamella.sources.base import PoolLimits
from lamella.sources.target import OldState, Target
from lamella.sources.targets import choose_target


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """How to restore. `overwrite` consents to replacing what is at the target; `in_place` gives up its old state."""

    workers: int | None = None
    overwrite: bool = False
    in_place: bool = False
    pool: str | None = None
    """The thin pool of a new thin volume."""
    pool_limits: PoolLimits | None = None


@dataclass(slots=True)
class RestoreResult:
    """A volume that was restored and compared."""

    path: Path
    bytes_written: int
    compared_bytes: int
    tail_bytes: int
    seconds: float


def plain_bytes(count: int) -> str:
    """A number of bytes, to the byte."""
    return f"{count} bytes"


def plan_restore(
    repo: Repository, selected: Selected, target: Path, options: RestoreOptions | None = None
) -> RestorePlan:
    """Decide how a volume would be restored. Raises UsageError, IntegrityError, StoreError."""
    if not selected.snapshot.added.usable:
        raise UsageError("this snapshot needs a newer version of lamella", obj=selected.text)
    repo.refresh_map()
    return RestorePlan(repo, selected, target, options or RestoreOptions())


def data_bytes(repo: Repository, selected: Selected) -> int:
    """What a restore writes at most: the chunks of a snapshot that hold data. Raises IntegrityError, StoreError."""
    repo.refresh_map()
    tree = repo.tree(selected.snapshot)
    shape = tree.shape
    root = repo.tree_reader(selected.snapshot.added.domain_id).node(shape, tree.root, shape.depth - 1, 0)
    return min(root.data_below * shape.chunk_size, shape.size)


class RestorePlan:
    """What a restore will do."""

    def __init__(self, repo: Repository, selected: Selected, path: Path, options: RestoreOptions) -> None:
        self._repo = repo
        self._selected = selected
        self._options = options
        self._stream = VolumeStream(repo, selected)
        self._target: Target = choose_target(
            path,
            overwrite=options.overwrite,
            in_place=options.in_place,
            pool=options.pool,
            limits=options.pool_limits,
        )
        self.target = path
        self.volume = selected.volume_name
        self.snapshot = selected.snapshot.name
        self.size = self._stream.shape.size
        self.data_bytes = data_bytes(repo, selected)
        self.in_place = self._target.old_state == OldState.LOST
        self.replaces = self._target.old_state != OldState.NONE

    def lines(self, shown: Callable[[int], str] = plain_bytes) -> list[str]:
        """The plan for people; `shown` writes a number of bytes."""
        if self.in_place:
            how = f"{self.target} is overwritten in place; its old state is lost, and mixed if this is interrupted"
        elif self.replaces:
            how = f"{self.target} is replaced once the restored volume has been compared"
        else:
            link = self.target.is_symlink()
            how = f"{self.target.resolve()} is created" + (f", to which {self.target} leads" if link else "")
        return [
            f"restore {self._selected.text}: {shown(self.size)}, of which at most {shown(self.data_bytes)} are data",
            how,
        ]

    def execute(self, reporter: Reporter = silent) -> RestoreResult:
        """Do it. What cannot be completed stays under a name that says so.

        Raises UsageError or SourceError for the target, IntegrityError if anything cannot be read or compares wrong.
        """
        started = time.monotonic()
        target = self._target
        target.prepare(self.size, self.data_bytes)
        try:
            written = self._write(reporter)
            target.settle()
            compared = self._compare(reporter)
            target.finish()
            for note in target.notes:
                reporter(Warned(note, str(target.path)))
        except LamellaError as error:
            left = target.abandon()
            error.hint = error.hint or f"what was restored so far is in {left}"
            raise
        except BaseException:
            target.abandon()
            raise
        return RestoreResult(target.path, written, compared, target.tail_bytes, round(time.monotonic() - started, 3))

    def _write(self, reporter: Reporter) -> int:
        written = 0
        pieces = self._stream.pieces(data_only=self._target.starts_zeroed)
        for done, end in ordered_map(self._write_piece, pieces, workers=self._workers):
            written += done
            reporter(Progress("restore", self.volume, self._stream.span(0, end)[1], self.size))
        return written

    @property
    def _workers(self) -> int:
        return self._options.workers or default_workers()

    def _write_piece(self, piece: ChunkBatch | SlotRun) -> tuple[int, int]:
        """Bytes written and the chunk behind them."""
        if isinstance(piece, SlotRun):
            clear = self._target.punch if piece.slot == Slot.HOLE else self._target.zero
            clear(*self._stream.span(piece.first, piece.end))
            return 0, piece.end
        contents = self._stream.fetch(piece)
        written = 0
        for chunk, id_ in piece.chunks:
            content = contents[id_]
            self._target.write(chunk << self._stream.shape.chunk_log2, content)
            written += len(content)
        return written, piece.chunks[-1][0] + 1

    def _compare(self, reporter: Reporter) -> int:
        compared = 0
        identify = identify_chunk(self._repo, self._selected)
        comparison = _TargetComparison(self._stream, identify, self._target)
        for done, end in ordered_map(comparison.compare, comparison.ranges(), workers=self._workers):
            compared += done
            reporter(Progress("compare", self.volume, self._stream.span(0, end)[1], self.size))
        return compared


class _TargetComparison:
    """Compares what a target reads back with the manifest, to the last byte."""

    def __init__(self, stream: VolumeStream, identify: Identify, target: Target) -> None:
        self._stream = stream
        self._identify = identify
        self._target = target
        self._buffers = ThreadBuffers(stream.shape.chunk_size)

    def ranges(self) -> Iterator[tuple[SlotRun, ...]]:
        """Adjoining DATA chunks, together at most one range, or one run of zeros."""
        per_range = max(1, RANGE >> self._stream.shape.chunk_log2)
        batch: list[SlotRun] = []
        for run in self._stream.runs():
            is_data = isinstance(run.slot, bytes)
            if batch and (not is_data or len(batch) == per_range):
                yield tuple(batch)
                batch = []
            if is_data:
                batch.append(run)
            else:
                yield (run,)
        if batch:
            yield tuple(batch)

    def compare(self, runs: tuple[SlotRun, ...]) -> tuple[int, int]:
        """Bytes compared and the chunk behind them. Raises IntegrityError at the first difference."""
        first, last = self._stream.span(runs[0].first, runs[-1].end)
        if not isinstance(runs[0].slot, bytes):
            self._compare_zeros(first, last)
            return last - first, runs[-1].end
        view = self._read(first, last - first)
        for run in runs:
            start, end = self._stream.span(run.first, run.end)
            if self._identify(view[start - first : end - first]) != run.slot:
                raise self._difference(start)
        return last - first, runs[-1].end

    def _compare_zeros(self, start: int, end: int) -> None:
        for low, high in self._target.stored(start, end):
            for offset in range(low, high, RANGE):
                if not is_zero(self._read(offset, min(RANGE, high - offset))):
                    raise self._difference(offset)

    def _read(self, offset: int, length: int) -> memoryview:
        view = self._buffers.view(length)
        self._target.read_into(offset, view)
        return view

    def _difference(self, offset: int) -> IntegrityError:
        where = self._target.working_path
        return IntegrityError(f"{where} does not hold what was written at offset {offset}", obj=str(where))
