"""Kind-5 contents: parts of documents, and the notes by which lost volumes are found again (FORMAT 6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from lamella.base.errors import IntegrityError
from lamella.base.ids import ChunkId, VolumeId
from lamella.base.trust import Opened
from lamella.format.container import MAX_CONTENT
from lamella.format.cursor import Cursor, text, u8, u64
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


def part_of(content: Opened, what: str) -> bytes:
    """The piece of the document inside a part. Raises IntegrityError."""
    if content[:8] != PART_MAGIC:
        raise IntegrityError("not a part of a document", obj=what)
    return content[8:]


@dataclass(frozen=True, slots=True)
class TreeNote:
    """Says which root is a volume's manifest, for the case that all commits are lost."""

    volume_id: VolumeId
    root: ChunkId
    size: int
    time_ms: int
    chunk_log2: int
    name: str

    def encode(self) -> bytes:
        """The content."""
        head = NOTE_MAGIC + self.volume_id + self.root + u64(self.size) + u64(self.time_ms)
        return head + u8(self.chunk_log2) + text(self.name)

    @classmethod
    def decode(cls, content: Opened) -> Self:
        """Read a note. Raises IntegrityError for what is none."""
        cursor = Cursor(content, "a tree note")
        if cursor.take(8) != NOTE_MAGIC:
            cursor.fail("no tree note")
        volume_id, root = VolumeId(cursor.take(16)), ChunkId(cursor.take(24))
        size, time_ms, chunk_log2, name = cursor.uint(8), cursor.uint(8), cursor.uint(1), cursor.text()
        cursor.end()
        if not MIN_CHUNK_LOG2 <= chunk_log2 <= MAX_CHUNK_LOG2 or time_ms >= MAX_TIME_MS:
            cursor.fail("a chunk size or time out of range")
        return cls(volume_id, root, size, time_ms, chunk_log2, name)


def note_root(content: Opened) -> ChunkId | None:
    """The root that a tree note names; None if the content is no tree note."""
    return ChunkId(content[24:48]) if content[:8] == NOTE_MAGIC and len(content) >= 48 else None
