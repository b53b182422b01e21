"""Small changes of labels (FORMAT 8): tags and pins of snapshots, names of volumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from lamella.base.ids import VolumeId
from lamella.format.cursor import Cursor, text, u8
from lamella.format.records import UNSIGNED, Ref


@dataclass(frozen=True, slots=True)
class Tag:
    """TAG: a snapshot gets a tag, or loses it (`removed`); `signature` lets an admin take another writer's tag away."""

    TYPE: ClassVar[int] = 0x0005
    ref: Ref
    removed: bool
    tag: str
    signature: bytes = UNSIGNED

    def encode_value(self) -> bytes:
        return self.ref.encode() + _operation(self.removed) + text(self.tag) + self.signature

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        return cls(Ref.decode(cursor), _is_removal(cursor), cursor.text(), cursor.take(64))


@dataclass(frozen=True, slots=True)
class Rename:
    """RENAME: a volume's new name; `signature` lets an admin rename another writer's volume."""

    TYPE: ClassVar[int] = 0x0006
    volume_id: VolumeId
    name: str
    signature: bytes = UNSIGNED

    def encode_value(self) -> bytes:
        return self.volume_id + text(self.name) + self.signature

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        return cls(VolumeId(cursor.take(16)), cursor.text(), cursor.take(64))


@dataclass(frozen=True, slots=True)
class Pin:
    """PIN: no rule removes this snapshot, or rules may again (`removed`); signed as a Tag."""

    TYPE: ClassVar[int] = 0x0007
    ref: Ref
    removed: bool
    reason: str
    signature: bytes = UNSIGNED

    def encode_value(self) -> bytes:
        return self.ref.encode() + _operation(self.removed) + text(self.reason) + self.signature

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        return cls(Ref.decode(cursor), _is_removal(cursor), cursor.text(), cursor.take(64))


def _operation(removed: bool) -> bytes:
    return u8(2 if removed else 1)


def _is_removal(cursor: Cursor) -> bool:
    operation = cursor.uint(1)
    if operation not in (1, 2):
        cursor.fail("an unknown operation")
    return operation == 2
