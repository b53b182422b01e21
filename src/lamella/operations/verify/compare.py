"""Comparing every byte of a snapshot: with itself, as a restore would fetch it, or with its live source.

Without a target each chunk is opened and its id recomputed; from the ids the manifest is rebuilt, and its root must
be the one of the snapshot. Differences from a live source are news, not damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from lamella.base.errors import (
    IntegrityError,
    LamellaError,
    ObjectCold,
    SourceError,
    StoreUnavailable,
    UnknownFormat,
    shown_bytes,
)
from lamella.base.events import Progress, Reporter
from lamella.base.extents import chunk_ranges
from lamella.base.ids import ChunkId
from lamella.crypto.chunk_id import identifier
from lamella.format.container import Kind
from lamella.format.node import Slot
from lamella.operations.shared.findings import VerifyResult
from lamella.operations.shared.live_source import live_source
from lamella.operations.shared.ranges import RANGE, ThreadBuffers, is_zero
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.streaming import ChunkBatch, VolumeStream, identify_chunk, read_document
from lamella.packs.tree import SlotRun
from lamella.packs.tree_writer import TreeWriter
from lamella.repository.repository import Repository
from lamella.run.pipeline import ordered_map
from lamella.sources.base import FrozenVolume, Source


@dataclass(slots=True)
class _Fetched:
    """A piece as it came back: runs with the ids of what was read, and what could not be read."""

    runs: list[SlotRun]
    read_bytes: int = 0
    troubles: list[str] = field(default_factory=list)


def compare_restore(repo: Repository, one: Selected, result: VerifyResult, reporter: Reporter, workers: int) -> None:
    """Fetch and compare one snapshot of a volume with its documents. Raises StoreUnavailable."""
    comparing = _RestoreComparison(repo, one, result, reporter)
    troubles: list[tuple[str, str]] = []
    try:
        comparing.volume(workers)
    except StoreUnavailable:
        raise
    except ObjectCold as error:  # a part of the manifest
        result.must_thaw(error.obj)
    except (IntegrityError, UnknownFormat) as error:
        troubles.append(("tree", error.message))
    troubles += [("chunk", text) for text in comparing.troubles]
    for document in one.snapshot.added.documents:
        try:
            result.checked_bytes += len(read_document(repo, one, document.name))
        except StoreUnavailable:
            raise
        except ObjectCold as error:
            result.must_thaw(error.obj)
        except LamellaError as error:
            troubles.append(("document", f"document {document.name} cannot be read: {error.message}"))
    for kind, message in troubles:
        result.damage(kind, one.text, message)
    if troubles:
        result.cannot_restore(one.text)


class _RestoreComparison:
    def __init__(self, repo: Repository, one: Selected, result: VerifyResult, reporter: Reporter) -> None:
        self._repo = repo
        self._one = one
        self._result = result
        self._reporter = reporter
        self._stream = VolumeStream(repo, one)
        self._identify = identify_chunk(repo, one)
        self.troubles: list[str] = []

    def volume(self, workers: int) -> None:
        """Raises IntegrityError if the manifest cannot be read, or is not the one its chunks make."""
        reader = self._repo.tree_reader(self._stream.domain_id)
        built = TreeWriter(reader, self._node_id).update(self._stream.shape, None, self._runs(workers))
        if not self.troubles and built != self._stream.tree.root:
            raise IntegrityError("the manifest is not the one that its chunks make", obj=self._one.text)

    def _node_id(self, kind: Kind, content: bytes) -> ChunkId:
        return identifier(self._repo.keys.domain(self._stream.domain_id), kind)(content)

    def _runs(self, workers: int) -> Iterator[SlotRun]:
        for fetched in ordered_map(self._fetch, self._stream.pieces(), workers=workers):
            self.troubles += fetched.troubles
            self._result.checked_bytes += fetched.read_bytes
            yield from fetched.runs
            self._result.checked_chunks += sum(isinstance(run.slot, bytes) for run in fetched.runs)
            _, end = self._stream.span(0, fetched.runs[-1].end)
            self._reporter(Progress("verify", self._one.text, end, self._stream.shape.size))

    def _fetch(self, piece: ChunkBatch | SlotRun) -> _Fetched:
        if isinstance(piece, SlotRun):
            return _Fetched([piece])
        contents: dict[ChunkId, bytes] = {}
        fetched = _Fetched([SlotRun(chunk, chunk + 1, id_) for chunk, id_ in piece.chunks])
        try:
            contents |= self._stream.fetch(piece)
        except StoreUnavailable:
            raise
        except LamellaError:
            fetched.troubles = self._one_by_one(piece, contents)
        # Not the id that was asked for but the one of what came: the comparison is with the root.
        known = {id_: self._identify(content) for id_, content in contents.items()}
        # Where a chunk is stored as a difference, its slot says so beside its id.
        came = ((chunk, id_, known.get(id_, id_)) for chunk, id_ in piece.chunks)
        fetched.runs = [SlotRun(chunk, chunk + 1, id_ if same == id_ else same) for chunk, id_, same in came]
        fetched.read_bytes = sum(map(len, contents.values()))
        return fetched

    def _one_by_one(self, piece: ChunkBatch, contents: dict[ChunkId, bytes]) -> list[str]:
        """Fetch what can be had of a piece; what cannot, by its bytes."""
        troubles: list[str] = []
        for chunk, id_ in piece.chunks:
            start, end = self._stream.span(chunk, chunk + 1)
            try:
                contents |= self._stream.fetch(ChunkBatch(((chunk, id_),)))
            except StoreUnavailable:
                raise
            except ObjectCold as error:
                self._result.must_thaw(error.obj)
            except LamellaError as error:
                troubles.append(f"bytes {start} to {end}: {error.message}")
        return troubles


def compare_with_source(
    repo: Repository, one: Selected, source: Source | None, result: VerifyResult, reporter: Reporter, workers: int
) -> bool:
    """Read the source and compare it with the snapshot; each differing range becomes a note.

    False, and a note, if the source could not be read.
    """
    try:
        live = source if source is not None else live_source(repo, one)
        with live.freeze() as frozen:
            comparing = _SourceComparison(repo, one, frozen)
            compared = 0
            differing: list[tuple[int, int]] = []
            for length, different in ordered_map(comparing.compare, comparing.pieces(), workers=workers):
                compared += length
                for start, end in different:
                    if differing and differing[-1][1] == start:
                        differing[-1] = (differing[-1][0], end)
                    else:
                        differing.append((start, end))
                reporter(Progress("verify", one.text, compared, frozen.size))
            if grown := frozen.size - one.snapshot.added.size:
                how = "larger" if grown > 0 else "smaller"
                result.note("source", one.text, f"the source is {shown_bytes(abs(grown))} {how} than the snapshot")
    except SourceError as error:
        result.note("source", one.text, f"not compared: {error.message}")
        return False
    result.checked_bytes += compared
    what = "the source as it is now" if source is None else "the source that was named"
    for start, end in differing[:100]:
        result.note("source", one.text, f"bytes {start} to {end} differ from {what}")
    if len(differing) > 100:
        result.note("source", one.text, f"and {len(differing) - 100} more ranges")
    return True


class _Held:
    """Ranges of chunks that may hold data, in ascending order."""

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        self._ranges = ranges
        self._at = 0

    def split(self, run: SlotRun) -> Iterator[tuple[int, int, bool]]:
        """The parts of a run, and whether they may hold data. Runs must be asked for in ascending order."""
        position = run.first
        while position < run.end:
            while self._at < len(self._ranges) and self._ranges[self._at][1] <= position:
                self._at += 1
            first, end = self._ranges[self._at] if self._at < len(self._ranges) else (run.end, run.end)
            within = first <= position
            stop = min(run.end, end if within else first)
            yield position, stop, within
            position = stop


class _SourceComparison:
    def __init__(self, repo: Repository, one: Selected, frozen: FrozenVolume) -> None:
        self._repo = repo
        self._one = one
        self._frozen = frozen
        self._tree = repo.tree(one.snapshot)
        self._identify = identify_chunk(repo, one)
        self._buffers = ThreadBuffers(self._tree.shape.chunk_size)

    def pieces(self) -> Iterator[tuple[SlotRun, bool]]:
        """Runs of at most one range each, and whether they are read: no hole of both is."""
        shape = self._tree.shape
        step = max(1, RANGE >> shape.chunk_log2)
        held = self._held()
        for run in self._repo.tree_reader(self._one.snapshot.added.domain_id).runs(self._tree):
            for first, end, reads in held.split(run) if run.slot in (Slot.HOLE, Slot.ZERO) else [(*run[:2], True)]:
                width = step if reads else end - first
                for at in range(first, end, width):
                    yield SlotRun(at, min(at + width, end), run.slot), reads

    def _held(self) -> _Held:
        """The chunks that are read: what the source has space for, and everything from its last chunk on."""
        shape = self._tree.shape
        ranges = [(first, end) for first, end in chunk_ranges(self._frozen.allocated(), shape.chunk_size)]
        return _Held([*ranges, (self._frozen.size >> shape.chunk_log2, shape.chunks)])

    def compare(self, piece: tuple[SlotRun, bool]) -> tuple[int, list[tuple[int, int]]]:
        """Bytes compared and the ranges that differ."""
        run, reads = piece
        shape = self._tree.shape
        if not reads:
            return (run.end - run.first) << shape.chunk_log2, []
        different: list[tuple[int, int]] = []
        compared = 0
        for chunk in range(run.first, run.end):
            start, length = chunk << shape.chunk_log2, shape.chunk_length(chunk)
            here = min(length, self._frozen.size - start)
            if here <= 0 or not self._same(run, start, length, here):
                different.append((start, start + length))
            compared += max(here, 0)
        return compared, different

    def _same(self, run: SlotRun, start: int, length: int, here: int) -> bool:
        view = self._buffers.view(here)
        self._frozen.read_into(start, view)
        if here < length:
            return False
        return is_zero(view) if run.slot in (Slot.HOLE, Slot.ZERO) else self._identify(view) == run.slot
