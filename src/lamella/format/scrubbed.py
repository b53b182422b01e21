"""The inner record SCRUBBED of ADD_SNAP: what was left out of a volume on purpose (FORMAT 8)."""

from __future__ import annotations

from typing import NamedTuple

from lamella.format.layout import TEXT, U64, many, row
from lamella.format.records import AddSnap, RawRecord

SCRUBBED = 0x8013
MOST_PATTERNS = 256


class ScrubbedNote(NamedTuple):
    """The names that fitted, the bytes that became free, the file system, and the patterns."""

    names: int
    freed: int
    file_system: str
    patterns: tuple[str, ...]

    def encode(self) -> RawRecord:
        """The inner record."""
        return RawRecord(SCRUBBED, _SCRUBBED.encode(self))

    @classmethod
    def of(cls, added: AddSnap) -> ScrubbedNote | None:
        """What a snapshot says; None if everything is in it."""
        return added.inner_value(SCRUBBED, _SCRUBBED)


_SCRUBBED = row(ScrubbedNote, U64, U64, TEXT, many(2, TEXT))
