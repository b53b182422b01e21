"""Reading and writing past the page cache (O_DIRECT), where the kernel means that.

Many file systems accept the flag and use the cache all the same: what is read back then may never have been on a disk.
So the kernel is asked. Where it says nothing, the page cache is used.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from typing import Final

ALIGNMENT: Final = 4096
"""Offsets, lengths and addresses that every disk takes: no logical block in use is larger."""

_BLKSSZGET: Final = 0x1268  # linux/fs.h
# statx(2): AT_EMPTY_PATH, STATX_DIOALIGN, and stx_dio_mem_align, stx_dio_offset_align in struct statx of linux/stat.h
_EMPTY_PATH: Final = 0x1000
_DIOALIGN: Final = 0x2000
_ALIGNMENTS: Final = struct.Struct("=I148xII96x")


def reopened(fd: int) -> int:
    """A second descriptor of an open file or device that passes the page cache by; -1 where there is none."""
    try:
        needed = _device_block(fd) if stat.S_ISBLK(os.fstat(fd).st_mode) else _file_alignment(fd)
        if not 0 < needed <= ALIGNMENT:
            return -1
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1


def _device_block(fd: int) -> int:
    return int(struct.unpack("=I", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0])


def _file_alignment(fd: int) -> int:
    """The alignment of direct access to a file; 0 where the kernel goes through the cache, or does not say."""
    import ctypes  # devices do without

    answer = ctypes.create_string_buffer(_ALIGNMENTS.size)
    statx = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
    if statx is not None and statx(fd, b"", _EMPTY_PATH, _DIOALIGN, answer) == 0:
        mask, memory, offset = _ALIGNMENTS.unpack(answer.raw)
        if mask & _DIOALIGN:
            return max(memory, offset) if memory else 0
    from lamella.sources.cloning import FS_NOCOW_FL, inode_flags  # Btrfs

    # Btrfs never says. Written in place a file has neither checksums nor compression, which are made in the cache.
    return ALIGNMENT if inode_flags(fd) & FS_NOCOW_FL else 0
