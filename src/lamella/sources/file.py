"""The `file` driver: image files and block devices, read as they are. The fallback where nothing better can be asked.

There is no local snapshot: the volume is read in place while it may change, and `consistency` says whether it did.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lamella.base.clock import Clock, now_ms
from lamella.base.errors import SourceError
from lamella.base.extents import Extent
from lamella.sources.base import Consistency, Keeping
from lamella.sources.driver import OpenVolume, Untracked, UntrackedMoment, read_failed

_MACHINE = re.compile(r"[0-9a-f]{16}")

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
}

# The coarsest time stamps of a file system in use: FAT counts two seconds; ext4 with small inodes counts one.
_COARSEST_STAMP_MS = 2_000

_NO_FLUSH = {errno.EINVAL, errno.EROFS, errno.ENOSYS, errno.EOPNOTSUPP}
_NO_HOLE_MAP = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


def open_file(text: str, machine: str, keeping: Keeping | None = None) -> FileSource:
    """Return the source at a path. Nothing of it is ever kept, whatever `keeping` says.

    Raises SourceError if it is missing or of a kind that holds no volume.
    """
    path = Path(text)
    _checked_kind(path, _stat(path))
    return FileSource(path, machine, known_as=keeping.known_as if keeping is not None else b"")


@dataclass(frozen=True)
class FileSource(Untracked):
    """A regular file or block device at `path`, on the machine whose hash is `machine` (16 hexadecimal digits)."""

    path: Path
    machine: str
    clock: Clock = now_ms
    driver: str = "file"
    known_as: bytes = b""
    """The identity, if it is not that of the place."""

    def __post_init__(self) -> None:
        if not _MACHINE.fullmatch(self.machine):
            raise ValueError(f"not a machine hash: {self.machine!r}")

    @property
    def identity(self) -> bytes:
        """`file:MACHINE:PATH`, the path absolute and without links.

        A device keeps its own last link: `/dev/mapper/x` stays the same volume, the `/dev/dm-3` behind it may be
        another one after the next start.
        """
        if self.known_as:
            return self.known_as
        path = self.path.parent.resolve() / self.path.name if self.path.is_block_device() else self.path.resolve()
        return b"file:" + self.machine.encode() + b":" + os.fsencode(path)

    @property
    def default_name(self) -> str:
        """The base name without its last extension; not yet made a valid volume name."""
        return self.path.stem

    @contextmanager
    def freeze(self) -> Iterator[FrozenFile]:
        """Open the volume for reading. Nothing is held still: `consistency` tells afterwards what was seen."""
        # Looked at before it is opened: opening some devices has effects (a tape rewinds, a watchdog starts).
        is_block = _checked_kind(self.path, _stat(self.path))
        # A pipe put in the file's place in between must not make the open wait for a writer.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | (0 if is_block else os.O_NONBLOCK)
        try:
            fd = os.open(self.path, flags)
        except OSError as reason:
            raise read_failed(self.path, reason) from reason
        frozen: FrozenFile | None = None
        try:
            frozen = FrozenFile(self.path, fd, self.clock())
            yield frozen
        finally:
            if frozen is not None:
                frozen.closed()
            os.close(fd)


class FrozenFile(OpenVolume, UntrackedMoment):
    """The volume read in place, which does not stop changing; `consistency` says what was seen."""

    def __init__(self, path: Path, fd: int, opened_ms: int) -> None:
        super().__init__(path, fd, size=0)
        self._opened_ms = opened_ms
        # Taken before the flush. Any later write changes the stamps: by a system call at once; through a shared mapping
        # when it touches a page for the first time after the flush, which made all pages read-only again. Stores before
        # that are in what is read.
        self._before = os.fstat(fd)
        self._is_block = _checked_kind(path, self._before)
        self._size = self._size_now()
        self._holes_known = self._flush()
        with suppress(OSError):  # advice only
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

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
        """Return LIVE if the file was seen unchanged from opening until now, else UNKNOWN; always UNKNOWN for a device.

        LIVE says that no write was recorded in the file's time stamps. Stamps are coarse: a write within the same tick
        as the one before it leaves none, so a file changed within two seconds before it was opened is UNKNOWN. Stores
        through a mapping leave no stamp on tmpfs. This decides the label only, never what is read.
        """
        now = self._same_place()
        size = self._size_now()
        if size != self._size:
            change = "shorter" if size < self._size else "longer"
            raise SourceError(
                f"{self.path} became {change} while it was read: {self._size} bytes before, {size} now",
                obj=str(self.path),
            )
        before = self._before
        if self._is_block or (now.st_mtime_ns, now.st_ctime_ns) != (before.st_mtime_ns, before.st_ctime_ns):
            return Consistency.UNKNOWN
        settled = before.st_ctime_ns // 1_000_000 + _COARSEST_STAMP_MS < self._opened_ms
        return Consistency.LIVE if settled else Consistency.UNKNOWN

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
        # A device's node may be made anew while the device stays the same.
        same = here.st_rdev == there.st_rdev if self._is_block else os.path.samestat(here, there)
        if not same:
            raise SourceError(f"{self.path} was replaced by another one while it was read", obj=str(self.path))
        return here


def path_of(identity: bytes, machine: str) -> Path | None:
    """The path that an identity names, None if it is not one of this machine's image files or devices."""
    start = b"file:" + machine.encode("ascii") + b":"
    return Path(os.fsdecode(identity.removeprefix(start))) if identity.startswith(start) else None


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as reason:
        raise read_failed(path, reason) from reason


def _checked_kind(path: Path, found: os.stat_result) -> bool:
    """Return whether it is a block device (else a regular file). Raises SourceError for everything else."""
    if stat.S_ISREG(found.st_mode):
        return False
    if stat.S_ISBLK(found.st_mode):
        return True
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), "of an unknown kind")
    raise SourceError(f"{path} is {kind}, not an image file or a block device", obj=str(path))
