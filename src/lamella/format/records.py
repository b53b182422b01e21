"""Records carried by commits (FORMAT 8): what every repository is made of, and the shapes all records share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol, Self

from lamella.base.errors import IntegrityError
from lamella.base.ids import CATALOGUE, ChunkId, DomainId, SnapId, VolumeId, WriterId
from lamella.format.cursor import Cursor, bytes16, text, u8, u16, u32, u64

OPTIONAL = 0x8000
UNSIGNED = bytes(64)
FIGURES = 0x8001
MAX_RECORDS = 65536
DOCUMENT_PART = 8 * 1024 * 1024 - 8
"""Bytes of a document in each of its parts but the last."""


class Ref(NamedTuple):
    """A snapshot: its author, the seq of its ADD_SNAP, its id."""

    writer: WriterId
    seq: int
    snap_id: SnapId

    def encode(self) -> bytes:
        """40 bytes."""
        return self.writer + u64(self.seq) + self.snap_id

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        """The next 40 bytes."""
        return cls(WriterId(cursor.take(16)), cursor.uint(8), SnapId(cursor.take(16)))


NO_REF = Ref(WriterId(bytes(16)), 0, SnapId(bytes(16)))


class RawRecord(NamedTuple):
    """A record as it stands in a commit."""

    type: int
    value: bytes

    def encode(self) -> bytes:
        """Type, length, value."""
        return u16(self.type) + u32(len(self.value)) + self.value


class Record(Protocol):
    """A record with a meaning."""

    TYPE: ClassVar[int]

    def encode_value(self) -> bytes:
        """The value without type and length."""


def raw(record: Record) -> RawRecord:
    """The record as it goes into a commit."""
    return RawRecord(record.TYPE, record.encode_value())


def split(content: bytes, what: str) -> Iterator[RawRecord]:
    """Cut a sequence of records. Raises IntegrityError."""
    cursor = Cursor(content, what)
    count = 0
    while cursor.remaining:
        count += 1
        if count > MAX_RECORDS:
            cursor.fail("too many records")
        type_ = cursor.uint(2)
        yield RawRecord(type_, cursor.take(cursor.uint(4)))


@dataclass(frozen=True, slots=True)
class Writer:
    """WRITER: who publishes this chain."""

    TYPE: ClassVar[int] = 0x0001
    label: str
    machine: str

    def encode_value(self) -> bytes:
        return text(self.label) + text(self.machine)

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        return cls(cursor.text(), cursor.text())


@dataclass(frozen=True, slots=True)
class Volume:
    """VOLUME: a name and an identity for a volume id; `signature` lets an admin change another writer's volume."""

    TYPE: ClassVar[int] = 0x0002
    volume_id: VolumeId
    domain_id: DomainId
    chunk_log2: int
    name: str
    domain_label: str
    identity: bytes
    signature: bytes = UNSIGNED

    def encode_value(self) -> bytes:
        head = self.volume_id + self.domain_id + u8(self.chunk_log2) + text(self.name) + text(self.domain_label)
        return head + bytes16(self.identity) + self.signature

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        volume_id, domain_id, log2 = VolumeId(cursor.take(16)), domain_of(cursor), chunk_log2_of(cursor)
        return cls(volume_id, domain_id, log2, cursor.text(), cursor.text(), cursor.bytes16(), cursor.take(64))


class Document(NamedTuple):
    """A document attached to a snapshot: its name, size and the ids of its parts."""

    name: str
    size: int
    parts: tuple[ChunkId, ...]


class Figures(NamedTuple):
    """What the run did for a volume (inner record 0x8001). `mode`: 1 full, 2 incremental, 3 compare."""

    mode: int
    read_bytes: int
    stored_bytes: int
    changed_chunks: int
    new_chunks: int

    def encode(self) -> RawRecord:
        """The inner record."""
        return RawRecord(FIGURES, u8(self.mode) + bytes(7) + b"".join(u64(number) for number in self[1:]))

    @classmethod
    def decode(cls, value: bytes) -> Self:
        """Read the inner record's value."""
        cursor = Cursor(value, "FIGURES")
        mode = cursor.uint(1)
        cursor.zeros(7)
        figures = cls(mode, cursor.uint(8), cursor.uint(8), cursor.uint(8), cursor.uint(8))
        cursor.end()
        return figures


@dataclass(frozen=True, slots=True)
class AddSnap:
    """ADD_SNAP: one volume's committed moment."""

    TYPE: ClassVar[int] = 0x0003
    snap_id: SnapId
    volume_id: VolumeId
    domain_id: DomainId
    chunk_log2: int
    consistency: int
    size: int
    root: ChunkId
    time_ms: int
    parent: Ref
    name: str
    documents: tuple[Document, ...] = ()
    packs: tuple[bytes, ...] = ()
    inner: tuple[RawRecord, ...] = ()

    def encode_value(self) -> bytes:
        head = self.snap_id + self.volume_id + self.domain_id + u8(self.chunk_log2) + u8(self.consistency) + u16(0)
        head += u64(self.size) + self.root + u64(self.time_ms) + self.parent.encode() + text(self.name)
        rows = [text(row.name) + u64(row.size) + u16(len(row.parts)) + b"".join(row.parts) for row in self.documents]
        tail = [u32(len(self.packs)), *self.packs, *(record.encode() for record in self.inner)]
        return b"".join((head, u16(len(rows)), *rows, *tail))

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        snap_id, volume_id, domain_id = SnapId(cursor.take(16)), VolumeId(cursor.take(16)), domain_of(cursor)
        log2, consistency = chunk_log2_of(cursor), cursor.uint(1)
        cursor.zeros(2)
        if consistency > 4:
            cursor.fail("an unknown consistency")
        size, root, time_ms = cursor.uint(8), ChunkId(cursor.take(24)), cursor.uint(8)
        parent, name = Ref.decode(cursor), cursor.text()
        documents = tuple(_document(cursor) for _ in range(cursor.count(2, 11)))
        packs = tuple(cursor.take(32) for _ in range(cursor.count(4, 32)))
        inner = tuple(split(cursor.rest(), "ADD_SNAP"))
        return cls(
            snap_id, volume_id, domain_id, log2, consistency, size, root, time_ms, parent, name, documents, packs, inner
        )

    @property
    def figures(self) -> Figures | None:
        """What the run did, if it said so."""
        value = next((record.value for record in self.inner if record.type == FIGURES), None)
        try:
            return None if value is None else Figures.decode(value)
        except IntegrityError:
            return None  # an optional record: what cannot be read was not said

    @property
    def usable(self) -> bool:
        """False if an inner record of a later version is required to understand this snapshot."""
        return all(record.type >= OPTIONAL for record in self.inner)

    def without_packs(self) -> Self:
        """As checkpoints keep it once it is confirmed."""
        return replace(self, packs=())


def domain_of(cursor: Cursor) -> DomainId:
    """The next 16 bytes, which may not name the catalogue."""
    domain_id = DomainId(cursor.take(16))
    if domain_id == CATALOGUE:
        cursor.fail("names the catalogue as its domain")
    return domain_id


def chunk_log2_of(cursor: Cursor) -> int:
    """The next byte, as the logarithm of a chunk size."""
    log2 = cursor.uint(1)
    if not 16 <= log2 <= 22:
        cursor.fail("a chunk size out of range")
    return log2


def _document(cursor: Cursor) -> Document:
    name, size = cursor.text(), cursor.uint(8)
    parts = tuple(ChunkId(cursor.take(24)) for _ in range(cursor.count(2, 24)))
    if len(parts) != -(-size // DOCUMENT_PART):
        cursor.fail("a document whose size does not fit its parts")
    return Document(name, size, parts)


@dataclass(frozen=True, slots=True)
class Confirm:
    """CONFIRM: the packs of these snapshots were seen present after publication."""

    TYPE: ClassVar[int] = 0x0004
    refs: tuple[Ref, ...]

    def encode_value(self) -> bytes:
        return u32(len(self.refs)) + b"".join(ref.encode() for ref in self.refs)

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        return cls(tuple(Ref.decode(cursor) for _ in range(cursor.count(4, 40))))


@dataclass(frozen=True, slots=True)
class File:
    """FILE: an object outside packs and commits that must have these bytes. Counts only when prune-signed."""

    TYPE: ClassVar[int] = 0x0008
    name: str
    size: int
    sha256: bytes
    signature: bytes = UNSIGNED

    def encode_value(self) -> bytes:
        return text(self.name) + u64(self.size) + self.sha256 + self.signature

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        return cls(cursor.text(), cursor.uint(8), cursor.take(32), cursor.take(64))


@dataclass(frozen=True, slots=True)
class FileGone(File):
    """FILE_GONE: that object is no longer expected."""

    TYPE: ClassVar[int] = 0x0009


@dataclass(frozen=True, slots=True)
class ForkSeen:
    """FORK_SEEN: this writer goes on for `writer`, whose chain forked at `seq` into `heads`."""

    TYPE: ClassVar[int] = 0x000D
    writer: WriterId
    seq: int
    heads: tuple[bytes, ...]

    def encode_value(self) -> bytes:
        return self.writer + u64(self.seq) + u8(len(self.heads)) + b"".join(self.heads)

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        writer, seq = WriterId(cursor.take(16)), cursor.uint(8)
        return cls(writer, seq, tuple(cursor.take(32) for _ in range(cursor.count(1, 32))))


class RunVolume(NamedTuple):
    """One volume a run intended to save."""

    volume_id: VolumeId
    name: str
    failed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Run:
    """RUN: what a run intended and what became of it."""

    TYPE: ClassVar[int] = 0x8001
    name: str
    complete: bool
    volumes: tuple[RunVolume, ...]

    def encode_value(self) -> bytes:
        rows = [row.volume_id + text(row.name) + u8(row.failed) + text(row.reason) for row in self.volumes]
        return b"".join((text(self.name), u8(not self.complete), u16(len(rows)), *rows))

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        name, incomplete = cursor.text(), cursor.flag()
        rows = tuple(
            RunVolume(VolumeId(cursor.take(16)), cursor.text(), cursor.flag(), cursor.text())
            for _ in range(cursor.count(2, 19))
        )
        return cls(name, not incomplete, rows)


class SegmentPlace(NamedTuple):
    """A catalogue segment's id and a hint which pack holds it."""

    id: ChunkId
    pack: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """CHECKPOINT: the whole state of a chain, in segments and the entries that follow them."""

    TYPE: ClassVar[int] = 0x000C
    earlier: tuple[tuple[int, bytes], ...]
    segments: tuple[SegmentPlace, ...]
    entries: bytes

    def encode_value(self) -> bytes:
        earlier = [u64(seq) + sha256 for seq, sha256 in self.earlier]
        segments = [place.id + place.pack for place in self.segments]
        return b"".join((u32(len(earlier)), *earlier, u32(len(segments)), *segments, self.entries))

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        earlier = tuple((cursor.uint(8), cursor.take(32)) for _ in range(cursor.count(4, 40)))
        places = tuple(SegmentPlace(ChunkId(cursor.take(24)), cursor.take(32)) for _ in range(cursor.count(4, 56)))
        return cls(earlier, places, cursor.rest())


def prune_signed_message(root: bytes, writer: WriterId, seq: int, prev: bytes, record: RawRecord) -> bytes:
    """What a prune signature covers: everything but the value's last 64 bytes (FORMAT 8, [sig])."""
    if len(record.value) < 64:
        raise IntegrityError("a signed record too short for its signature")
    head = b"lamella/1 prune\0" + root + writer + u64(seq) + prev
    return head + u16(record.type) + u32(len(record.value)) + record.value[:-64]
