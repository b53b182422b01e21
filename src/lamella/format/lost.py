"""What repairs and verifications say in the repository (FORMAT 8): which parts of a snapshot are lost, and at which
addresses a blob did not open.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Self

from lamella.base.ids import ChunkId
from lamella.format.container import Kind
from lamella.format.cursor import Cursor, u64
from lamella.format.layout import CHUNK, HASH, SIGNATURE, TEXT, U8, U64, Field, checked, many, row
from lamella.format.records import REF, UNSIGNED, Record, Ref, Signed

MAX_RANGES = 4096
MAX_BAD = 4096
"""Addresses in one BAD record."""
BAD_BYTES = 32 + 1 + 24
"""Bytes of one of them."""

Range = tuple[int, int]
"""First byte and the byte after the last one."""


def _range(cursor: Cursor) -> Range:
    start, length = cursor.uint(8), cursor.uint(8)
    return start, start + length


_RANGE = Field[Range](lambda one: u64(one[0]) + u64(one[1] - one[0]), _range, 16)


@dataclass(frozen=True, slots=True)
class Lost(Signed):
    """LOST: these parts of a snapshot cannot be restored. Without any part: it is whole, whatever was said before.

    `lost_bytes` are exact; `ranges` ascend, and where there were more than 4096 some reach across what is not lost.
    """

    TYPE = 0x8002
    LAYOUT = (REF, U64, many(4, _RANGE), many(2, TEXT), SIGNATURE)
    ref: Ref
    lost_bytes: int
    ranges: tuple[Range, ...] = ()
    documents: tuple[str, ...] = ()
    signature: bytes = UNSIGNED

    @classmethod
    def of(cls, ref: Ref, ranges: Iterable[Range], documents: Iterable[str] = ()) -> Self:
        """From ascending ranges, joined and made few enough."""
        from lamella.format.ranges import fewer, join  # most snapshots lost nothing

        joined = join(ranges)
        total = sum(end - start for start, end in joined)
        return cls(ref, total, tuple(fewer(joined, MAX_RANGES)), tuple(sorted(documents)))

    @property
    def whole(self) -> bool:
        """Whether nothing is lost."""
        return not self.ranges and not self.documents

    def fault(self) -> str:
        """Ranges that cannot be, or sums that do not fit them."""
        empty = any(start == end for start, end in self.ranges)
        if empty or any(following <= end for (_, end), (following, _) in pairwise(self.ranges)):
            return "ranges that are empty or do not ascend"
        most = sum(end - start for start, end in self.ranges)
        if len(self.ranges) > MAX_RANGES or (self.lost_bytes == 0) != (not self.ranges) or self.lost_bytes > most:
            return "impossible sums"
        return ""


class Address(NamedTuple):
    """Where a blob did not open. Kind DIRECTORY with an id of zeros: the head of the pack itself did not."""

    pack: bytes
    kind: Kind
    id: ChunkId

    @classmethod
    def head(cls, pack: bytes) -> Address:
        """That of a pack's head."""
        return cls(pack, Kind.DIRECTORY, ChunkId(bytes(24)))


_IN_PACKS = (Kind.DIRECTORY, Kind.CHUNK, Kind.LEAF, Kind.INNER, Kind.DOCUMENT, Kind.SEGMENT)
_KIND = checked(U8, lambda kind: kind in _IN_PACKS, "a kind of blob that no pack has")
_ADDRESS = checked(
    row(lambda pack, kind, id_: Address(pack, Kind(kind), id_), HASH, _KIND, CHUNK),
    lambda address: (address.kind == Kind.DIRECTORY) == (address.id == bytes(24)),
    "a directory with an id, or a blob without",
)


@dataclass(frozen=True, slots=True)
class Bad(Record):
    """BAD: a verification could not open these blobs. A place to look at again, never a verdict (FORMAT 8, BAD)."""

    TYPE = 0x8004
    LAYOUT = (many(4, _ADDRESS),)
    addresses: tuple[Address, ...]

    def fault(self) -> str:
        """None, or too many."""
        return "" if 0 < len(self.addresses) <= MAX_BAD else "an impossible number of addresses"
