"""Reading without a trace: what others have in the page cache stays there, and nothing is added to it."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from collections import deque
from contextlib import suppress
from typing import Final, NamedTuple

_AHEAD_BYTES: Final = 16 << 20
"""Farther than this Linux reads ahead of no read: twice its window (`read_ahead_kb`) of 8 MiB."""
_IN_MEMORY: Final = bytes(entry & 1 for entry in range(256))
"""mincore(2): the other bits of an entry mean nothing."""
_KEPT_LOOKS: Final = 16


class Residency(NamedTuple):
    """What was in memory before a read: a byte for each page from the one at `start` on, 1 where it was."""

    start: int
    pages: bytes


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
        self._size = size
        # Never touched, only asked about. A private writable mapping needs no right to write, and has an address.
        self._mapped = mmap.mmap(fd, size, access=mmap.ACCESS_COPY)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._mapped))
        self._mincore = ctypes.CDLL(None, use_errno=True).mincore
        self._mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
        self._looks: deque[Residency] = deque()

    def close(self) -> None:
        """Give back what is left, and the mapping."""
        while self._looks:
            self.give_back(self._looks.popleft())
        self._mapped.close()

    def resident(self, offset: int, length: int) -> bytes:
        """For each page from the one with `offset` on, 1 if it is in memory; empty if nobody may know."""
        start = offset - offset % mmap.PAGESIZE
        length += offset - start
        pages = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
        answer = self._mincore(self._start + start, length, pages)
        return pages.raw.translate(_IN_MEMORY) if answer == 0 else b""

    def look(self, offset: int, length: int) -> Residency:
        """What is in memory of a range that is to be read.

        Pages that others read bear the kernel's marks of readahead. A read of such a page makes the kernel read the
        pages after it, whatever advice it has (page_cache_async_ra in mm/readahead.c), and these bear marks again. So
        this looks farther ahead there. A page that an earlier look found absent counts as absent: our reads brought it.
        """
        start = offset - offset % mmap.PAGESIZE
        pages = self.resident(offset, length)
        earlier = max((each for each in tuple(self._looks) if each.start <= start < _end(each)), default=None, key=_end)
        if earlier is not None or 1 in pages:
            if earlier is not None:
                pages = _in_both(pages, earlier.pages[(start - earlier.start) // mmap.PAGESIZE :])
            known = start + len(pages) * mmap.PAGESIZE
            pages += self.resident(known, max(0, min(offset + length + _AHEAD_BYTES, self._size) - known))
            self._looks.append(Residency(start, pages))
            if len(self._looks) > _KEPT_LOOKS:
                # The kernel drops no page that is being read, and no large folio of which a part is to stay.
                self.give_back(self._looks.popleft())
        return Residency(start, pages)

    def give_back(self, look: Residency) -> None:
        """Drop the pages that were not in memory, unless they wait to be written."""
        for absent in re.finditer(rb"\0+", look.pages):
            place, length = look.start + absent.start() * mmap.PAGESIZE, len(absent[0]) * mmap.PAGESIZE
            with suppress(OSError):  # advice only
                os.posix_fadvise(self._fd, place, length, os.POSIX_FADV_DONTNEED)


def _end(look: Residency) -> int:
    return look.start + len(look.pages) * mmap.PAGESIZE


def _in_both(now: bytes, earlier: bytes) -> bytes:
    """Residency from one page on: in memory now and earlier; where one of the two ends, as the other says."""
    length = min(len(now), len(earlier))
    both = int.from_bytes(now[:length], "little") & int.from_bytes(earlier[:length], "little")
    return both.to_bytes(length, "little") + max(now, earlier, key=len)[length:]
