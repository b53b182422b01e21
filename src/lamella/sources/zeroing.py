"""Making a range of a file or device read as zero, by the means that the kernel offers."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable
from enum import IntEnum

# Modes of fallocate(2), from linux/falloc.h. KEEP_SIZE is required with PUNCH_HOLE, and for ZERO_RANGE on devices.
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02
_FALLOC_FL_ZERO_RANGE = 0x10

# The file system, device or kernel cannot do it, or not for a range of this alignment: zeros have to be written.
_CANNOT = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENODEV}

_ZEROS = memoryview(bytes(1 << 20))


class Zeroing(IntEnum):
    """The fate of the space behind a zeroed range."""

    KEEP_SPACE = _FALLOC_FL_ZERO_RANGE | _FALLOC_FL_KEEP_SIZE
    """It stays allotted."""
    GIVE_BACK = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    """It becomes a hole. On a device only where discarded blocks are sure to read as zero."""


def zero_range(fd: int, start: int, end: int, how: Zeroing) -> None:
    """Make `[start, end)` read as zero, by writing zeros if there is no other way. Raises OSError."""
    if start >= end:
        return
    for mode in dict.fromkeys((how, Zeroing.KEEP_SPACE)):
        try:
            _fallocate(fd, mode, start, end - start)
        except OSError as reason:
            if reason.errno not in _CANNOT:
                raise
        else:
            return
    while start < end:
        start += os.pwrite(fd, _ZEROS[: end - start], start)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    call = _libc_fallocate()
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    while call(fd, mode, offset, length):
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


@functools.cache
def _libc_fallocate() -> Callable[[int, int, int, int], int] | None:
    libc = ctypes.CDLL(None, use_errno=True)
    # With 64-bit offsets on every machine: glibc has both names, musl one of them.
    call = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if call is None:
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    call.restype = ctypes.c_int
    found: Callable[[int, int, int, int], int] = call
    return found
