"""The difference between a snapshot and its live source: with a checkpoint, only ranges that can differ are read."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, UsageError
from lamella.base.events import Progress, Reporter, silent
from lamella.base.extents import chunk_ranges
from lamella.format.node import Shape, Slot, SlotValue
from lamella.history.catalogue import Snapshot
from lamella.operations.look.diff import DiffResult, summed
from lamella.operations.moments.monitor import delta_from
from lamella.operations.shared.kept import kept_moment
from lamella.operations.shared.ranges import RANGE, ThreadBuffers, is_zero
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.streaming import identify_chunk
from lamella.packs.tree_changes import changes
from lamella.repository.repository import Repository
from lamella.run.pipeline import default_workers, ordered_map
from lamella.sources.base import FrozenVolume, Source

INCREMENTAL, COMPARE = "incremental", "compare"
_Range = tuple[int, int, str]
"""First chunk, end, kind."""


@dataclass(frozen=True, slots=True)
class SourceDiff:
    """The difference, how it was found ("incremental" or "compare", and why not incremental), and what was read."""

    result: DiffResult
    mode: str
    reason: str
    read_bytes: int


class _Kept(NamedTuple):
    """A snapshot whose bytes a checkpoint holds, and what may have changed since."""

    snapshot: Snapshot
    delta: Delta


def compare_source(
    repo: Repository,
    one: Selected,
    source: Source,
    *,
    lock_wait: float = 0.0,
    workers: int | None = None,
    reporter: Reporter = silent,
) -> SourceDiff:
    """Compare a snapshot with a source; ranges are of the source.

    Raises UsageError, IntegrityError, StoreError, Locked, SourceError, SourceAtRisk.
    """
    if not one.snapshot.added.usable:
        raise UsageError("this snapshot needs a newer version of lamella", obj=one.text)
    repo.refresh_map()
    with repo.host.source_lock(source.identity, lock_wait), source.freeze() as frozen:
        comparing = _Comparing(repo, one, frozen)
        kept, reason = _kept(repo, one, source, frozen)
        found = comparing.all() if kept is None else comparing.since(kept)
        pieces: list[_Range] = []
        for piece in ordered_map(comparing.differing, found, workers=workers or default_workers()):
            pieces += piece
            reporter(Progress("diff", one.volume_name, comparing.read_bytes, frozen.size))
        if kept is not None:
            pieces = sorted([*pieces, *comparing.between(kept)])
        frozen.consistency()  # raises if the source changed its size or vanished meanwhile
    mode = COMPARE if kept is None else INCREMENTAL
    result = summed(one.snapshot.added.size, comparing.shape, comparing.ranges(pieces))
    return SourceDiff(result, mode, reason, comparing.read_bytes)


def _kept(repo: Repository, one: Selected, source: Source, frozen: FrozenVolume) -> tuple[_Kept | None, str]:
    """The snapshot of the volume that a checkpoint of the source belongs to, or None and the reason in words."""
    if not source.tracks:
        return None, "its storage cannot tell what changed"
    try:
        entry, snapshot = kept_moment(repo, one)
        if (entry.identity, entry.driver) != (source.identity, source.driver):
            return None, "the checkpoint belongs to another source or driver"
        delta = delta_from(repo.host, source, frozen, entry.checkpoint, 1 << entry.chunk_log2)
    except CheckpointLost as error:
        return None, error.message
    if (delta.base_size, delta.size, delta.grain) != (entry.size, frozen.size, 1 << entry.chunk_log2):
        return None, "the checkpoint has another size than the snapshot it belongs to"
    return _Kept(snapshot, delta), ""


class _Comparing:
    """One snapshot beside one frozen source. `differing` may be called from several threads."""

    def __init__(self, repo: Repository, one: Selected, frozen: FrozenVolume) -> None:
        added = one.snapshot.added
        self._repo = repo
        self._frozen = frozen
        self._tree = repo.tree(one.snapshot)
        self._domain_id = added.domain_id
        self._identify = identify_chunk(repo, one)
        self._local = threading.local()
        self._lock = threading.Lock()
        self.shape = Shape(added.volume_id, frozen.size, added.chunk_log2)
        self._buffers = ThreadBuffers(self.shape.chunk_size)
        self.read_bytes = 0

    def all(self) -> Iterator[tuple[int, int, bool]]:
        """Everything: what the source has space for is read, the rest reads as zero."""
        position = 0
        for first, end in chunk_ranges(self._frozen.allocated(), self.shape.chunk_size):
            yield from self._cut([(position, first)], reads=False)
            yield from self._cut([(first, end)], reads=True)
            position = end
        yield from self._cut([(position, self.shape.chunks)], reads=False)

    def since(self, kept: _Kept) -> Iterator[tuple[int, int, bool]]:
        """The ranges that may have changed since a checkpoint."""
        yield from self._cut(kept.delta.changed.runs(), reads=True)
        yield from self._cut(kept.delta.zeroed.runs(), reads=False)

    def between(self, kept: _Kept) -> Iterator[_Range]:
        """The ranges unchanged since the checkpoint that differ between its snapshot and the compared snapshot."""
        touched: ChunkSet = kept.delta.changed | kept.delta.zeroed
        reader = self._repo.tree_reader(self._domain_id)
        for run, old in changes(reader, self._tree, self._repo.tree(kept.snapshot)):
            for chunk in range(run.first, min(run.end, self.shape.chunks)):
                kind = _kind(old, run.slot)
                if kind and chunk not in touched:
                    yield chunk, chunk + 1, kind

    def _cut(self, runs: Iterable[tuple[int, int]], *, reads: bool) -> Iterator[tuple[int, int, bool]]:
        step = max(1, RANGE >> self.shape.chunk_log2) if reads else 4096
        for first, end in runs:
            for start in range(first, end, step):
                yield start, min(start + step, end), reads

    def differing(self, piece: tuple[int, int, bool]) -> list[_Range]:
        """The chunks of a piece that differ. Raises SourceError, IntegrityError."""
        first, end, reads = piece
        slots = self._slots(first, end)
        if not reads:
            return [(number, number + 1, "zero") for number, slot in enumerate(slots, first) if isinstance(slot, bytes)]
        start = first << self.shape.chunk_log2
        view = self._buffers.view(min(end << self.shape.chunk_log2, self.shape.size) - start)
        self._frozen.read_into(start, view)
        with self._lock:
            self.read_bytes += len(view)
        found: list[_Range] = []
        for number, slot in enumerate(slots, first):
            at = (number << self.shape.chunk_log2) - start
            part = view[at : at + self.shape.chunk_length(number)]
            new: SlotValue = Slot.ZERO if is_zero(part) else self._identify(part)
            kind = _kind(slot, new)
            found += [(number, number + 1, kind)] if kind else []
        return found

    def _slots(self, first: int, end: int) -> list[SlotValue]:
        """The snapshot's slots there; holes beyond its end."""
        reader = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = self._repo.tree_reader(self._domain_id)
        slots: list[SlotValue] = []
        for run in reader.runs(self._tree, first, end):
            slots += [run.slot] * (run.end - run.first)
        return slots + [Slot.HOLE] * (end - first - len(slots))

    def ranges(self, pieces: Iterable[_Range]) -> Iterator[tuple[int, int, str]]:
        """Chunks as bytes of the source."""
        for first, end, kind in pieces:
            start = first << self.shape.chunk_log2
            yield start, min(end << self.shape.chunk_log2, self.shape.size) - start, kind


def _kind(old: SlotValue, new: SlotValue) -> str:
    """The kind of difference of a chunk: "data", "zero", or none. Holes and zeros read the same."""
    if isinstance(new, bytes):
        return "" if new == old else "data"
    return "zero" if isinstance(old, bytes) else ""
