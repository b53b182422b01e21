"""Reading a volume that comes once, in order, and whose size may be known only at its end (docs/decisions/0057).

The main thread reads, so that Ctrl-C breaks off a stream that does not move; the workers get what it read. As long as
the size is unknown the tree is written as that of a volume too large to be true. What came is its left edge, and the
node where the tree of the true size begins is that tree's root: the nodes above it are never stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, cast

from lamella.base.errors import SourceError, shown_bytes
from lamella.base.events import Event, Progress
from lamella.base.ids import ChunkId
from lamella.base.trust import Opened
from lamella.format import node
from lamella.format.container import Kind
from lamella.format.inner import claim_of_time
from lamella.format.node import FAN_OUT, Node, Shape, Slot, SlotValue
from lamella.operations.backup.stages import Frozen, Read, Way
from lamella.operations.shared.ranges import RANGE
from lamella.operations.shared.reading import Act, Task
from lamella.operations.writing.chunks import VolumeReader, Watch
from lamella.packs.tree_writer import Partial, PutNode
from lamella.sources.stream import FrozenStream

if TYPE_CHECKING:
    from lamella.base.events import Reporter
    from lamella.operations.backup.read import Attempts
    from lamella.operations.backup.recording import Recorder

_TOO_LARGE: Final = 1 << 47
"""128 TiB: the size of a volume of which nobody knows the size."""
_NOT_STORED: Final = ChunkId(bytes(24))


def read_stream(attempts: Attempts, frozen: Frozen, way: Way) -> Read:
    """Read a stream to its end and compare it with the base. Raises SourceError, IntegrityError, StoreError."""
    volume = cast(FrozenStream, frozen.volume)
    shape = frozen.shape if volume.known_size is not None else frozen.shape._replace(size=_TOO_LARGE)
    base = None if way.base is None else attempts.repo.tree(way.base)
    reader = attempts.reader(replace(frozen, shape=shape), base, StreamReader)
    stream = _Stream(volume, reader, shape, reader.packer.store_node)
    reader.put_node = stream.put_node
    name, watch = frozen.plan.volume, _Pinning(attempts.recorder, volume)
    tree = reader.read(volume, stream.tasks(), name, stream.reporter(attempts.reporter), watch)
    if volume.claimed_ms is not None:
        way = replace(way, notes=(*way.notes, claim_of_time(volume.claimed_ms)))
    tree = tree._replace(root=stream.root(tree.root))
    return Read(replace(frozen, shape=reader.shape), way, tree, int(volume.consistency()))


class StreamReader(VolumeReader):
    """Nothing tells a hole from zeros, so zeros are holes: a sparse image stays sparse."""

    def _slots(self, task: Task, view: memoryview) -> Iterator[tuple[memoryview, SlotValue]]:
        for part, slot in super()._slots(task, view):
            yield part, Slot.HOLE if slot is Slot.ZERO else slot


@dataclass
class _Stream:
    """The tasks of a stream, and the root of its tree. `shape` is the one that the tree is begun with."""

    volume: FrozenStream
    reader: VolumeReader
    shape: Shape
    store_node: PutNode
    edge: list[SlotValue] = field(default_factory=list)
    """The leftmost slot of each node that was not stored, the lowest node first."""

    def tasks(self) -> Iterator[Task]:
        """Read the next piece; from the end of the stream on there is a hole."""
        log2, end = self.shape.chunk_log2, 0
        for piece in self.volume.pieces(RANGE):
            if piece.end > self.shape.size:
                raise SourceError(f"a stream of more than {shown_bytes(self.shape.size)}; give its size with --size")
            if piece.end % RANGE:
                self._ends_at(piece.end)
            end = -(-piece.end >> log2)
            yield Task(piece.start >> log2, end, Act.READ)
        self._ends_at(self.volume.read_bytes)
        if end < self.shape.chunks:
            yield Task(end, self.shape.chunks, Act.SET)

    def _ends_at(self, size: int) -> None:
        """The size is known: the last piece has fewer bytes than its chunks, and the workers have to know."""
        self.reader.shape = self.shape._replace(size=size)

    def put_node(self, kind: Kind, content: bytes) -> ChunkId:
        """Store a node, unless it lies above the root of the volume's own tree."""
        # Until the end only leaves and inner nodes of what came are closed, and those of partial trees.
        if self.volume.ended and content[_LEVEL] >= self.reader.shape.depth:
            found = node.decode(Opened(content), self.shape, content[_LEVEL], 0)
            self.edge.append(found.slots[0])
            return _NOT_STORED
        return self.store_node(kind, content)

    def root(self, written: ChunkId) -> ChunkId:
        """The root of the volume's tree."""
        if not self.edge:
            return written
        if isinstance(self.edge[0], bytes):
            return self.edge[0]
        # All of it is a hole, for which only a root has a node.
        top = Node(self.reader.shape.depth - 1, 0, 0, (Slot.HOLE,) * FAN_OUT)
        return self.store_node(top.kind, node.encode(top, self.shape))

    def reporter(self, outer: Reporter) -> Reporter:
        """Tells of what came, of an unknown sum."""

        def report(event: Event) -> None:
            if isinstance(event, Progress):
                done = min(event.done_bytes, self.volume.read_bytes)
                event = replace(event, done_bytes=done, total_bytes=self.volume.known_size or 0)
            outer(event)

        return report


_LEVEL: Final = 5
"""Where a node says its level (FORMAT 6)."""


@dataclass(frozen=True, slots=True)
class _Pinning(Watch):
    """A long stream's packs are pinned as those of any run; nobody can go on in the middle of a stream."""

    recorder: Recorder
    volume: FrozenStream

    def due(self, read_bytes: int) -> bool:
        return not self.volume.ended and self.recorder.due(read_bytes)

    def record(self, partial: Partial | None) -> None:
        self.recorder.record()
