"""Pieces that are read at once: their length, a buffer for them, and whether they are zero."""

from __future__ import annotations

import mmap
import threading
from contextlib import suppress

RANGE = 4 * 1024 * 1024

_ZEROS: dict[int, bytes] = {}


def is_zero(part: memoryview) -> bool:
    """Whether all bytes are zero. The ends come first: they suffice for most data."""
    length = len(part)
    if part[0] or part[length - 1] or part[length >> 1]:
        return False
    zeros = _ZEROS.get(length)
    if zeros is None:
        zeros = _ZEROS.setdefault(length, bytes(length))
    # Comparing a copy is many times faster than comparing a memoryview item by item.
    return bytes(part) == zeros


class ThreadBuffers:
    """One page-aligned buffer for each thread, of a range or one chunk: also for reading past the page cache."""

    def __init__(self, chunk_size: int) -> None:
        self._size = max(RANGE, chunk_size)
        self._local = threading.local()

    def view(self, length: int) -> memoryview:
        """This thread's first `length` bytes, until it asks again."""
        buffer = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < length:
            size = max(self._size, length)
            buffer = self._local.buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with suppress(OSError):  # a kernel without huge pages; with them a disk's driver pins 2 pages, not 1024
                buffer.madvise(mmap.MADV_HUGEPAGE)
        return memoryview(buffer)[:length]
