"""Whether QEMU has an image open for writing: its image lock tells everybody on the same host."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

# QEMU's file-posix.c: whoever may use a permission of the image holds a lock on the byte 100 + its bit. 1: write,
# 2: write what does not change the contents, 3: resize.
_QEMU_WRITES: Final = (101, 3)
_FLOCK: Final = struct.Struct("hhqqi0q")


def qemu_may_write(fd: int) -> bool:
    """Whether a QEMU on this host has the open file for writing, by its image lock (fcntl(2), F_OFD_GETLK)."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, *_QEMU_WRITES, 0)
    try:
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
    except OSError:
        return False
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)
