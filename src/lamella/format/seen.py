"""What commits had seen, as checkpoints keep it (FORMAT 8, SEEN): order survives when the commits are gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from lamella.base.ids import WriterId
from lamella.format.cursor import Cursor, u16, u64


@dataclass(frozen=True, slots=True)
class Seen:
    """SEEN: the commit of this entry, and so every later one of its chain, had seen these chains up to these seqs."""

    TYPE: ClassVar[int] = 0x8003
    heads: tuple[tuple[WriterId, int], ...]

    def encode_value(self) -> bytes:
        return u16(len(self.heads)) + b"".join(writer + u64(seq) for writer, seq in self.heads)

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        return cls(tuple((WriterId(cursor.take(16)), cursor.uint(8)) for _ in range(cursor.count(2, 24))))

    @classmethod
    def of(cls, clock: Mapping[WriterId, int]) -> Self:
        """What a clock says, ordered by writer."""
        return cls(tuple(sorted(clock.items())))
