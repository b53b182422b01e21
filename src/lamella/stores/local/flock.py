"""The repository's lock on a file system: flock on the marker, and which file systems lock as they should.

The kernel releases it when the holder dies (FORMAT 8, 13.11).
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamella.base.errors import Locked, StoreRefused
from lamella.base.names import MARKER
from lamella.stores.local.directory import DIRECTORY_FLAGS, FILE_FLAGS, checked_regular

PAUSE_SECONDS = 0.05
LOCKING_FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs"})
"""File systems of this kernel alone: flock there excludes every process that can reach the files (FORMAT 13.11)."""

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF}
_LOCKLESS = "mount it with locks (NFS: lockd must run at both ends), or use ssh:// to the machine with the disk"


@contextmanager
def held(root: int, *, exclusive: bool, wait_seconds: float) -> Iterator[None]:
    """Hold the lock while the context lasts: on the marker below `root`, or on `root` itself as long as there is none.

    Each call has its own open file, so threads exclude each other as processes do. Raises Locked when not had within
    `wait_seconds`, StoreRefused where the file system knows no locks, OSError.
    """
    deadline = time.monotonic() + wait_seconds
    descriptor = _acquired(root, exclusive)
    while descriptor is None:
        left = deadline - time.monotonic()
        if left <= 0:
            from lamella.run.holders import holder_in  # only for the one who does not get the lock

            raise Locked(
                f"another process holds the repository's lock{holder_in(lambda: _opened(root))}",
                obj=MARKER,
                hint="wait until the other Lamella process has finished; a lock never outlives its process",
            )
        time.sleep(min(PAUSE_SECONDS, left))
        descriptor = _acquired(root, exclusive)
    try:
        yield
    finally:
        os.close(descriptor)


def _acquired(root: int, exclusive: bool) -> int | None:
    """Return a descriptor that holds the lock, or None if another holder is in the way."""
    while True:
        descriptor = _opened(root)
        try:
            locked = _try(descriptor, exclusive)
            current = locked and _is_current(root, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        if current:
            return descriptor
        os.close(descriptor)
        if not locked:
            return None
        # The marker was created or replaced while we opened it: the lock we got excludes nobody. Again.


def _opened(root: int) -> int:
    try:
        descriptor = os.open(MARKER, FILE_FLAGS, dir_fd=root)
    except FileNotFoundError:
        return os.open(".", DIRECTORY_FLAGS, dir_fd=root)
    try:
        checked_regular(os.fstat(descriptor), MARKER)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _try(descriptor: int, exclusive: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise StoreRefused("the file system has no locks", obj=MARKER, hint=_LOCKLESS) from error
        raise
    return True


def _is_current(root: int, descriptor: int) -> bool:
    """Whether opening the lock now would open the same file."""
    try:
        now = os.stat(MARKER, dir_fd=root, follow_symlinks=False)
    except FileNotFoundError:
        now = os.fstat(root)
    mine = os.fstat(descriptor)
    return (mine.st_dev, mine.st_ino) == (now.st_dev, now.st_ino)


def file_system_of(descriptor: int) -> str:
    """Return the file system type of an open file, such as "ext4"; empty when the kernel does not say.

    The mount is found by its number, not by comparing paths, which bind mounts and mounts over mounts would mislead.
    """
    try:
        mount = _mount_number(Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii"))
        table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    return file_system_in(table, mount)


def file_system_in(table: str, mount: str) -> str:
    """Return the type of the mount with that number in the text of a mountinfo table; empty when it is not there."""
    for line in table.split("\n"):
        fields, separator, rest = line.partition(" - ")
        if separator and fields.split(" ", 1)[0] == mount:
            return rest.split(" ", 1)[0]
    return ""


def _mount_number(fdinfo: str) -> str:
    for line in fdinfo.split("\n"):
        key, _, value = line.partition(":")
        if key == "mnt_id":
            return value.strip()
    return ""
