"""Records about deletion and lost history (FORMAT 8): each counts only with the prune key's signature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from lamella.base.ids import WriterId
from lamella.format.commit import Head
from lamella.format.cursor import Cursor, u32, u64
from lamella.format.records import UNSIGNED, AddSnap, Ref


@dataclass(frozen=True, slots=True)
class Remove:
    """REMOVE: these snapshots are no more. Unsigned it only marks them."""

    TYPE: ClassVar[int] = 0x0010
    refs: tuple[Ref, ...]
    signature: bytes = UNSIGNED

    def encode_value(self) -> bytes:
        return u32(len(self.refs)) + b"".join(ref.encode() for ref in self.refs) + self.signature

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        return cls(tuple(Ref.decode(cursor) for _ in range(cursor.count(4, 40))), cursor.take(64))


@dataclass(frozen=True, slots=True)
class RemoveLast(Remove):
    """REMOVE_LAST: as REMOVE, by somebody who said that no whole snapshot need be left: REVIVE brings none back."""

    TYPE: ClassVar[int] = 0x0018


@dataclass(frozen=True, slots=True)
class Revive:
    """REVIVE: a removed snapshot is published anew, because its volume was left without a whole one.

    `removed` names the snapshot that was removed; `added` is the new one, whose author is the publisher of this record.
    """

    TYPE: ClassVar[int] = 0x0017
    removed: Ref
    added: AddSnap
    signature: bytes = UNSIGNED

    def encode_value(self) -> bytes:
        return self.removed.encode() + self.added.encode_value() + self.signature

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        removed, rest = Ref.decode(cursor), cursor.rest()
        if len(rest) < 64:
            cursor.fail("too short for its signature")
        inner = Cursor(rest[:-64], cls.__name__)
        added = AddSnap.decode(inner)
        inner.end()
        return cls(removed, added, rest[-64:])


@dataclass(frozen=True, slots=True)
class Condemn:
    """CONDEMN: these packs are to go, as seen from these heads."""

    TYPE: ClassVar[int] = 0x0011
    batch: bytes
    packs: tuple[bytes, ...]
    heads: tuple[Head, ...]
    signature: bytes = UNSIGNED

    def encode_value(self) -> bytes:
        return self.batch + _packs(self.packs) + _heads(self.heads) + self.signature

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        return cls(cursor.take(16), _read_packs(cursor), _read_heads(cursor), cursor.take(64))


@dataclass(frozen=True, slots=True)
class Rescue:
    """RESCUE: these packs of a batch stay after all."""

    TYPE: ClassVar[int] = 0x0012
    batch: bytes
    packs: tuple[bytes, ...]
    signature: bytes = UNSIGNED

    def encode_value(self) -> bytes:
        return self.batch + _packs(self.packs) + self.signature

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        return cls(cursor.take(16), _read_packs(cursor), cursor.take(64))


@dataclass(frozen=True, slots=True)
class Reaped(Condemn):
    """REAPED: these packs and commits of a batch were deleted."""

    TYPE: ClassVar[int] = 0x0013


@dataclass(frozen=True, slots=True)
class Retire:
    """RETIRE: this writer is gone; its chain ends with this commit."""

    TYPE: ClassVar[int] = 0x0014
    head: Head
    signature: bytes = UNSIGNED

    def encode_value(self) -> bytes:
        return _head(self.head) + self.signature

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        return cls(_read_head(cursor), cursor.take(64))


@dataclass(frozen=True, slots=True)
class Audited(Retire):
    """AUDITED: the CHECKPOINT in this commit says what the commits before it say; a chain may begin there."""

    TYPE: ClassVar[int] = 0x0015


@dataclass(frozen=True, slots=True)
class Forgo(Retire):
    """FORGO: this commit, and those missing right before it, are given up: nobody waits for them any more."""

    TYPE: ClassVar[int] = 0x0016


def _packs(packs: Sequence[bytes]) -> bytes:
    return u32(len(packs)) + b"".join(packs)


def _head(head: Head) -> bytes:
    return head.writer + u64(head.seq) + head.sha256


def _heads(heads: Sequence[Head]) -> bytes:
    return u32(len(heads)) + b"".join(_head(head) for head in heads)


def _read_packs(cursor: Cursor) -> tuple[bytes, ...]:
    return tuple(cursor.take(32) for _ in range(cursor.count(4, 32)))


def _read_head(cursor: Cursor) -> Head:
    return Head(WriterId(cursor.take(16)), cursor.uint(8), cursor.take(32))


def _read_heads(cursor: Cursor) -> tuple[Head, ...]:
    return tuple(_read_head(cursor) for _ in range(cursor.count(4, 56)))
