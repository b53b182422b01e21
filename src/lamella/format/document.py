"""Kind-5 contents: parts of documents, and the notes by which lost volumes are found again (FORMAT 6)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lamella.base.errors import IntegrityError
from lamella.base.ids import ChunkId, VolumeId
from lamella.base.trust import Opened
from lamella.format.container import MAX_CONTENT
from lamella.format.cursor import Cursor
from lamella.format.layout import CHUNK, ID, TEXT, U8, U64, checked, row
from lamella.format.node import MAX_CHUNK_LOG2, MIN_CHUNK_LOG2

PART_MAGIC = b"LMLDOCU\x01"
NOTE_MAGIC = b"LMLTREE\x01"
MAX_NOTE = 8 + 16 + 24 + 8 + 8 + 1 + 1 + 255
MAX_TIME_MS = 253_402_300_800_000
"""The end of the year 9999: what cannot be shown is no time."""


def parts(document: bytes) -> Iterator[bytes]:
    """The contents that hold a document."""
    step = MAX_CONTENT - len(PART_MAGIC)
    for start in range(0, len(document), step):
        yield PART_MAGIC + document[start : start + step]


def part_lengths(size: int) -> list[int]:
    """Bytes of the contents that hold a document of `size` bytes: what the position of each part implies."""
    step = MAX_CONTENT - len(PART_MAGIC)
    return [len(PART_MAGIC) + min(step, size - start) for start in range(0, size, step)]


def part_of(content: Opened, what: str) -> bytes:
    """The piece of the document inside a part. Raises IntegrityError."""
    if content[:8] != PART_MAGIC:
        raise IntegrityError("not a part of a document", obj=what)
    return content[8:]


class TreeNote(NamedTuple):
    """Says which root is a volume's manifest, for the case that all commits are lost."""

    volume_id: VolumeId
    root: ChunkId
    size: int
    time_ms: int
    chunk_log2: int
    name: str

    def encode(self) -> bytes:
        """The content."""
        return NOTE_MAGIC + _NOTE.encode(self)

    @classmethod
    def decode(cls, content: Opened) -> TreeNote:
        """Read a note. Raises IntegrityError for what is none."""
        cursor = Cursor(content, "a tree note")
        if cursor.take(8) != NOTE_MAGIC:
            cursor.fail("no tree note")
        note = _NOTE.decode(cursor)
        cursor.end()
        return note


_CHUNK_LOG2 = checked(U8, lambda log2: MIN_CHUNK_LOG2 <= log2 <= MAX_CHUNK_LOG2, "a chunk size out of range")
_TIME = checked(U64, lambda time_ms: time_ms < MAX_TIME_MS, "a time out of range")
_NOTE = row(TreeNote, ID, CHUNK, U64, _TIME, _CHUNK_LOG2, TEXT)


def note_root(content: Opened) -> ChunkId | None:
    """The root that a tree note names; None if the content is no tree note."""
    return ChunkId(content[24:48]) if content[:8] == NOTE_MAGIC and len(content) >= 48 else None
