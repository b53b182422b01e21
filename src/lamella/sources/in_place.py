"""Facts about a volume that is read where it may change: who may write to it, and whether somebody did."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

_PIECES: Final = 64
PIECE: Final = 64 * 1024
"""Bytes of each piece that is read twice."""

_SECTORS_WRITTEN, _SECTORS_DISCARDED = 6, 13


@runtime_checkable
class ReadInPlace(Protocol):
    """Facts that a frozen volume also states if nothing holds it still."""

    def in_use(self) -> str:
        """The program that has it open for writing, where that shows; else nothing."""

    def last_change_ms(self) -> int | None:
        """When it last changed, in milliseconds since 1970; None if that cannot be known."""


def sectors_written(device: int) -> tuple[int, int] | None:
    """Sectors written to and discarded from a block device since it exists; None where the kernel does not count.

    Kernel: Documentation/block/stat.rst. What was written to a whole disk is not counted for its partitions.
    """
    place = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    try:
        fields = place.read_text("ascii").split()
        return int(fields[_SECTORS_WRITTEN]), int(fields[_SECTORS_DISCARDED])
    except (OSError, ValueError, IndexError):
        return None


class ReadTwice:
    """Digests of a few pieces of what was read, which are compared with a second reading. Thread-safe.

    The first piece of the volume, where file systems note what they do, and others at random from all that was read.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chance = random.Random(os.urandom(8))
        self._seen = 0
        self._first: tuple[int, int, bytes] | None = None
        self._kept: list[tuple[int, int, bytes]] = []

    def saw(self, offset: int, buffer: memoryview) -> None:
        """Take notice of bytes that were read (reservoir sampling)."""
        with self._lock:
            self._seen += 1
            place = self._chance.randrange(self._seen)
            within = self._chance.randrange(max(1, len(buffer) - PIECE + 1))
        if offset == 0 and len(buffer):
            self._first = _piece(0, buffer[:PIECE])
        if place >= _PIECES or not len(buffer):
            return
        piece = _piece(offset + within, buffer[within : within + PIECE])
        with self._lock:
            if len(self._kept) < _PIECES:
                self._kept.append(piece)
            else:
                self._kept[place] = piece

    def differs(self, read_into: Callable[[int, memoryview], None]) -> bool:
        """Whether any piece reads otherwise now."""
        buffer = memoryview(bytearray(PIECE))
        for offset, length, digest in sorted(self._kept) + ([self._first] if self._first else []):
            read_into(offset, buffer[:length])
            if _piece(offset, buffer[:length])[2] != digest:
                return True
        return False


def _piece(offset: int, content: memoryview) -> tuple[int, int, bytes]:
    return offset, len(content), blake2b(content, digest_size=16).digest()
