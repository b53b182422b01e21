"""What a checkpoint carries: entries of catalogue segments, and those it holds itself, within bounds (FORMAT 8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from lamella.base.errors import IntegrityError
from lamella.base.trust import Opened
from lamella.format.commit import ChainEntry
from lamella.format.container import MAX_OBJECT
from lamella.format.cursor import Cursor
from lamella.format.records import Checkpoint, RawRecord

MAX_CARRIED = 1 << 18
"""Entries that a checkpoint carries, at most; their bytes are bounded by `MAX_OBJECT`."""
MAX_SEGMENTS = 256
"""Segments that a checkpoint names, at most."""
SEGMENT_HEAD = b"\x01" + bytes(7)
_ENTRY_HEAD = 8 + 32 + 8 + 2 + 4


class Room:
    """What one checkpoint may still carry: bytes, its segments included, and entries."""

    def __init__(self) -> None:
        self._bytes, self._entries = MAX_OBJECT, MAX_CARRIED

    @staticmethod
    def fits(entries: Sequence[ChainEntry]) -> bool:
        """Whether a checkpoint may carry these; what they had seen has as much room again."""
        size = sum(_ENTRY_HEAD + len(entry.record.value) for entry in entries)
        return 2 * len(entries) <= MAX_CARRIED and 2 * size <= MAX_OBJECT

    def entries(self, content: bytes, what: str) -> list[ChainEntry]:
        """Cut a sequence of entries that is a part of the checkpoint. Raises IntegrityError."""
        self._bytes -= len(content)
        found = list(islice(decode_entries(content, what), self._entries + 1)) if self._bytes >= 0 else []
        self._entries -= len(found)
        if min(self._bytes, self._entries) < 0:
            raise IntegrityError("a checkpoint that carries too much", obj=what)
        return found

    def segment(self, content: Opened, what: str) -> list[ChainEntry]:
        """The entries of a catalogue segment (kind 7) of the checkpoint. Raises IntegrityError."""
        if content[:8] != SEGMENT_HEAD:
            raise IntegrityError("a catalogue segment of unknown version", obj=what)
        return self.entries(content[8:], what)


def decode_entries(content: bytes, what: str) -> Iterator[ChainEntry]:
    """Cut a sequence of entries. Raises IntegrityError."""
    cursor = Cursor(content, what)
    while cursor.remaining:
        seq, prev, time_ms, type_ = cursor.uint(8), cursor.take(32), cursor.uint(8), cursor.uint(2)
        if seq == 0 or type_ == Checkpoint.TYPE:
            cursor.fail("an entry that no commit can have made")
        yield ChainEntry(seq, prev, time_ms, RawRecord(type_, cursor.take(cursor.uint(4))))
