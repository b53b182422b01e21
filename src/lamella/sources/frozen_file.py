"""An image file or block device read where it may change, and what is known afterwards of the moment it shows.

`consistency` judges by time stamps, the kernel's count of writes, and pieces that are read twice (docs/decisions/0049).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from lamella.base.errors import SourceError, shown_bytes
from lamella.base.extents import Extent
from lamella.sources.base import Consistency
from lamella.sources.driver import OpenVolume, UntrackedMoment, read_failed
from lamella.sources.file import checked_kind
from lamella.sources.in_place import ReadTwice, sectors_written

# The coarsest time stamps of a file system in use: FAT counts two seconds; ext4 with small inodes counts one.
_COARSEST_STAMP_MS = 2_000

_NO_FLUSH = {errno.EINVAL, errno.EROFS, errno.ENOSYS, errno.EOPNOTSUPP}
_NO_HOLE_MAP = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


class FrozenFile(OpenVolume, UntrackedMoment):
    """The volume read in place, which does not stop changing; `consistency` says what was seen."""

    def __init__(self, path: Path, fd: int, opened_ms: int) -> None:
        super().__init__(path, fd, size=0)
        self._opened_ms = opened_ms
        # Taken before the flush. Any later write changes the stamps: by a system call at once; through a shared mapping
        # when it touches a page for the first time after the flush, which made all pages read-only again. Stores before
        # that are in what is read.
        self._before = os.fstat(fd)
        self._is_block = checked_kind(path, self._before)
        self._size = self._size_now()
        self._holes_known = self._flush()
        self._sectors = sectors_written(self._before.st_rdev) if self._is_block else None
        self._twice = ReadTwice()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`, and remember a few pieces for `consistency`. Raises SourceError."""
        super().read_into(offset, buffer)
        self._twice.saw(offset, buffer)

    def in_use(self) -> str:
        """The programs that have the volume open for writing, as far as that shows: QEMU by its lock; else none."""
        from lamella.sources.qemu_lock import qemu_may_write  # asked only about what changed

        return "QEMU" if qemu_may_write(self._fd) else ""

    def last_change_ms(self) -> int | None:
        """When the file last changed by its time stamps, in milliseconds since 1970; None for a device."""
        return None if self._is_block else os.fstat(self._fd).st_ctime_ns // 1_000_000

    def allocated(self) -> Iterator[Extent]:
        """Yield what may hold data, asked from the file system step by step; all of a device."""
        offset = 0
        while offset < self._size:
            extent = self._next_data(offset) if self._holes_known else Extent(offset, self._size)
            if extent is None:
                return
            yield extent
            offset = extent.end

    def consistency(self) -> Consistency:
        """CHANGED if anything shows a write since opening; LIVE if a file's stamps show that there was none.

        UNKNOWN where neither can be said. A device has no stamps: a write is noticed by the kernel's count of sectors
        written to just this device, or by the pieces that are read twice. Stamps are coarse: a write within the same
        tick as the one before it leaves none, so a file changed within two seconds before it was opened is UNKNOWN.
        Stores through a mapping leave no stamp on tmpfs. This decides the label only, never what is read.
        """
        now = self._same_place()
        size = self._size_now()
        if size != self._size:
            change = "shorter" if size < self._size else "longer"
            raise SourceError(
                f"{self.path} became {shown_bytes(abs(size - self._size))} {change} while it was read",
                obj=str(self.path),
            )
        before = self._before
        if self._is_block:
            return Consistency.CHANGED if self._device_changed() else Consistency.UNKNOWN
        if (now.st_mtime_ns, now.st_ctime_ns) != (before.st_mtime_ns, before.st_ctime_ns):
            return Consistency.CHANGED
        if before.st_ctime_ns // 1_000_000 + _COARSEST_STAMP_MS < self._opened_ms:
            return Consistency.LIVE
        return Consistency.CHANGED if self._twice.differs(super().read_into) else Consistency.UNKNOWN

    def _device_changed(self) -> bool:
        self._flush()  # what was written through the page cache is counted when it reaches the device
        if sectors_written(self._before.st_rdev) != self._sectors:
            return True
        return self._twice.differs(super().read_into)

    def _size_now(self) -> int:
        try:
            return os.lseek(self._fd, 0, os.SEEK_END) if self._is_block else os.fstat(self._fd).st_size
        except OSError as reason:
            raise read_failed(self.path, reason) from reason

    def _flush(self) -> bool:
        """Make reads and the hole map current; return whether the hole map may be believed."""
        try:
            # New data waits in memory until blocks are allotted to it, and a file system may answer from the blocks it
            # has allotted: the map of a dirty file can show a hole where there is data.
            os.fsync(self._fd)
        except OSError as reason:
            if reason.errno not in _NO_FLUSH:
                raise read_failed(self.path, reason, " while it was flushed") from reason
            return False
        if self._is_block:
            # A disk and its partitions cache their blocks apart: pages of the disk that an earlier backup left behind
            # do not see what was written through a partition since. Without the clean ones, reads reach the device.
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return not self._is_block

    def _next_data(self, offset: int) -> Extent | None:
        try:
            start = os.lseek(self._fd, offset, os.SEEK_DATA)
            end = os.lseek(self._fd, start, os.SEEK_HOLE) if start < self._size else start
        except OSError as reason:
            if reason.errno == errno.ENXIO:  # nothing but a hole from here; a file cut short is found by `consistency`
                return None
            if reason.errno in _NO_HOLE_MAP:
                return Extent(offset, self._size)
            raise read_failed(self.path, reason, f" when asked for data after offset {offset}") from reason
        if start >= self._size:
            return None
        if not offset <= start < end:  # an answer that makes no sense is no map
            return Extent(offset, self._size)
        return Extent(start, min(end, self._size))

    def _same_place(self) -> os.stat_result:
        """Return the open file's state now. Raises SourceError if the path names nothing or another volume."""
        try:
            there = self.path.stat()
            here = os.fstat(self._fd)
        except (FileNotFoundError, NotADirectoryError) as reason:
            raise SourceError(f"{self.path} vanished while it was read", obj=str(self.path)) from reason
        except OSError as reason:
            raise read_failed(self.path, reason) from reason
        # A device's node may be made again while the device stays the same.
        same = here.st_rdev == there.st_rdev if self._is_block else os.path.samestat(here, there)
        if not same:
            raise SourceError(f"{self.path} was replaced by another one while it was read", obj=str(self.path))
        return here
