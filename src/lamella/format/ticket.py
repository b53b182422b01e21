"""Tickets: what a qube hands to the host that publishes its files (docs/TREES.md 6). Layout only."""

from __future__ import annotations

from typing import NamedTuple

from lamella.base.ids import ChunkId, DomainId, VolumeId
from lamella.format.cursor import Cursor
from lamella.format.layout import CHUNK, HASH, ID, U8, U64, checked, padded, row
from lamella.format.node import MAX_CHUNK_LOG2, MIN_CHUNK_LOG2

MAGIC = b"LMLTICK\x01"
SIZE = 152


class Ticket(NamedTuple):
    """The tree of one run: where it belongs, its root and size, and when the run began."""

    r: bytes
    domain_id: DomainId
    volume_id: VolumeId
    chunk_log2: int
    consistency: int
    size: int
    root: ChunkId
    time_ms: int

    @property
    def body(self) -> bytes:
        """All of the file but its code."""
        return MAGIC + _TICKET.encode(self)


def split(content: bytes) -> tuple[Ticket, bytes]:
    """A ticket, and the code that proves it. Raises IntegrityError."""
    cursor = Cursor(content, "ticket")
    if cursor.take(len(MAGIC)) != MAGIC:
        cursor.fail("does not begin like one")
    ticket, code = _TICKET.decode(cursor), cursor.take(32)
    cursor.end()
    return ticket, code


_LOG2 = checked(U8, lambda log2: MIN_CHUNK_LOG2 <= log2 <= MAX_CHUNK_LOG2, "a chunk size out of range")
_CONSISTENCY = checked(padded(U8, 6), lambda number: number <= 5, "an unknown consistency")
_SIZE = checked(U64, lambda size: 0 < size < 1 << 63, "a size that no tree has")
_TICKET = row(Ticket, HASH, ID, ID, _LOG2, _CONSISTENCY, _SIZE, CHUNK, U64)
