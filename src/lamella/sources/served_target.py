"""Targets that a guest uses while they are restored: written through the page cache, and named without being closed.

The guest's reads and writes and the restore's go through one cache, so that they cannot see each other's bytes half
written. Only what is compared at the end is read past that.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from lamella.base.errors import UsageError
from lamella.sources.direct import reopened
from lamella.sources.local_target import NewFile
from lamella.sources.target import OpenTarget, Target
from lamella.sources.used_target import BlockDevice
from lamella.sources.zeroing import Zeroing, zero_range

UNFINISHED_SUFFIX: Final = ".lamella-instant"
"""Ends the name of a file that is used and not complete: it holds what its guest wrote, and is never begun again."""


def unfinished(path: Path) -> Path:
    """Where the file that is to be at `path` is while it is restored and used."""
    final = path.resolve()
    return final.with_name(final.name + UNFINISHED_SUFFIX)


class ServedTarget(Target, Protocol):
    """A target that is read and written by others before it is finished. OSErrors stay what they are."""

    @property
    def untouched(self) -> bool:
        """Before `prepare`, too: there is nothing that a guest could have written."""

    @property
    def names(self) -> int:
        """The number of names of the unfinished file: 0 where there is none; 1 for a device."""

    @property
    def inode(self) -> int:
        """Of the open file."""

    def get(self, offset: int, length: int) -> bytes:
        """The bytes of a range. Raises OSError."""

    def put(self, offset: int, content: memoryview) -> None:
        """Write all of `content`. Raises OSError."""

    def clear(self, start: int, end: int, *, keep_space: bool) -> None:
        """Make `[start, end)` read as zeros. Raises OSError."""

    def sync(self) -> None:
        """Make durable all that was written. Raises OSError."""

    def take_name(self) -> None:
        """Make everything durable under its final name, and stay open. Raises as `finish`."""


class _Served(OpenTarget):
    @property
    def inode(self) -> int:
        return os.fstat(self._fd).st_ino

    def get(self, offset: int, length: int) -> bytes:
        content = os.pread(self._fd, length, offset)
        while len(content) < length:
            more = os.pread(self._fd, length - len(content), offset + len(content))
            if not more:
                raise OSError(errno.EIO, f"{self.working_path} ends too early")
            content += more
        return content

    def put(self, offset: int, content: memoryview) -> None:
        while content:
            count = os.pwrite(self._fd, content, offset)
            content, offset = content[count:], offset + count

    def clear(self, start: int, end: int, *, keep_space: bool) -> None:
        zero_range(self._fd, start, end, Zeroing.KEEP_SPACE if keep_space else Zeroing.GIVE_BACK)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def _begin(self, size: int) -> None:
        # Nothing is synchronised before there is a journal: it has to know if that fails.
        self._size = size
        self._direct_fd = reopened(self._fd)


class ServedFile(_Served, NewFile):
    """A new file beside its final name."""

    suffix = UNFINISHED_SUFFIX

    @property
    def untouched(self) -> bool:
        with suppress(FileNotFoundError):
            return unfinished(self._given).lstat().st_blocks == 0
        return True

    @property
    def names(self) -> int:
        with suppress(FileNotFoundError):
            return unfinished(self._given).lstat().st_nlink
        return 0


class ServedDevice(_Served, BlockDevice):
    """A block device; which device it is shows in what it holds."""

    untouched = True
    names = 1

    def take_name(self) -> None:
        with self._translated("finish"):
            os.fsync(self._fd)


def disk_number(path: Path) -> str:
    """The kernel's number of the disk under a file or device, which changes when the disk is attached again.

    Documentation/ABI/testing/sysfs-block: diskseq. Empty where it is not known.
    """
    try:
        found = path.stat()
    except OSError:
        return ""
    number = found.st_rdev if stat.S_ISBLK(found.st_mode) else found.st_dev
    place = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    for folder in (place, place.resolve().parent):  # a partition has its disk's
        with suppress(OSError):
            return (folder / "diskseq").read_text("ascii").strip()
    return ""


def choose_served(path: Path, *, overwrite: bool) -> ServedFile | ServedDevice:
    """The target that fits what is at `path`. Raises UsageError for a device without `overwrite`, other names."""
    if str(path).startswith(("lvm:", "rbd:")):
        hint = "make the volume first, and name its device"
        raise UsageError("an instant restore writes to a file or a device", obj=str(path), hint=hint)
    if not path.is_block_device():
        return ServedFile(path, overwrite=overwrite)
    if not overwrite:
        raise UsageError(f"{path} is a device and would be overwritten", obj=str(path), hint="add --overwrite")
    return ServedDevice(path)
