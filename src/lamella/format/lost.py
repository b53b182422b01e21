"""What repairs and verifications say in the repository (FORMAT 8): what of a snapshot is lost, which snapshots were
rebuilt, and at which addresses a blob did not open."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

from lamella.base.ids import ChunkId
from lamella.format.container import Kind
from lamella.format.cursor import Cursor, text, u8, u16, u32, u64
from lamella.format.records import UNSIGNED, AddSnap, RawRecord, Ref

REBUILT = 0x8020
MAX_RANGES = 4096
MAX_BAD = 4096
"""Addresses in one BAD record."""

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
    signature: bytes = UNSIGNED

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
        return head + ranges + u16(len(self.documents)) + names + self.signature

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
        return cls(ref, total, tuple(ranges), names, cursor.take(64))


class Address(NamedTuple):
    """Where a blob did not open. Kind DIRECTORY with an id of zeros: the head of the pack itself did not."""

    pack: bytes
    kind: Kind
    id: ChunkId

    @classmethod
    def head(cls, pack: bytes) -> Address:
        """That of a pack's head."""
        return cls(pack, Kind.DIRECTORY, ChunkId(bytes(24)))


@dataclass(frozen=True, slots=True)
class Bad:
    """BAD: a verification could not open these blobs. A place to look at again, never a verdict (FORMAT 8, BAD)."""

    TYPE: ClassVar[int] = 0x8004
    addresses: tuple[Address, ...]

    def encode_value(self) -> bytes:
        return u32(len(self.addresses)) + b"".join(one.pack + u8(one.kind) + one.id for one in self.addresses)

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        count = cursor.count(4, 57)
        if not 0 < count <= MAX_BAD:
            cursor.fail("an impossible number of addresses")
        return cls(tuple(_address(cursor) for _ in range(count)))


def _address(cursor: Cursor) -> Address:
    pack, kind, id_ = cursor.take(32), cursor.uint(1), ChunkId(cursor.take(24))
    if kind not in (Kind.DIRECTORY, Kind.CHUNK, Kind.LEAF, Kind.INNER, Kind.DOCUMENT, Kind.SEGMENT):
        cursor.fail("a kind of blob that no pack has")
    if (kind == Kind.DIRECTORY) != (id_ == bytes(24)):
        cursor.fail("a directory with an id, or a blob without")
    return Address(pack, Kind(kind), id_)


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
