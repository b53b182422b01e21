"""Room kept back in the repository, so that a disk that is full to its last block can still be pruned.

Removing a snapshot begins with a write: the record of the removal. `tmp/reserve` is deleted to make room for such small
writes, under the exclusive lock only, because a backup would just use the room up. It is made again when there is room.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from lamella.stores.local.directory import FULL, TEMPORARY, opened_directory
from lamella.stores.local.making import new_file, write_whole

NAME = "reserve"
SIZE = 1 << 20
"""Bytes; random ones, for file systems that compress."""
MOST = SIZE // 4
"""The largest object it is given up for, in bytes."""

_FREE = 4 * SIZE


def keep_reserve(root: int) -> bool:
    """Keep room back below `root` if four times as much is free; whether the reserve exists afterwards."""
    unfinished = os.urandom(16).hex()
    try:
        with opened_directory(root, (TEMPORARY,), create=True) as directory:
            free = os.fstatvfs(directory)
            if _there(directory):
                return True
            if free.f_bavail * free.f_frsize < _FREE:
                return False
            try:
                descriptor = new_file(directory, unfinished, root)
                try:
                    write_whole(descriptor, os.urandom(SIZE))
                finally:
                    os.close(descriptor)
                os.rename(unfinished, NAME, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                with suppress(OSError):  # an interrupted run ends as one, whatever is left
                    os.unlink(unfinished, dir_fd=directory)
                raise
    except OSError:
        return False
    return True


def give_up_reserve(root: int, error: OSError, size: int) -> bool:
    """Delete the reserve for a write of `size` bytes that failed with `error`; whether to try the write again."""
    if error.errno not in FULL or size > MOST:
        return False
    try:
        with opened_directory(root, (TEMPORARY,)) as directory:
            os.unlink(NAME, dir_fd=directory)
    except OSError:
        return False
    return True


def _there(directory: int) -> bool:
    try:
        status = os.stat(NAME, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size >= SIZE
