"""What repairs say in the repository (FORMAT 8): what of a snapshot is lost, and which snapshots were rebuilt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

from lamella.format.cursor import Cursor, text, u16, u32, u64
from lamella.format.records import AddSnap, RawRecord, Ref

REBUILT = 0x8020
MAX_RANGES = 4096

Range = tuple[int, int]
"""First byte and the byte after the last one."""


@dataclass(frozen=True, slots=True)
class Lost:
    """LOST: these parts of a snapshot cannot be restored. Without any part: it is whole, whatever was said before.

    `lost_bytes` are exact; `ranges` ascend, and where there were more than 4096 some reach across what is not lost.
    """

    TYPE: ClassVar[int] = 0x8002
    ref: Ref
    lost_bytes: int
    ranges: tuple[Range, ...] = ()
    documents: tuple[str, ...] = ()

    @classmethod
    def of(cls, ref: Ref, ranges: Iterable[Range], documents: Iterable[str] = ()) -> Self:
        """From ascending ranges, joined and made few enough."""
        joined = join(ranges)
        total = sum(end - start for start, end in joined)
        return cls(ref, total, tuple(fewer(joined, MAX_RANGES)), tuple(sorted(documents)))

    @property
    def whole(self) -> bool:
        """Whether nothing is lost."""
        return not self.ranges and not self.documents

    def encode_value(self) -> bytes:
        ranges = b"".join(u64(start) + u64(end - start) for start, end in self.ranges)
        names = b"".join(text(name) for name in self.documents)
        head = self.ref.encode() + u64(self.lost_bytes) + u32(len(self.ranges))
        return head + ranges + u16(len(self.documents)) + names

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        ref, total = Ref.decode(cursor), cursor.uint(8)
        ranges: list[Range] = []
        for _ in range(cursor.count(4, 16)):
            start, length = cursor.uint(8), cursor.uint(8)
            if not length or (ranges and start <= ranges[-1][1]):
                cursor.fail("ranges that are empty or do not ascend")
            ranges.append((start, start + length))
        names = tuple(cursor.text() for _ in range(cursor.count(2, 1)))
        if len(ranges) > MAX_RANGES or (total == 0) != (not ranges) or total > sum(b - a for a, b in ranges):
            cursor.fail("impossible sums")
        return cls(ref, total, tuple(ranges), names)


def join(ranges: Iterable[Range]) -> list[Range]:
    """Ascending ranges with neighbours joined."""
    joined: list[Range] = []
    for start, end in ranges:
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def fewer(ranges: list[Range], most: int) -> list[Range]:
    """At most so many ranges that cover these: the smallest gaps are closed."""
    if len(ranges) <= most:
        return ranges
    gaps = sorted(range(1, len(ranges)), key=lambda number: ranges[number][0] - ranges[number - 1][1], reverse=True)
    starts = [0, *sorted(gaps[: most - 1])]
    return [
        (ranges[first][0], ranges[end - 1][1]) for first, end in zip(starts, [*starts[1:], len(ranges)], strict=True)
    ]


def rebuilt_mark() -> RawRecord:
    """REBUILT, an inner record of ADD_SNAP: made again from a tree note after its commit was lost."""
    return RawRecord(REBUILT, b"\x01" + bytes(7))


def was_rebuilt(added: AddSnap) -> bool:
    """Whether a snapshot says that a repair made it again."""
    return any(record.type == REBUILT for record in added.inner)
