"""Records carried by commits (FORMAT 8): what every repository is made of. `known` finds the others.

Each record is a dataclass whose `LAYOUT` has one field of bytes for each attribute, in the same order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from struct import Struct
from typing import ClassVar, NamedTuple, Self

from lamella.base.errors import IntegrityError
from lamella.base.ids import CATALOGUE, ChunkId, DomainId, RepoId, SnapId, VolumeId, WriterId
from lamella.format.cursor import Cursor, u8, u16, u32, u64
from lamella.format.layout import (
    BYTES16,
    CHUNK,
    FLAG,
    HASH,
    ID,
    REST,
    SIGNATURE,
    TEXT,
    U8,
    U64,
    Field,
    T,
    checked,
    many,
    padded,
    pair,
    row,
    whole,
)

OPTIONAL = 0x8000
UNSIGNED = bytes(64)
FIGURES = 0x8001
DELTAS = 0x0002
"""Inner record, required: chunks of the snapshot may be stored as differences. Who cannot read these refuses it."""
MAX_RECORDS = 65536
MAX_LISTED_PACKS = 65536
"""Packs that an ADD_SNAP lists, at most: a run that made more lists none."""
MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
"""Bytes of the documents of a snapshot together, at most."""
DOCUMENT_PART = 8 * 1024 * 1024 - 8
"""Bytes of a document in each of its parts but the last."""
_REF = Struct("<16sQ16s")


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
        return cls(*_REF.unpack(cursor.take(40)))


NO_REF = Ref(WriterId(bytes(16)), 0, SnapId(bytes(16)))


class RawRecord(NamedTuple):
    """A record as it stands in a commit."""

    type: int
    value: bytes

    def encode(self) -> bytes:
        """Type, length, value."""
        return u16(self.type) + u32(len(self.value)) + self.value


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


class Record:
    """A record with a meaning. Subclasses are dataclasses; `LAYOUT` has a field for each attribute."""

    __slots__ = ()
    TYPE: ClassVar[int]
    LAYOUT: ClassVar[tuple[Field, ...]]  # type: ignore[type-arg]
    __match_args__: ClassVar[tuple[str, ...]]

    def encode_value(self) -> bytes:
        """The value without type and length. Raises OverflowError for a number or text too large for its field."""
        names = self.__match_args__
        return b"".join([field.encode(getattr(self, name)) for field, name in zip(self.LAYOUT, names, strict=True)])

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        """Read a value. Raises IntegrityError."""
        value = cls(*[field.decode(cursor) for field in cls.LAYOUT])
        if why := value.fault():
            cursor.fail(why)
        return value

    def fault(self) -> str:
        """What is wrong with attributes that are sound one by one; empty: nothing."""
        return ""


class Signed(Record):
    """A record that ends in the prune key's signature, or in 64 zero bytes."""

    __slots__ = ()


def raw(record: Record) -> RawRecord:
    """The record as it goes into a commit."""
    return RawRecord(record.TYPE, record.encode_value())


def _split_inner(cursor: Cursor) -> tuple[RawRecord, ...]:
    return tuple(split(cursor.rest(), "ADD_SNAP"))


REF = Field(Ref.encode, Ref.decode, 40)
REFS = many(4, REF)
PACKS = many(4, HASH)
DOMAIN = checked(ID, lambda domain_id: domain_id != CATALOGUE, "names the catalogue as its domain")
CHUNK_LOG2 = checked(U8, lambda log2: 16 <= log2 <= 22, "a chunk size out of range")
_SIZE = checked(U64, lambda size: size < 1 << 63, "a size that no file has")
_CONSISTENCY = checked(padded(U8, 2), lambda number: number <= 5, "an unknown consistency")
_INNER = Field(lambda records: b"".join([record.encode() for record in records]), _split_inner, 0)
_COMPLETE = Field[bool](lambda complete: u8(not complete), lambda cursor: not cursor.flag(), 1)
_LISTED = checked(PACKS, lambda packs: len(packs) <= MAX_LISTED_PACKS, "more packs than may be listed")


# --- writers, volumes, snapshots, files ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Writer(Record):
    """WRITER: who publishes this chain."""

    TYPE = 0x0001
    LAYOUT = (TEXT, TEXT)
    label: str
    machine: str


class VolumeOrigin(NamedTuple):
    """A volume of another repository, of which a volume holds copies; zeros: none."""

    repo_id: RepoId
    volume_id: VolumeId


NO_ORIGIN = VolumeOrigin(RepoId(bytes(16)), VolumeId(bytes(16)))


@dataclass(frozen=True, slots=True)
class Volume(Signed):
    """VOLUME: a name and an identity for a volume id, which follows from its creator and a nonce.

    `signature` lets an admin change another writer's volume, and create one under an id that does not follow.
    """

    TYPE = 0x0002
    LAYOUT = (ID, DOMAIN, CHUNK_LOG2, TEXT, TEXT, BYTES16, ID, ID, row(VolumeOrigin, ID, ID), SIGNATURE)
    volume_id: VolumeId
    domain_id: DomainId
    chunk_log2: int
    name: str
    domain_label: str
    identity: bytes
    creator: WriterId
    nonce: bytes
    origin: VolumeOrigin = NO_ORIGIN
    signature: bytes = UNSIGNED

    @property
    def bound(self) -> bool:
        """Whether the id says who created the volume."""
        return self.volume_id == volume_id(self.creator, self.nonce)


def volume_id(creator: WriterId, nonce: bytes) -> VolumeId:
    """The id of the volume that a writer creates with a nonce of 16 random bytes (FORMAT 8, Owners)."""
    return VolumeId(hashlib.sha256(b"lamella/1 volume\0" + creator + nonce).digest()[:16])


class Document(NamedTuple):
    """A document attached to a snapshot: its name, size and the ids of its parts."""

    name: str
    size: int
    parts: tuple[ChunkId, ...]


DOCUMENT = checked(
    row(Document, TEXT, U64, many(2, CHUNK)),
    lambda document: len(document.parts) == -(-document.size // DOCUMENT_PART),
    "a document whose size does not fit its parts",
)
_DOCUMENTS = checked(
    many(2, DOCUMENT),
    lambda documents: sum(document.size for document in documents) <= MAX_DOCUMENT_BYTES,
    "documents that are too large together",
)


class Figures(NamedTuple):
    """What the run did for a volume (inner record 0x8001). `mode`: 1 full, 2 incremental, 3 compare."""

    mode: int
    read_bytes: int
    stored_bytes: int
    changed_chunks: int
    new_chunks: int

    def encode(self) -> RawRecord:
        """The inner record."""
        return RawRecord(FIGURES, _FIGURES.encode(self))

    @classmethod
    def decode(cls, value: bytes) -> Figures:
        """Read the inner record's value. Raises IntegrityError."""
        return whole(_FIGURES, value, "FIGURES")


_FIGURES = row(Figures, padded(U8, 7), U64, U64, U64, U64)


@dataclass(frozen=True, slots=True)
class AddSnap(Record):
    """ADD_SNAP: one volume's committed moment."""

    TYPE = 0x0003
    LAYOUT = (ID, ID, DOMAIN, CHUNK_LOG2, _CONSISTENCY, _SIZE, CHUNK, U64, REF, TEXT, _DOCUMENTS, _LISTED, _INNER)
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

    def inner_value(self, type_: int, field: Field[T]) -> T | None:
        """What an optional inner record says; None without one, or if it cannot be read: then it was not said."""
        value = next((record.value for record in self.inner if record.type == type_), None)
        try:
            return None if value is None else whole(field, value, "ADD_SNAP")
        except IntegrityError:
            return None

    @property
    def figures(self) -> Figures | None:
        """What the run did, if it said so."""
        return self.inner_value(FIGURES, _FIGURES)

    @property
    def usable(self) -> bool:
        """False if an inner record of a later version is required to understand this snapshot."""
        return all(record.type >= OPTIONAL or record.type == DELTAS for record in self.inner)

    @property
    def has_deltas(self) -> bool:
        """Whether chunks may be stored as differences (FORMAT 6)."""
        return any(record.type == DELTAS for record in self.inner)

    def without_packs(self) -> Self:
        """As checkpoints keep it once it is confirmed."""
        return replace(self, packs=())


@dataclass(frozen=True, slots=True)
class Confirm(Record):
    """CONFIRM: the author saw the packs of these snapshots in the store after publishing them."""

    TYPE = 0x0004
    LAYOUT = (REFS,)
    refs: tuple[Ref, ...]


@dataclass(frozen=True, slots=True)
class File(Signed):
    """FILE: an object outside packs and commits that must have these bytes. Counts only when prune-signed."""

    TYPE = 0x0008
    LAYOUT = (TEXT, U64, HASH, SIGNATURE)
    name: str
    size: int
    sha256: bytes
    signature: bytes = UNSIGNED


@dataclass(frozen=True, slots=True)
class FileGone(File):
    """FILE_GONE: that object is no longer expected."""

    TYPE = 0x0009


class RunVolume(NamedTuple):
    """One volume a run intended to save."""

    volume_id: VolumeId
    name: str
    failed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Run(Record):
    """RUN: what a run intended and what became of it."""

    TYPE = 0x8001
    LAYOUT = (TEXT, _COMPLETE, many(2, row(RunVolume, ID, TEXT, FLAG, TEXT)))
    name: str
    complete: bool
    volumes: tuple[RunVolume, ...]


class SegmentPlace(NamedTuple):
    """A catalogue segment's id and a hint which pack holds it."""

    id: ChunkId
    pack: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint(Record):
    """CHECKPOINT: the whole state of a chain, in segments and the entries that follow them."""

    TYPE = 0x000C
    LAYOUT = (many(4, pair(U64, HASH)), many(4, row(SegmentPlace, CHUNK, HASH)), REST)
    earlier: tuple[tuple[int, bytes], ...]
    segments: tuple[SegmentPlace, ...]
    entries: bytes


@dataclass(frozen=True, slots=True)
class Seen(Record):
    """SEEN: the commit of this entry, and so every later one of its chain, had seen these chains up to these seqs.

    Checkpoints keep it, so that the order of commits survives the commits themselves.
    """

    TYPE = 0x8003
    LAYOUT = (many(2, pair(ID, U64)),)
    heads: tuple[tuple[WriterId, int], ...]

    @classmethod
    def of(cls, clock: Mapping[WriterId, int]) -> Self:
        """What a clock says, ordered by writer."""
        return cls(tuple(sorted(clock.items())))


@dataclass(frozen=True, slots=True)
class Rename(Signed):
    """RENAME: a volume's new name; `signature` lets an admin rename another writer's volume."""

    TYPE = 0x0006
    LAYOUT = (ID, TEXT, SIGNATURE)
    volume_id: VolumeId
    name: str
    signature: bytes = UNSIGNED


def prune_signed_message(root: bytes, writer: WriterId, seq: int, prev: bytes, record: RawRecord) -> bytes:
    """What a prune signature covers: everything but the value's last 64 bytes (FORMAT 8, [sig])."""
    if len(record.value) < 64:
        raise IntegrityError("a signed record too short for its signature")
    head = b"lamella/1 prune\0" + root + writer + u64(seq) + prev
    return head + u16(record.type) + u32(len(record.value)) + record.value[:-64]
