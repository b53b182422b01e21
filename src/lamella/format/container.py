"""The container of packs, commits and index segments: header, directory, placement (FORMAT 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.ids import ChunkId
from lamella.base.names import CONTAINER_MAGIC
from lamella.base.trust import Opened
from lamella.format.cursor import Cursor, u8, u16, u32

MAGIC = CONTAINER_MAGIC
HEADER_SIZE = 72
FIRST_READ = 32 * 1024
MAX_OBJECT = 64 * 1024 * 1024
MAX_BLOBS = 65535
BODY_HEAD = 5
TAG = 16
ENTRY_SIZE = 32
MAX_CHUNK = 4 * 1024 * 1024
MAX_NODE = 56 + 24 * 64
MAX_LEAF = 56 + 72 * 64
MAX_CONTENT = 8 * 1024 * 1024


class Kind(IntEnum):
    """What a blob is."""

    DIRECTORY = 0
    CHUNK = 1
    LEAF = 2
    INNER = 3
    INDEX = 4
    DOCUMENT = 5
    COMMIT = 6
    SEGMENT = 7


_IN_DIRECTORIES = frozenset(int(kind) for kind in Kind if kind != Kind.DIRECTORY)
NODES = frozenset({Kind.LEAF, Kind.INNER})
"""Kinds of which manifest trees are made."""
_MAX_CONTENT_OF = {Kind.CHUNK: MAX_CHUNK, Kind.LEAF: MAX_LEAF, Kind.INNER: MAX_NODE}


def max_content(kind: Kind) -> int:
    """The largest content a blob of `kind` may have (FORMAT 4)."""
    return _MAX_CONTENT_OF.get(kind, MAX_CONTENT)


class Blob(NamedTuple):
    """One directory entry with its place: `offset` in the object, `sealed_length` with its tag, `content_length`."""

    kind: Kind
    id: ChunkId
    offset: int
    sealed_length: int
    content_length: int


@dataclass(frozen=True, slots=True)
class Header:
    """The 72 clear bytes at the start of a container."""

    aead: int
    directory_length: int
    salt: bytes
    hint: bytes

    def encode(self) -> bytes:
        """The header's bytes."""
        return self.bound_part + u32(self.directory_length) + self.salt + self.hint

    @property
    def bound_part(self) -> bytes:
        """header[0:12]: part of every blob's additional data."""
        return MAGIC + u8(self.aead) + u8(1) + u16(0)

    @property
    def blobs_start(self) -> int:
        """Offset of the first blob."""
        return aligned(HEADER_SIZE + self.directory_length)


def aligned(offset: int) -> int:
    """The next offset divisible by 16."""
    return -(-offset // 16) * 16


def directory_length(blobs: int) -> int:
    """Length of the sealed directory of `blobs` entries with its id in front."""
    return 24 + BODY_HEAD + 4 + ENTRY_SIZE * blobs + TAG


def decode_header(head: bytes, name: str) -> Header:
    """Read the header, which is clear: nothing in it is believed before the directory opens.

    Raises IntegrityError, UnknownFormat.
    """
    cursor = Cursor(head, name)
    if cursor.take(8) != MAGIC:
        raise IntegrityError("does not begin like a container", obj=name)
    aead, keywrap, flags = cursor.uint(1), cursor.uint(1), cursor.uint(2)
    if aead not in (1, 2) or keywrap != 1 or flags:
        raise UnknownFormat("a container with an unknown cipher, key wrapping or flag", obj=name)
    length = cursor.uint(4)
    if not directory_length(1) <= length <= directory_length(MAX_BLOBS) or (length - directory_length(0)) % ENTRY_SIZE:
        raise IntegrityError("a container with an impossible directory length", obj=name)
    return Header(aead, length, cursor.take(32), cursor.take(24))


def encode_directory(entries: Sequence[tuple[Kind, bytes, int, int]]) -> bytes:
    """Directory content from `(kind, id, sealed_length, content_length)` in the order of the blobs."""
    rows = [encode_entry(*entry) for entry in entries]
    return u8(1) + u8(0) + u16(len(rows)) + b"".join(rows)


def encode_entry(kind: Kind, id_: bytes, sealed_length: int, content_length: int) -> bytes:
    """One directory entry."""
    return id_ + sealed_length.to_bytes(3, "little") + u8(kind) + u32(content_length)


def decode_directory(content: Opened, header: Header, name: str) -> list[Blob]:
    """The blobs of a container, placed. Raises IntegrityError, UnknownFormat."""
    cursor = Cursor(content, name)
    if cursor.uint(1) != 1:
        raise UnknownFormat("a directory of unknown version", obj=name)
    cursor.zeros(1)
    blobs = decode_entries(cursor, cursor.count(2, ENTRY_SIZE), header.blobs_start, name)
    cursor.end()
    return blobs


def decode_entries(cursor: Cursor, count: int, offset: int, name: str) -> list[Blob]:
    """The next `count` directory entries, placed from `offset` on. Raises IntegrityError, UnknownFormat."""
    blobs: list[Blob] = []
    for _ in range(count):
        blob = _entry(cursor, offset, name)
        blobs.append(blob)
        offset = aligned(offset + blob.sealed_length)
    if not blobs or len({(blob.kind, blob.id) for blob in blobs}) != len(blobs):
        raise IntegrityError("a directory that is empty or repeats a blob", obj=name)
    if blobs[-1].offset + blobs[-1].sealed_length > MAX_OBJECT:
        raise IntegrityError("a directory that describes too large an object", obj=name)
    return blobs


def _entry(cursor: Cursor, offset: int, name: str) -> Blob:
    id_, clen, kind_number, rlen = cursor.take(24), cursor.uint(3), cursor.uint(1), cursor.uint(4)
    if kind_number not in _IN_DIRECTORIES:
        raise UnknownFormat(f"a directory with unknown kind {kind_number}", obj=name)
    kind = Kind(kind_number)
    if rlen > max_content(kind) or not BODY_HEAD + TAG <= clen <= BODY_HEAD + TAG + rlen:
        raise IntegrityError("a directory with an impossible blob length", obj=name)
    return Blob(kind, ChunkId(id_), offset, clen, rlen)


def object_length(blobs: Sequence[Blob]) -> int:
    """Length of the container that holds exactly `blobs` (without a commit's trailer)."""
    return blobs[-1].offset + blobs[-1].sealed_length


def check_total(blobs: Sequence[Blob], name: str) -> None:
    """Raise IntegrityError if what the directory describes is too much to hold at once: asked before it is decoded."""
    if sum(blob.content_length for blob in blobs) > MAX_OBJECT:
        raise IntegrityError("a container whose contents are too large together", obj=name)


def check_padding(container: bytes, header: Header, blobs: Sequence[Blob], name: str) -> None:
    """Raise IntegrityError unless the object ends with the last blob and every gap is zero."""
    if len(container) != object_length(blobs):
        raise IntegrityError("a container of the wrong length", obj=name)
    end = HEADER_SIZE + header.directory_length
    for blob in blobs:
        if any(container[end : blob.offset]):
            raise IntegrityError("a container whose padding is not zero", obj=name)
        end = blob.offset + blob.sealed_length
