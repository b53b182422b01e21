"""Inner records of ADD_SNAP about change tracking (FORMAT 8): where the sampling cursor stands, and maps that lied."""

from __future__ import annotations

from typing import NamedTuple, Self

from lamella.base.errors import IntegrityError
from lamella.format.cursor import Cursor, u64
from lamella.format.records import AddSnap, RawRecord

SAMPLED, REFUTED = 0x8002, 0x8003


class Sampled(NamedTuple):
    """SAMPLED: the chunk at which the next run's slice begins, and how much was re-read in this run."""

    cursor: int
    sampled_bytes: int

    def encode(self) -> RawRecord:
        """The inner record."""
        return RawRecord(SAMPLED, u64(self.cursor) + u64(self.sampled_bytes))

    @classmethod
    def of(cls, added: AddSnap) -> Self | None:
        """What a snapshot says; None if nothing, or nothing that can be read: the record is optional."""
        numbers = _two_numbers(added, SAMPLED)
        return None if numbers is None else cls(*numbers)


class Refuted(NamedTuple):
    """REFUTED: the change map called the chunk at `offset` unchanged and it was not; everything was compared
    instead.
    """

    offset: int
    length: int

    def encode(self) -> RawRecord:
        """The inner record."""
        return RawRecord(REFUTED, u64(self.offset) + u64(self.length))

    @classmethod
    def of(cls, added: AddSnap) -> Self | None:
        """What a snapshot says; None if nothing."""
        numbers = _two_numbers(added, REFUTED)
        return None if numbers is None else cls(*numbers)


def _two_numbers(added: AddSnap, type_: int) -> tuple[int, int] | None:
    value = next((record.value for record in added.inner if record.type == type_), None)
    if value is None:
        return None
    cursor = Cursor(value, "ADD_SNAP")
    try:
        numbers = (cursor.uint(8), cursor.uint(8))
        cursor.end()
    except IntegrityError:
        return None
    return numbers
