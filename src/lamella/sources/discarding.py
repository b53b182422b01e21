"""Giving blocks of a device back."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

_BLKDISCARD: Final = 0x1277  # linux/fs.h
_SYS: Final = Path("/sys/dev/block")


def discarded_at_once(fd: int) -> int:
    """Bytes that a device discards at the least, on a grid of as many; 0 where it discards nothing."""
    rdev = os.fstat(fd).st_rdev
    return int((_SYS / f"{os.major(rdev)}:{os.minor(rdev)}" / "queue" / "discard_granularity").read_text("ascii"))


def discard(fd: int, start: int, end: int) -> None:
    """Give blocks of a device back. Raises OSError."""
    if start < end:
        fcntl.ioctl(fd, _BLKDISCARD, struct.pack("=QQ", start, end - start))
