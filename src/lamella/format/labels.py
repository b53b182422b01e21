"""Records that label snapshots: tags and pins (FORMAT 8)."""

from __future__ import annotations

from dataclasses import dataclass

from lamella.format.cursor import Cursor, u8
from lamella.format.layout import SIGNATURE, TEXT, Field
from lamella.format.records import REF, UNSIGNED, Ref, Signed


def _operation(cursor: Cursor) -> bool:
    operation = cursor.uint(1)
    if operation not in (1, 2):
        cursor.fail("an unknown operation")
    return operation == 2


_REMOVED = Field[bool](lambda removed: u8(2 if removed else 1), _operation, 1)


@dataclass(frozen=True, slots=True)
class Tag(Signed):
    """TAG: a snapshot gets a tag, or loses it (`removed`); `signature` lets an admin take another writer's tag away."""

    TYPE = 0x0005
    LAYOUT = (REF, _REMOVED, TEXT, SIGNATURE)
    ref: Ref
    removed: bool
    tag: str
    signature: bytes = UNSIGNED


@dataclass(frozen=True, slots=True)
class Pin(Signed):
    """PIN: no rule removes this snapshot, or rules may again (`removed`); signed as a Tag."""

    TYPE = 0x0007
    LAYOUT = (REF, _REMOVED, TEXT, SIGNATURE)
    ref: Ref
    removed: bool
    reason: str
    signature: bytes = UNSIGNED
