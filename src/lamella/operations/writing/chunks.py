"""Reading one frozen volume into chunks, ids and a manifest.

Each worker takes a range of up to 4 MiB and does everything for it: read, zero test, id, comparison with the base,
look-up, compression, sealing. Results come back in order and stream into the tree.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from operator import add
from time import sleep
from typing import TYPE_CHECKING, NamedTuple

from lamella.base.errors import IntegrityError, StoreError
from lamella.base.events import Progress, Reporter
from lamella.base.ids import ChunkId
from lamella.base.trust import Opened
from lamella.format.compression import decode
from lamella.format.container import Kind
from lamella.format.encoder import Encoder
from lamella.format.node import DeltaChunk, Shape, Slot, SlotValue
from lamella.operations.shared.ranges import ThreadBuffers, is_zero
from lamella.operations.shared.reading import Act, Task
from lamella.packs.blobmap import Place
from lamella.packs.packer import Packer
from lamella.packs.reach import require_alive
from lamella.packs.tree import SlotRun, Tree
from lamella.packs.tree_writer import Partial, PutNode, TreeWriter
from lamella.repository.repository import Repository
from lamella.run.pipeline import ordered_map
from lamella.sources.base import FrozenVolume

if TYPE_CHECKING:
    from lamella.operations.writing.differences import Differences
    from lamella.stores.wrap.limited import TokenBucket

CHECK_ONE_IN = 16
_MARK_BYTES = 1 << 30
"""Bytes read without a change before the tree hears of them: the most that a stopped run reads again."""


class MapRefuted(Exception):
    """The change map called a chunk unchanged, and it is not: nothing the map says may be used."""

    def __init__(self, offset: int, length: int) -> None:
        super().__init__(f"bytes {offset} to {offset + length} changed although the change map says they did not")
        self.offset = offset
        self.length = length


class ReadFigures(NamedTuple):
    """The result of reading a volume, or a part of it."""

    read_bytes: int = 0
    sampled_bytes: int = 0
    changed_chunks: int = 0
    new_chunks: int = 0
    stored_bytes: int = 0
    delta_chunks: int = 0


class VolumeRead(NamedTuple):
    """The root of a volume's tree, and the figures of reading the volume."""

    root: ChunkId
    figures: ReadFigures


class _Answer(NamedTuple):
    """The result of a task: changed slots, the slot of its last chunk if known, and the figures of its work."""

    changes: list[SlotRun]
    end: int
    last: SlotValue | None
    figures: ReadFigures = ReadFigures()


class Watch:
    """Receives a reader's progress. This one ignores it."""

    def due(self, read_bytes: int) -> bool:
        """Count what was read; whether to call `record` as soon as that is possible."""
        return False

    def record(self, partial: Partial | None) -> None:
        """The tree as far as it has come, to be recorded durably. Raises StoreError, RolledBack, RepositoryError."""

    def stopped(self, partial: Partial | None) -> None:
        """The same, when the user or the system ends the run."""


@dataclass
class VolumeReader:
    """Reads one volume for one run.

    `check_all` decodes everything that was compressed, `check_base` looks up every chunk of the base.
    """

    repo: Repository
    packer: Packer
    shape: Shape
    base: Tree | None
    compression: str
    check_all: bool
    check_base: bool
    workers: int
    bucket: TokenBucket | None = None
    """Every read waits until its bytes may go through."""
    put_node: PutNode | None = None
    """Takes the nodes of the tree instead of the packer."""
    differences: Differences | None = None
    """Stores chunks as differences from what the base has there, where that is worth it."""

    def __post_init__(self) -> None:
        self._identify = self.packer.identify(Kind.CHUNK)
        self._local = threading.local()
        self._buffers = ThreadBuffers(self.shape.chunk_size)
        self._nodes = self.repo.tree_reader(self.packer.domain_id)

    def read(
        self,
        frozen: FrozenVolume,
        tasks: Iterable[Task],
        volume: str,
        reporter: Reporter,
        watch: Watch | None = None,
    ) -> VolumeRead:
        """Do the tasks and put the changed chunks and nodes; chunks without a task stay as they are in the base.

        Raises SourceError if the source fails, MapRefuted, IntegrityError if the base cannot be read, StoreError.
        """
        watch = watch or Watch()
        size, total = self.shape.size, ReadFigures()
        # Another reader for the tree: both walk the base, at different places.
        writer = TreeWriter(self.repo.tree_reader(self.packer.domain_id), self.put_node or self.packer.store_node)

        def changes(answers: Iterator[_Answer]) -> Iterator[SlotRun]:
            nonlocal total
            end = unchanged = 0
            for answer in answers:
                yield from answer.changes
                end = max(end, answer.changes[-1].end if answer.changes else 0)
                total = ReadFigures(*map(add, total, answer.figures))
                done, read_bytes = min(answer.end << self.shape.chunk_log2, size), answer.figures.read_bytes
                reporter(Progress("backup", volume, done, size, total.stored_bytes))
                due = watch.due(read_bytes)
                unchanged = 0 if end == answer.end else unchanged + read_bytes
                if (due or unchanged >= _MARK_BYTES) and end < answer.end and answer.last is not None:
                    # Nothing new, but it takes the tree to the end of what was read.
                    yield SlotRun(answer.end - 1, answer.end, answer.last)
                    end, unchanged = answer.end, 0
                if due:
                    watch.record(writer.partial())

        def watched(answers: Iterator[_Answer]) -> Iterator[SlotRun]:
            try:
                yield from changes(answers)
            except KeyboardInterrupt:
                # It came while the tree waited for a change, as the main thread nearly always does: all is in order.
                watch.stopped(writer.partial())
                raise

        items = ((task, self._base_slots(task)) for task in tasks)
        with closing(ordered_map(lambda item: self._work(frozen, *item), items, workers=self.workers)) as answers:
            root = writer.update(self.shape, self.base, watched(answers))
        return VolumeRead(root, total)

    def _base_slots(self, task: Task) -> list[SlotValue | None]:
        """The base's slot for each chunk of a task, None where the base has none, or it is not needed."""
        slots: list[SlotValue | None] = []
        if task.act == Act.SET:
            return slots
        if self.base is not None and task.act != Act.SAMPLE_ZERO and task.first < self.base.shape.chunks:
            for run in self._nodes.runs(self.base, task.first, task.end):
                slots += [run.slot] * (run.end - run.first)
        return slots + [None] * (task.end - task.first - len(slots))

    def _work(self, frozen: FrozenVolume, task: Task, base: list[SlotValue | None]) -> _Answer:
        if task.act == Act.SET:
            return _Answer([SlotRun(task.first, task.end, task.slot)], task.end, task.slot)
        offset = task.first << self.shape.chunk_log2
        length = min(task.end << self.shape.chunk_log2, self.shape.size) - offset
        view = self._buffers.view(length)
        if self.bucket is not None and (seconds := self.bucket.book(length)) > 0:
            sleep(seconds)
        frozen.read_into(offset, view)
        if task.act in (Act.SAMPLE, Act.SAMPLE_ZERO):
            self._compare(task, base, view)
            return _Answer([], task.end, base[-1], ReadFigures(length, length))
        changes: list[SlotRun] = []
        new = stored = changed = deltas = 0
        slot: SlotValue | None = None
        for position, (part, slot) in enumerate(self._slots(task, view)):
            same = base[position] == slot
            if isinstance(slot, bytes) and not (same and self._kept(base[position])):
                slot, sealed = self._store(slot, part, task.first + position, base[position])
                deltas += isinstance(slot, DeltaChunk)
                new += sealed > 0
                stored += sealed
            if not same:
                changes.append(SlotRun(task.first + position, task.first + position + 1, slot))
                # ext4 gives space that was never written as data while its zeros are in memory, else as a hole.
                changed += not (isinstance(slot, Slot) and isinstance(base[position], Slot))
        return _Answer(changes, task.end, slot, ReadFigures(length, 0, changed, new, stored, deltas))

    def _slots(self, task: Task, view: memoryview) -> Iterator[tuple[memoryview, SlotValue]]:
        """Each chunk of a task that was read, with the slot it makes."""
        for chunk in range(task.first, task.end):
            start = (chunk - task.first) << self.shape.chunk_log2
            part = view[start : start + self.shape.chunk_length(chunk)]
            yield part, Slot.ZERO if is_zero(part) else self._identify(part)

    def _compare(self, task: Task, base: list[SlotValue | None], view: memoryview) -> None:
        """Chunks that the change map calls unchanged must be what the base says, others zero. Raises MapRefuted."""
        for position, (part, slot) in enumerate(self._slots(task, view)):
            expected = Slot.ZERO if task.act == Act.SAMPLE_ZERO else base[position]
            if slot != expected and not (slot == Slot.ZERO and expected == Slot.HOLE):
                raise MapRefuted((task.first + position) << self.shape.chunk_log2, len(part))

    def _kept(self, slot: SlotValue | None) -> bool:
        """Whether a chunk the base already has may be left alone: always, unless packs were lost."""
        if not self.check_base or not isinstance(slot, bytes) or self.packer.pending(slot):
            return True
        needed, blobs = self.repo.contents.blobs_of(self.packer.domain_id, [slot]), self.repo.blobs
        return all(any(one.pack not in blobs.doubted for one in blobs.find(Kind.CHUNK, id_)) for id_ in needed)

    def _store(self, id_: ChunkId, part: memoryview, chunk: int, old: SlotValue | None) -> tuple[ChunkId, int]:
        """Store a chunk unless it is stored already; returns its slot and the sealed length, 0 if nothing was put."""
        if self.stored(id_, part):
            return id_, 0
        if self.differences is not None and isinstance(old, bytes):
            made = self.differences.stored(self, id_, part, chunk, old)
            if made is not None:
                return made
        return id_, self.packer.store_blob(Kind.CHUNK, id_, len(part), lambda: self._encode(part))

    def stored(self, id_: ChunkId, part: memoryview) -> bool:
        """Whether a chunk with this content is stored already, and may be relied on."""
        return self.packer.pending(id_) or (self.packer.may_be_stored(id_) and self._trusted(id_, part))

    def _trusted(self, id_: ChunkId, part: memoryview) -> bool:
        """Whether a stored copy may be relied on: own packs are; in others the blob is opened and compared first."""
        blobs, domain_id = self.repo.blobs, self.packer.domain_id
        for place in blobs.reusable(Kind.CHUNK, id_):
            if place.domain_id == domain_id and (place.own or self._opens(place, part)):
                blobs.relied.add(place.pack)
                return True
        return False

    def _opens(self, place: Place, part: memoryview) -> bool:
        try:
            return self.repo.contents.open_at(place) == bytes(part)
        except StoreError as error:
            require_alive(self.repo.store, error)
            return False
        except IntegrityError:
            return False

    def _encode(self, part: memoryview) -> bytes:
        encoder = getattr(self._local, "encoder", None)
        if encoder is None:
            encoder = self._local.encoder = Encoder(self.compression)
            self._local.encoded = 0
        body: bytes = encoder.encode(part)
        self._local.encoded += 1
        # What leaves must decode to what came in: compressors have had bugs (docs/decisions/0004).
        check = self._local.encoded % (1 if self.check_all else CHECK_ONE_IN) == 0
        if check and decode(Opened(body), len(part), "a new chunk") != bytes(part):
            raise IntegrityError("the compressor made something that does not decode to its input")
        return body
