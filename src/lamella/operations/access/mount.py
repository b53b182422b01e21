"""A repository as a read-only file system in user space (FUSE: linux/fuse.h), through libfuse and mfusepy."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from lamella.base.errors import LamellaError, UsageError
from lamella.base.events import Reporter, Warned
from lamella.operations.access.shown import Entry, Shown, ShownDocument, ShownFolder, ShownImage, ShownLink
from lamella.operations.access.view import Reading
from lamella.operations.shared.streaming import read_document

DEVICE = Path("/dev/fuse")
_MODES = {ShownFolder: stat.S_IFDIR | 0o500, ShownLink: stat.S_IFLNK | 0o777}
_FILE_MODE = stat.S_IFREG | 0o400
_FOREVER = 86_400
"""Seconds for which the kernel may believe what it was told: nothing here ever changes."""
_TOLD_MOST = 1000
_LAST_MS = (1 << 63) // 1_000_000 - 1

T = TypeVar("T")
Read = Callable[[int, int], bytes]
"""The bytes from an offset on, so many of them; fewer only at the end."""


def require_fuse() -> Any:  # noqa: ANN401 - the module mfusepy
    """The binding of libfuse. Raises LamellaError that names what is missing."""
    try:
        library = import_module("mfusepy")
    except ImportError as error:
        raise LamellaError("mount needs mfusepy", hint="install it: pip install 'lamella[fuse]'") from error
    except OSError as error:  # what mfusepy raises without libfuse
        raise LamellaError("mount needs libfuse", hint="install the package fuse3 of this system") from error
    if not DEVICE.exists():
        raise LamellaError(f"this kernel has no {DEVICE}", obj=str(DEVICE), hint="load its module: modprobe fuse")
    return library


def check_place(directory: Path) -> Path:
    """The absolute path of a directory on which a repository may be mounted. Raises UsageError that says why not."""
    place = str(directory)
    try:
        path = directory.resolve(strict=True)
        if not path.is_dir():
            raise UsageError(f"{place} is not a directory", obj=place, hint="name an empty directory")
        if os.path.ismount(path):
            raise UsageError(f"something is mounted on {place} already", obj=place, hint=f"first: umount {place}")
        if next(path.iterdir(), None) is not None:
            raise UsageError(f"{place} is not empty", obj=place, hint="name an empty directory")
    except FileNotFoundError:
        raise UsageError(f"there is no directory {place}", obj=place, hint=f"make it: mkdir {place}") from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            hint = f"first: fusermount3 -u {place}"
            raise UsageError(f"{place} is a mount whose process is gone", obj=place, hint=hint) from None
        raise UsageError(f"cannot look into {place}: {error.strerror}", obj=place) from error
    return path


def serve(shown: Shown, reading: Reading, place: Path, mounted: Callable[[], None], tell: Reporter) -> None:
    """Mount at `place` and answer until the file system is unmounted, or a signal ends the process.

    `mounted` is called when the file system can be used. libfuse takes SIGINT, SIGTERM and SIGHUP where their action
    is the default; it unmounts then. Raises LamellaError if mounting fails.
    """
    library = require_fuse()
    system = MountedSystem(shown, reading, mounted, tell)
    options = {"entry_timeout": _FOREVER, "attr_timeout": _FOREVER, "kernel_cache": True}
    try:
        library.FUSE(system, str(place), foreground=True, ro=True, fsname="lamella", subtype="lamella", **options)
    except RuntimeError as error:  # libfuse's exit code, which is not 0 after a signal either
        if not system.was_mounted:
            raise LamellaError(f"libfuse cannot mount on {place}", obj=str(place), hint="it said why above") from error


class MountedSystem:
    """The operations of libfuse, by the names that mfusepy expects. Called by many threads."""

    use_ns = True
    """Times are in nanoseconds."""

    def __init__(self, shown: Shown, reading: Reading, mounted: Callable[[], None], tell: Reporter) -> None:
        self._shown = shown
        self._reading = reading
        self._mounted = mounted
        self._tell = tell
        self._lock = threading.Lock()
        self._opened: dict[int, Read] = {}
        self._next_handle = 1
        self._told: set[str] = set()
        self._owner = {"st_uid": os.getuid(), "st_gid": os.getgid()}
        self.was_mounted = False

    def init(self, path: str) -> None:
        """The kernel has mounted the file system."""
        self.was_mounted = True
        self._mounted()

    def getattr(self, path: str, handle: int | None = None) -> Mapping[str, int]:
        """The status of a path (stat(2))."""
        entry = self._entry(path)
        time_ns = min(max(entry.time_ms, 0), _LAST_MS) * 1_000_000
        size = entry.size if isinstance(entry, ShownImage | ShownDocument) else 0
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), time_ns)
        links = 2 if isinstance(entry, ShownFolder) else 1
        # Fewer blocks than bytes would let programs take a volume for a hole.
        blocks = -(-size // 512)
        return {
            "st_mode": _mode(entry),
            "st_nlink": links,
            "st_size": size,
            "st_blocks": blocks,
            **times,
            **self._owner,
        }

    def readdir(self, path: str, handle: int) -> Iterator[tuple[str, int, int]]:
        """The names in a directory, each with its mode."""
        folder = self._entry(path)
        if not isinstance(folder, ShownFolder):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        for name in (".", ".."):
            yield name, stat.S_IFDIR, 0
        for name, entry in self._shown.entries(folder).items():
            yield name, _mode(entry), 0

    def readlink(self, path: str) -> str:
        """Where a link leads."""
        entry = self._entry(path)
        if not isinstance(entry, ShownLink):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return entry.target

    def statfs(self, path: str) -> Mapping[str, int]:
        """A full file system: nothing can be written."""
        return {"f_bsize": 4096, "f_frsize": 4096, "f_namemax": 255}

    def open(self, path: str, flags: int) -> int:
        """Open a file; returns its handle."""
        entry = self._entry(path)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        read = self._guarded(path, lambda: self._reader(entry))
        with self._lock:
            handle, self._next_handle = self._next_handle, self._next_handle + 1
            self._opened[handle] = read
        return handle

    def read(self, path: str, size: int, offset: int, handle: int) -> bytes:
        """Bytes of an open file."""
        read = self._opened[handle]
        return self._guarded(path, lambda: read(offset, size))

    def release(self, path: str, handle: int) -> int:
        """The last user of a handle has closed it."""
        with self._lock:
            self._opened.pop(handle, None)
        return 0

    def _entry(self, path: str) -> Entry:
        entry = self._shown.entry(path)
        if entry is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return entry

    def _reader(self, entry: Entry) -> Read:
        if isinstance(entry, ShownImage):
            return self._reading.view(entry.selected).read
        if isinstance(entry, ShownDocument):
            content = read_document(self._reading.repo, entry.selected, entry.document.name)
            return lambda offset, size: content[offset : offset + size]
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))

    def _guarded(self, path: str, work: Callable[[], T]) -> T:
        """The result of `work`; an error of ours becomes EIO, and is reported once."""
        try:
            return work()
        except LamellaError as error:
            with self._lock:
                new = error.message not in self._told and len(self._told) < _TOLD_MOST
                self._told.add(error.message)
            if new:
                self._tell(Warned(f"{path.lstrip('/')}: {error.message}", error.obj))
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error


def _mode(entry: Entry) -> int:
    return _MODES.get(type(entry), _FILE_MODE)
