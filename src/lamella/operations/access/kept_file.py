"""The common part of overlays and journals: files of ours with a head that names the owner, used at offsets."""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass

NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_DIGEST = 32


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose writes a file holds: three ids of 16 bytes, and how people call the snapshot."""

    repo_id: bytes
    volume_id: bytes
    snap_id: bytes
    text: str


def sealed(content: bytes) -> bytes:
    """A head with its own SHA-256 behind it."""
    return content + hashlib.sha256(content).digest()


def is_sealed(found: bytes, length: int) -> bool:
    """Whether the first `length` bytes are followed by their own SHA-256."""
    return found[length : length + _DIGEST] == hashlib.sha256(found[:length]).digest()


def read_all(fd: int, offset: int, length: int, least: int = 0) -> bytes:
    """Up to `length` bytes, fewer at the end of the file. Raises OSError if it ends before `least`."""
    content = os.pread(fd, length, offset)
    while len(content) < length:
        more = os.pread(fd, length - len(content), offset + len(content))
        if not more:
            break
        content += more
    if len(content) < least:
        raise OSError(errno.EIO, "the file is shorter than it was")
    return content


def write_all(fd: int, offset: int, content: memoryview) -> None:
    """Write all of it. Raises OSError."""
    while content:
        written = os.pwrite(fd, content, offset)
        offset += written
        content = content[written:]
