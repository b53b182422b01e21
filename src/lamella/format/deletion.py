"""Records about deletion and lost history (FORMAT 8): each counts only with the prune key's signature."""

from __future__ import annotations

from dataclasses import dataclass

from lamella.format.commit import HEAD, Head
from lamella.format.cursor import Cursor
from lamella.format.layout import HASH, ID, SIGNATURE, U64, Field, many, pair
from lamella.format.records import PACKS, REF, REFS, UNSIGNED, AddSnap, Ref, Signed


def _added(cursor: Cursor) -> AddSnap:
    """All but the signature at the end."""
    if cursor.remaining < 64:
        cursor.fail("too short for its signature")
    return AddSnap.decode(Cursor(cursor.take(cursor.remaining - 64), "Revive"))


@dataclass(frozen=True, slots=True)
class Remove(Signed):
    """REMOVE: these snapshots are removed. Without a signature the record only marks them."""

    TYPE = 0x0010
    LAYOUT = (REFS, SIGNATURE)
    refs: tuple[Ref, ...]
    signature: bytes = UNSIGNED


@dataclass(frozen=True, slots=True)
class RemoveLast(Remove):
    """REMOVE_LAST: as REMOVE, by an admin who accepted that no whole snapshot is left: REVIVE brings none back."""

    TYPE = 0x0018


@dataclass(frozen=True, slots=True)
class Revive(Signed):
    """REVIVE: a removed snapshot is published again, because its volume was left without a whole one.

    `removed` names the snapshot that was removed; `added` is the new one, whose author is the publisher of this record.
    """

    TYPE = 0x0017
    LAYOUT = (REF, Field(AddSnap.encode_value, _added, 0), SIGNATURE)
    removed: Ref
    added: AddSnap
    signature: bytes = UNSIGNED


@dataclass(frozen=True, slots=True)
class Condemn(Signed):
    """CONDEMN: these packs are to go, as seen from these heads."""

    TYPE = 0x0011
    LAYOUT = (ID, PACKS, many(4, HEAD), SIGNATURE)
    batch: bytes
    packs: tuple[bytes, ...]
    heads: tuple[Head, ...]
    signature: bytes = UNSIGNED


@dataclass(frozen=True, slots=True)
class Rescue(Signed):
    """RESCUE: these packs of a batch stay after all."""

    TYPE = 0x0012
    LAYOUT = (ID, PACKS, SIGNATURE)
    batch: bytes
    packs: tuple[bytes, ...]
    signature: bytes = UNSIGNED


@dataclass(frozen=True, slots=True)
class Reaped(Condemn):
    """REAPED: these packs and commits of a batch were deleted."""

    TYPE = 0x0013


@dataclass(frozen=True, slots=True)
class Retire(Signed):
    """RETIRE: this writer is gone; its chain ends with this commit."""

    TYPE = 0x0014
    LAYOUT = (HEAD, SIGNATURE)
    head: Head
    signature: bytes = UNSIGNED


@dataclass(frozen=True, slots=True)
class Audited(Retire):
    """AUDITED: the CHECKPOINT in this commit says what the commits before it say; a chain may begin there."""

    TYPE = 0x0015


@dataclass(frozen=True, slots=True)
class Forgo(Signed):
    """FORGO: this commit is given up, and those between it and `base`, the newest one before it that was there.

    `base` is a seq and a SHA-256; 0 and zeros where nothing of the chain was left before it.
    """

    TYPE = 0x0016
    LAYOUT = (HEAD, pair(U64, HASH), SIGNATURE)
    head: Head
    base: tuple[int, bytes]
    signature: bytes = UNSIGNED

    @property
    def there(self) -> Head | None:
        """The commit that was there, and is not given up."""
        return Head(self.head.writer, *self.base) if self.base[0] else None

    def excuses(self, head: Head) -> bool:
        """Whether a commit is given up by this."""
        return head == self.head or (head.writer == self.head.writer and self.base[0] < head.seq < self.head.seq)
