"""A snapshot of another repository as a volume to be read: chunk by chunk, each opened and its id recomputed there."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, IntegrityError, SourceError
from lamella.base.extents import Extent
from lamella.base.ids import ChunkId
from lamella.format.container import Kind
from lamella.format.node import Slot
from lamella.history.catalogue import Snapshot
from lamella.operations.shared.ranges import RANGE
from lamella.operations.shared.reading import Act, Task
from lamella.packs.tree import SlotRun
from lamella.packs.tree_changes import changes
from lamella.repository.repository import Repository
from lamella.sources.base import Consistency


class SnapshotVolume:
    """The difference between two snapshots, or one whole snapshot, as tasks and the bytes for them.

    The ids wait here from the moment a task is made until it is read, so that no node is read twice.
    """

    def __init__(self, repo: Repository, snapshot: Snapshot, base: Snapshot | None) -> None:
        self._repo = repo
        self._snapshot = snapshot
        self._tree = repo.tree(snapshot)
        self._base = None if base is None else repo.tree(base)
        self._domain_id = snapshot.added.domain_id
        self._waiting: dict[int, list[tuple[ChunkId, int]]] = {}
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes of the volume."""
        return self._tree.shape.size

    @property
    def checkpoint(self) -> str:
        """None: a snapshot needs no checkpoint."""
        return ""

    def consistency(self) -> Consistency:
        """As recorded."""
        return Consistency(self._snapshot.added.consistency)

    def allocated(self) -> Iterator[Extent]:
        """Everything: what is a hole is said by the tasks."""
        if self.size:
            yield Extent(0, self.size)

    def delta_since(self, base: str, grain: int) -> Delta:
        """Raise CheckpointLost: the base is a snapshot, and `tasks` knows it."""
        raise CheckpointLost("a snapshot keeps no checkpoints", obj=base)

    def tasks(self) -> Iterator[Task]:
        """Read what is data and set what is not, where it differs from the base. Raises SourceError."""
        shape = self._tree.shape
        per_task = max(1, RANGE >> shape.chunk_log2)
        first = end = 0
        wanted: list[tuple[ChunkId, int]] = []
        for run in self._runs():
            if wanted and (run.first != end or not isinstance(run.slot, bytes) or len(wanted) == per_task):
                yield self._reading(first, end, wanted)
                wanted = []
            if not isinstance(run.slot, bytes):
                yield Task(run.first, run.end, Act.SET, Slot(run.slot))
                continue
            first, end = (run.first if not wanted else first), run.end
            wanted.append((run.slot, shape.chunk_length(run.first)))
        if wanted:
            yield self._reading(first, end, wanted)

    def _reading(self, first: int, end: int, wanted: list[tuple[ChunkId, int]]) -> Task:
        with self._lock:
            self._waiting[first << self._tree.shape.chunk_log2] = wanted
        return Task(first, end, Act.READ)

    def _runs(self) -> Iterator[SlotRun]:
        reader = self._repo.tree_reader(self._domain_id)
        try:
            if self._base is None:
                yield from reader.runs(self._tree)
            else:
                for run, _ in changes(reader, self._base, self._tree):
                    yield run
        except IntegrityError as error:
            raise SourceError(f"the snapshot cannot be read: {error.message}", obj=error.obj) from error

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """The bytes of a task that was yielded; once. Raises SourceError."""
        with self._lock:
            wanted = self._waiting.pop(offset)
        try:
            contents = self._repo.contents.get_many(self._domain_id, Kind.CHUNK, wanted)
        except IntegrityError as error:
            raise SourceError(f"the snapshot cannot be read: {error.message}", obj=error.obj) from error
        position = 0
        for id_, length in wanted:
            buffer[position : position + length] = contents[id_]
            position += length
