"""Reading one frozen volume into chunks, ids and a manifest.

Each worker takes a range of up to 4 MiB and does everything for it: read, zero test, id, comparison with the base,
look-up, compression, sealing. Results come back in order and stream into the tree.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from lamella.base.errors import IntegrityError, StoreError
from lamella.base.events import Progress, Reporter
from lamella.base.ids import ChunkId
from lamella.base.trust import Opened
from lamella.format.compression import decode
from lamella.format.container import Kind
from lamella.format.encoder import Encoder
from lamella.format.node import Shape, Slot, SlotValue
from lamella.operations.shared.ranges import RANGE, is_zero
from lamella.operations.shared.reading import Act, Task
from lamella.packs.blobmap import Place
from lamella.packs.packer import Packer
from lamella.packs.reach import require_alive
from lamella.packs.tree import Run, Tree
from lamella.packs.tree_writer import Partial, TreeWriter
from lamella.repository.repository import Repository
from lamella.run.pipeline import ordered_map
from lamella.sources.base import FrozenVolume

CHECK_ONE_IN = 16
_MARK_BYTES = 1 << 30
"""So much may be read without a change before the tree is told that it was: what a stopped run loses at most."""


class MapRefuted(Exception):
    """The change map called a chunk unchanged, and it is not: nothing the map says may be used."""

    def __init__(self, offset: int, length: int) -> None:
        super().__init__(f"bytes {offset} to {offset + length} changed although the change map says they did not")
        self.offset = offset
        self.length = length


class _Work(NamedTuple):
    """A task with the base's slots for it, None where the base has none."""

    task: Task
    base: tuple[SlotValue, ...] | None


class _Answer(NamedTuple):
    """What became of a task: changed slots, the slot of its last chunk if known, and counts of its work."""

    changes: list[Run]
    end: int
    last: SlotValue | None
    read_bytes: int
    sampled_bytes: int
    changed: int
    new: int
    stored_bytes: int


class Progressing(Protocol):
    """Whom a reader tells how far it is."""

    def due(self, read_bytes: int) -> bool:
        """Count what was read; whether to call `record` as soon as that is possible."""

    def record(self, partial: Partial | None) -> None:
        """The tree as far as it has come, to be recorded durably. Raises StoreError, RolledBack, RepositoryError."""

    def stopped(self, partial: Partial | None) -> None:
        """The same, when the user or the system ends the run."""


class Unwatched:
    """Nobody is told how far the reading is."""

    def due(self, read_bytes: int) -> bool:
        """Never."""
        return False

    def record(self, partial: Partial | None) -> None:
        """Nothing to do."""

    def stopped(self, partial: Partial | None) -> None:
        """Nothing to do."""


@dataclass(slots=True)
class VolumeRead:
    """The manifest of a volume and the figures of reading it."""

    root: ChunkId
    read_bytes: int = 0
    sampled_bytes: int = 0
    changed_chunks: int = 0
    new_chunks: int = 0
    stored_bytes: int = 0


class VolumeReader:
    """Reads one volume for one run."""

    def __init__(  # noqa: PLR0913 - what a run has in hand
        self,
        repo: Repository,
        packer: Packer,
        shape: Shape,
        base: Tree | None,
        *,
        compression: str,
        check_all: bool,
        check_base: bool,
        workers: int,
    ) -> None:
        self._repo = repo
        self._packer = packer
        self._shape = shape
        self._base = base
        self._compression = compression
        self._check_one_in = 1 if check_all else CHECK_ONE_IN
        self._check_base = check_base
        self._workers = workers
        self._identify = packer.identify(Kind.CHUNK)
        self._local = threading.local()
        self._nodes = repo.tree_reader(packer.domain_id)

    def read(
        self,
        frozen: FrozenVolume,
        tasks: Iterable[Task],
        volume: str,
        reporter: Reporter,
        watch: Progressing | None = None,
    ) -> VolumeRead:
        """Do the tasks and put the changed chunks and nodes; chunks without a task stay as they are in the base.

        Raises SourceError if the source fails, MapRefuted, IntegrityError if the base cannot be read, StoreError.
        """
        result = VolumeRead(ChunkId(b""))
        watch = watch or Unwatched()
        # Another reader for the tree: both walk the base, at different places.
        writer = TreeWriter(self._repo.tree_reader(self._packer.domain_id), self._packer.store_node)

        def count(answer: _Answer) -> None:
            result.read_bytes += answer.read_bytes
            result.sampled_bytes += answer.sampled_bytes
            result.changed_chunks += answer.changed
            result.new_chunks += answer.new
            result.stored_bytes += answer.stored_bytes
            done = min(answer.end << self._shape.chunk_log2, self._shape.size)
            reporter(Progress("backup", volume, done, self._shape.size, result.stored_bytes))

        def changes(answers: Iterator[_Answer]) -> Iterator[Run]:
            end = unchanged = 0
            for answer in answers:
                yield from answer.changes
                end = max(end, answer.changes[-1].end if answer.changes else 0)
                count(answer)
                due = watch.due(answer.read_bytes)
                unchanged = 0 if end == answer.end else unchanged + answer.read_bytes
                if (due or unchanged >= _MARK_BYTES) and end < answer.end and answer.last is not None:
                    # Nothing new, but it takes the tree to the end of what was read.
                    yield Run(answer.end - 1, answer.end, answer.last)
                    end, unchanged = answer.end, 0
                if due:
                    watch.record(writer.partial())

        def watched(answers: Iterator[_Answer]) -> Iterator[Run]:
            try:
                yield from changes(answers)
            except KeyboardInterrupt:
                # It came while the tree waited for a change, as the main thread nearly always does: all is in order.
                watch.stopped(writer.partial())
                raise

        items = (_Work(task, self._base_slots(task)) for task in tasks)
        with closing(ordered_map(lambda item: self._work(item, frozen), items, workers=self._workers)) as answers:
            result.root = writer.update(self._shape, self._base, watched(answers))
        return result

    def _base_slots(self, task: Task) -> tuple[SlotValue, ...] | None:
        """The base's slots, None where it has none at all for this task or none is needed."""
        if self._base is None or task.act in (Act.SET, Act.SAMPLE_ZERO) or task.first >= self._base.shape.chunks:
            return None
        slots: list[SlotValue] = []
        for run in self._nodes.runs(self._base, task.first, task.end):
            slots += [run.slot] * (run.end - run.first)
        return tuple(slots)

    def _work(self, item: _Work, frozen: FrozenVolume) -> _Answer:
        task = item.task
        if task.act == Act.SET:
            return _Answer([Run(task.first, task.end, task.slot)], task.end, task.slot, 0, 0, 0, 0, 0)
        offset = task.first << self._shape.chunk_log2
        length = min(task.end << self._shape.chunk_log2, self._shape.size) - offset
        view = self._buffer(length)
        frozen.read_into(offset, view)
        if task.act in (Act.SAMPLE, Act.SAMPLE_ZERO):
            self._compare(item, view)
            whole = item.base is not None and len(item.base) == task.end - task.first
            return _Answer([], task.end, item.base[-1] if item.base and whole else None, length, length, 0, 0, 0)
        changes: list[Run] = []
        new = stored = 0
        slot: SlotValue | None = None
        for position, (part, slot) in enumerate(self._slots(task, view)):
            same = item.base is not None and position < len(item.base) and item.base[position] == slot
            if isinstance(slot, bytes) and not (same and self._kept(slot)):
                sealed = self._store(slot, part)
                new += sealed > 0
                stored += sealed
            if not same:
                changes.append(Run(task.first + position, task.first + position + 1, slot))
        return _Answer(changes, task.end, slot, length, 0, len(changes), new, stored)

    def _slots(self, task: Task, view: memoryview) -> Iterator[tuple[memoryview, SlotValue]]:
        """Each chunk of a task that was read, with the slot it makes."""
        for chunk in range(task.first, task.end):
            start = (chunk - task.first) << self._shape.chunk_log2
            part = view[start : start + self._shape.chunk_length(chunk)]
            yield part, Slot.ZERO if is_zero(part) else self._identify(part)

    def _compare(self, item: _Work, view: memoryview) -> None:
        """Chunks that the change map calls unchanged must be what the base says, others zero. Raises MapRefuted."""
        base = item.base or ()
        for position, (part, slot) in enumerate(self._slots(item.task, view)):
            expected: SlotValue | None = base[position] if position < len(base) else None
            if item.task.act == Act.SAMPLE_ZERO:
                expected = Slot.ZERO
            if slot != expected and not (slot == Slot.ZERO and expected == Slot.HOLE):
                raise MapRefuted((item.task.first + position) << self._shape.chunk_log2, len(part))

    def _kept(self, id_: ChunkId) -> bool:
        """Whether a chunk the base already has may be left alone: always, unless packs were lost."""
        return not self._check_base or self._packer.pending(id_) or self._repo.blobs.has(Kind.CHUNK, id_)

    def _buffer(self, length: int) -> memoryview:
        buffer = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = bytearray(max(RANGE, self._shape.chunk_size))
        return memoryview(buffer)[:length]

    def _store(self, id_: ChunkId, part: memoryview) -> int:
        """Store a chunk unless it is stored already; returns its sealed length, 0 if nothing was put."""
        if self._packer.pending(id_):
            return 0
        if self._packer.may_be_stored(id_) and self._trusted(id_, part):
            return 0
        return self._packer.store_blob(Kind.CHUNK, id_, len(part), lambda: self._encode(part))

    def _trusted(self, id_: ChunkId, part: memoryview) -> bool:
        """Whether a stored copy may be relied on: own packs are; in others the blob is opened and compared first."""
        blobs, domain_id = self._repo.blobs, self._packer.domain_id
        for place in blobs.reusable(Kind.CHUNK, id_):
            if place.domain_id == domain_id and (place.own or self._opens(place, part)):
                blobs.relied.add(place.pack)
                return True
        return False

    def _opens(self, place: Place, part: memoryview) -> bool:
        try:
            return self._repo.contents.open_at(place) == bytes(part)
        except StoreError as error:
            require_alive(self._repo.store, error)
            return False
        except IntegrityError:
            return False

    def _encode(self, part: memoryview) -> bytes:
        encoder = getattr(self._local, "encoder", None)
        if encoder is None:
            encoder = self._local.encoder = Encoder(self._compression)
            self._local.encoded = 0
        body: bytes = encoder.encode(part)
        self._local.encoded += 1
        # What leaves must decode to what came in: compressors have had bugs (docs/decisions/0004).
        check = self._local.encoded % self._check_one_in == 0
        if check and decode(Opened(body), len(part), "a new chunk") != bytes(part):
            raise IntegrityError("the compressor made something that does not decode to its input")
        return body
