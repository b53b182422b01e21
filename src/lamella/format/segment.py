"""Index segments: copies of the directories of many packs in one object, as hints for readers (docs/FORMAT.md 11)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.names import SEGMENTS, Part, hash_in
from lamella.base.trust import Opened
from lamella.format.container import (
    ENTRY_SIZE,
    HEADER_SIZE,
    MAX_BLOBS,
    MAX_CONTENT,
    Blob,
    aligned,
    decode_entries,
    directory_length,
    encode_entry,
)
from lamella.format.cursor import Cursor, u8, u32

PREFIX = SEGMENTS
MAX_PACKS = 4096
_HEAD = 8
_ROW = 40


class Covered(NamedTuple):
    """What a segment says of one pack: nothing that may be believed before the pack's own head was opened."""

    pack: bytes
    blobs: list[Blob]


def segment_name(sha256: bytes) -> str:
    """The object name of a segment."""
    return PREFIX + sha256.hex()


def segment_hash(name: str) -> bytes | None:
    """The hash in a segment's object name, None if it is not one."""
    return hash_in(name, Part.SEGMENT)


def row_size(blobs: int) -> int:
    """Bytes that a pack of so many blobs takes in a segment."""
    return _ROW + ENTRY_SIZE * blobs


def fits(size: int, packs: int) -> bool:
    """Whether rows of `size` bytes in all for so many packs make a valid content."""
    return packs <= MAX_PACKS and _HEAD + size <= MAX_CONTENT


def encode(rows: Sequence[Covered]) -> bytes:
    """The content for packs in ascending order of their names."""
    pieces = [u8(1) + bytes(3) + u32(len(rows))]
    for pack, blobs in rows:
        pieces += (pack, u32(directory_length(len(blobs))), u32(len(blobs)))
        pieces += (encode_entry(blob.kind, blob.id, blob.sealed_length, blob.content_length) for blob in blobs)
    return b"".join(pieces)


def decode(content: Opened, name: str) -> Iterator[Covered]:
    """The packs of a segment, one by one. Raises IntegrityError, UnknownFormat, possibly after some were yielded."""
    cursor = Cursor(content, name)
    if cursor.uint(1) != 1:
        raise UnknownFormat("an index segment of unknown version", obj=name)
    cursor.zeros(3)
    count = cursor.count(4, _ROW)
    if count > MAX_PACKS:
        raise IntegrityError("an index segment of too many packs", obj=name)
    before = b""
    for _ in range(count):
        pack, length, blobs = cursor.take(32), cursor.uint(4), cursor.count(4, ENTRY_SIZE)
        if pack <= before or not 0 < blobs <= MAX_BLOBS or length != directory_length(blobs):
            raise IntegrityError("an index segment whose packs are not in order or not possible", obj=name)
        before = pack
        yield Covered(pack, decode_entries(cursor, blobs, aligned(HEADER_SIZE + length), name))
    cursor.end()
