"""Reading without a trace: what others have in the page cache stays there, and nothing is added to it."""

from __future__ import annotations

import ctypes
import mmap
import os
from contextlib import suppress


def page_cache(fd: int, size: int) -> PageCache | None:
    """The ranges of an open file of `size` bytes that are in memory; None where that cannot be asked."""
    with suppress(OSError, ValueError, OverflowError):
        cache = PageCache(fd, size)
        # What the kernel reads ahead cannot be told from what others have in memory.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        return cache
    return None


class PageCache:
    """The pages of an open file or device that are in memory: those that reading added are given back. Thread-safe.

    Raises OSError or ValueError if the file cannot be mapped.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        # Never touched, only asked about. A private writable mapping needs no right to write, and has an address.
        self._mapped = mmap.mmap(fd, size, access=mmap.ACCESS_COPY)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._mapped))
        self._mincore = ctypes.CDLL(None, use_errno=True).mincore
        self._mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)

    def close(self) -> None:
        """Give the mapping back."""
        self._mapped.close()

    def resident(self, offset: int, length: int) -> bytes:
        """For each page from the one with `offset` on, whether it is in memory (bit 0); empty if nobody may know."""
        start = offset - offset % mmap.PAGESIZE
        length += offset - start
        pages = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
        answer = self._mincore(self._start + start, length, pages)
        return pages.raw if answer == 0 else b""

    def give_back(self, offset: int, before: bytes) -> None:
        """Drop the pages that were not in memory `before`, unless they wait to be written."""
        start = offset - offset % mmap.PAGESIZE
        page = 0
        while page < len(before):
            resident, first = before[page] & 1, page
            while page < len(before) and before[page] & 1 == resident:
                page += 1
            if not resident:
                place, length = start + first * mmap.PAGESIZE, (page - first) * mmap.PAGESIZE
                with suppress(OSError):  # advice only
                    os.posix_fadvise(self._fd, place, length, os.POSIX_FADV_DONTNEED)
