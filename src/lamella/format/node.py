"""Nodes of the manifest tree (FORMAT 6). Pure layout and the checks that need no neighbour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, cast

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.ids import ChunkId, VolumeId
from lamella.base.trust import Opened
from lamella.format.container import Kind
from lamella.format.cursor import Cursor, u8, u64

FAN_OUT = 64
MAX_DEPTH = 10
MIN_CHUNK_LOG2, MAX_CHUNK_LOG2 = 16, 22
MAGIC = b"LMLN"
_GIB = 1 << 30


class Slot(IntEnum):
    """What a slot says about its chunks."""

    HOLE = 0
    ZERO = 1
    DATA = 2
    DELTA = 3
    """In leaves: a chunk that is stored as a difference from another one."""


_SLOTS = [tuple(Slot(byte >> 2 * place & 3) for place in range(4)) for byte in range(256)]
"""The four slots that each byte of a type map stands for."""

SlotValue = Slot | ChunkId
"""HOLE, ZERO, or the id of a chunk (leaf) or child (inner node)."""


class DeltaChunk(bytes):
    """The id of a chunk that is stored as a difference from a base; equal to that id, wherever the chunk may lie.

    The chunk is read from two other chunks, or from a copy of its own where there is one (FORMAT 6).
    """

    base: ChunkId
    """The chunk that the difference is from, as long as this one."""
    difference: ChunkId
    """The chunk that holds the difference (lamella.format.difference)."""

    @classmethod
    def slot(cls, own: bytes, base: bytes, difference: bytes) -> ChunkId:
        """A DELTA slot of these three ids."""
        made = cls(own)
        made.base, made.difference = ChunkId(base), ChunkId(difference)
        return cast("ChunkId", made)

    def encoded(self) -> bytes:
        """The three ids, 72 bytes."""
        return b"".join((self, self.base, self.difference))


class Shape(NamedTuple):
    """What all nodes of one tree have in common."""

    volume_id: VolumeId
    size: int
    chunk_log2: int

    @property
    def chunk_size(self) -> int:
        """Bytes of a whole chunk."""
        return 1 << self.chunk_log2

    @property
    def chunks(self) -> int:
        """Number of chunks, the last one maybe short."""
        return -(-self.size >> self.chunk_log2)

    @property
    def depth(self) -> int:
        """Number of levels: the least d >= 1 with 64^d >= chunks. Raises IntegrityError above 10."""
        depth = 1
        while FAN_OUT**depth < self.chunks:
            depth += 1
        if depth > MAX_DEPTH:
            raise IntegrityError("a volume too large for its chunk size")
        return depth

    def chunk_length(self, chunk: int) -> int:
        """Bytes of chunk number `chunk`."""
        return min(self.chunk_size, self.size - (chunk << self.chunk_log2))


@dataclass(frozen=True, slots=True)
class Node:
    """One node: its place and its 64 slots."""

    level: int
    first_chunk: int
    data_below: int
    slots: tuple[SlotValue, ...]

    @property
    def kind(self) -> Kind:
        """Leaves and inner nodes are different kinds of blobs."""
        return Kind.INNER if self.level else Kind.LEAF


def default_chunk_log2(size: int) -> int:
    """Chunk size by the size of the volume at its first backup (FORMAT 6)."""
    if size <= 64 * _GIB:
        return 17
    if size <= 1024 * _GIB:
        return 18
    return 20 if size <= 8192 * _GIB else 21


def encode(node: Node, shape: Shape) -> bytes:
    """The content of a node's blob."""
    types = bytearray(16)
    ids: list[bytes] = []
    for position, slot in enumerate(node.slots):
        if isinstance(slot, DeltaChunk):
            ids.append(slot.encoded())
            types[position >> 2] |= Slot.DELTA << 2 * (position & 3)
        elif isinstance(slot, bytes):
            ids.append(slot)
            types[position >> 2] |= Slot.DATA << 2 * (position & 3)
        elif slot == Slot.ZERO:
            types[position >> 2] |= Slot.ZERO << 2 * (position & 3)
    head = MAGIC + u8(1) + u8(node.level) + u8(len(ids)) + u8(shape.chunk_log2) + shape.volume_id
    return b"".join((head, u64(node.first_chunk), u64(node.data_below), types, *ids))


def decode(content: Opened, shape: Shape, level: int, first_chunk: int) -> Node:
    """Read the node at `level` and `first_chunk` of a tree of `shape`. Raises IntegrityError, UnknownFormat."""
    where = f"node at level {level}, chunk {first_chunk}"
    cursor = Cursor(content, where)
    if cursor.take(4) != MAGIC:
        cursor.fail("no node magic")
    if cursor.uint(1) != 1:
        raise UnknownFormat(f"{where} has an unknown version")
    seen_level, count, chunk_log2 = cursor.uint(1), cursor.uint(1), cursor.uint(1)
    place = (seen_level, chunk_log2, cursor.take(16), cursor.uint(8))
    if place != (level, shape.chunk_log2, shape.volume_id, first_chunk):
        cursor.fail("belongs to another place, volume or chunk size")
    data_below = cursor.uint(8)
    types = [slot for byte in cursor.take(16) for slot in _SLOTS[byte]]
    if level and Slot.DELTA in types:
        cursor.fail("has a difference where a node belongs")
    ids = cursor.take(24 * types.count(Slot.DATA) + 72 * types.count(Slot.DELTA))
    cursor.end()
    node = Node(level, first_chunk, data_below, tuple(_slots(types, ids)))
    _check(cursor, node, shape, count)
    return node


def _slots(types: list[Slot], ids: bytes) -> Iterator[SlotValue]:
    at = 0
    for slot in types:
        if slot is Slot.DATA:
            yield ChunkId(ids[at : at + 24])
            at += 24
        elif slot is Slot.DELTA:
            yield DeltaChunk.slot(ids[at : at + 24], ids[at + 24 : at + 48], ids[at + 48 : at + 72])
            at += 72
        else:
            yield slot


def full_leaf(content: Opened, shape: Shape, first_chunk: int) -> list[ChunkId] | None:
    """The 64 chunk ids of a leaf without any hole or zero; None for any other content, which `decode` then judges.

    Most leaves of large volumes are full, and marking reads them all: a comparison instead of a parse.
    """
    head = MAGIC + u8(1) + u8(0) + u8(FAN_OUT) + u8(shape.chunk_log2) + shape.volume_id
    expected = head + u64(first_chunk) + u64(FAN_OUT) + b"\xaa" * 16
    if len(content) != 56 + 24 * FAN_OUT or content[:56] != expected or first_chunk + FAN_OUT > shape.chunks:
        return None
    return [ChunkId(content[at : at + 24]) for at in range(56, len(content), 24)]


def _check(cursor: Cursor, node: Node, shape: Shape, count: int) -> None:
    ids = sum([isinstance(slot, bytes) for slot in node.slots])
    per_slot = FAN_OUT**node.level
    inside = min(FAN_OUT, max(0, -(-(shape.chunks - node.first_chunk) // per_slot)))
    if any(slot != Slot.HOLE for slot in node.slots[inside:]):
        cursor.fail("has slots past the end of the volume")
    if ids != count or node.data_below > ids * per_slot or (node.level == 0 and node.data_below != ids):
        cursor.fail("has a wrong count")
    is_root = node.first_chunk == 0 and node.level == shape.depth - 1
    if not is_root and ids == 0 and len(set(node.slots[:inside])) <= 1:
        cursor.fail("is not in canonical form")
