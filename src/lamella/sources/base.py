"""The Source contract: one local volume, frozen, read and asked where data may lie.

A source knows byte ranges only: no chunks, no keys, no repository. Drivers translate operating system errors into
SourceError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from enum import IntEnum
from typing import Protocol

from lamella.extents import Extent


class Consistency(IntEnum):
    """What kind of moment a frozen volume shows (FORMAT 6)."""

    UNKNOWN = 0
    """No moment at all: read while it could change."""
    LIVE = 1
    """One moment of a running system, as after a power cut."""
    QUIESCED = 2
    """One moment, with the writers asked to settle before."""
    HALTED = 3
    """Nobody had the volume open for writing."""
    COMMITTED = 4
    """The state of the last orderly shutdown."""


class FrozenVolume(Protocol):
    """A read-only view of a volume."""

    @property
    def size(self) -> int:
        """Bytes of the volume at the frozen moment."""

    def consistency(self) -> Consistency:
        """What was seen, asked after the last read. Raises SourceError if the volume changed its size or vanished."""

    def allocated(self) -> Iterator[Extent]:
        """Yield ascending ranges that may hold data; everything else reads as zero and is known unallocated."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`. Raises SourceError if it cannot be filled completely."""


class Source(Protocol):
    """One local volume."""

    @property
    def driver(self) -> str:
        """The driver's name as shown to users."""

    @property
    def identity(self) -> bytes:
        """What makes this the same volume next time (design: volume identity); at most 8192 bytes."""

    @property
    def default_name(self) -> str:
        """The name the volume gets when the user gives none."""

    def freeze(self) -> AbstractContextManager[FrozenVolume]:
        """One read-only moment, undone on every exit path. Raises SourceError."""
