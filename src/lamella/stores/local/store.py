"""A store in a directory: one file per object, written beside and linked into place.

So no name ever shows half an object. A put is durable in two steps: the file's bytes before its name appears, the
directories' names at `sync`. Below the root lies `tmp/` for unfinished writes; its names belong to no object.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.base.durable import sync_directory
from lamella.base.errors import NoRepository, ObjectNotFound, StoreError, StoreRefused, StoreUnavailable, UsageError
from lamella.base.names import MARKER
from lamella.base.trust import Clear, Sealed
from lamella.stores.base import Abilities, Entry, checked_name, checked_prefix, range_end
from lamella.stores.local.directory import (
    TEMPORARY,
    DirectoryWalk,
    checked_regular,
    holds_exactly,
    is_link,
    opened_directory,
    opened_file,
    read_range,
    store_error,
    write_whole,
)
from lamella.stores.local.flock import LOCKING_FILE_SYSTEMS, file_system_of, held

if TYPE_CHECKING:
    Parts = tuple[str, ...]
    FileName = tuple[int, str]
    """The descriptor of a directory, and a name in it."""

_UNFINISHED_KEPT_SECONDS = 7 * 86400
"""A later writer removes what a killed writer left: by then no writer can still be using it."""
_TEMPORARY_NAME = re.compile(r"[0-9a-f]{32}")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT}
"""Why a link fails that would keep a renamed file from its place, too. What a file system without links answers is
anybody's guess: EPERM, ENOSYS, and in user space EIO, EINVAL, EXDEV or EACCES."""


class LocalStore:
    """Objects as files below a directory of a mounted file system; made by `open`."""

    def __init__(self, path: Path, root: int, abilities: Abilities) -> None:
        self._path = path
        self._open_root: int | None = root
        self._abilities = abilities
        self._dirty: set[Parts] = set()
        self._dirty_lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._rename_lock = threading.Lock()
        self._sync_failed = False
        self._swept = False
        self._alone = False
        self._reserved = False

    @classmethod
    def open(cls, path: str | Path, *, create: bool = False, read_only: bool = False) -> LocalStore:
        """Open the store in the directory `path`; make the directory (mode 0700, not its parents) when `create`.

        Raises NoRepository when there is no such directory, StoreError when it cannot be made or opened, UsageError for
        `create` and `read_only` together.
        """
        if create and read_only:
            raise UsageError("a repository cannot be created and read-only at once", obj=str(path))
        place = Path(path).absolute()
        try:
            if create:
                _make_directory(place)
            root = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NoRepository("there is no such directory", obj=str(place), hint=_missing_hint(create)) from error
        except NotADirectoryError as error:
            raise NoRepository("not a directory", obj=str(place)) from error
        except OSError as error:
            raise store_error(error, place, str(place), absent=False) from error
        writable = not read_only and not os.fstatvfs(root).f_flag & os.ST_RDONLY
        locks = file_system_of(root) in LOCKING_FILE_SYSTEMS
        return cls(place, root, Abilities(exclusive_lock=locks, delete=writable, write=writable))

    @property
    def url(self) -> str:
        """The absolute path of the directory."""
        return str(self._path)

    @property
    def abilities(self) -> Abilities:
        """What was found at opening: a file system known to lock properly, and whether it may be written."""
        return self._abilities

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store an object, all or nothing; its bytes are on the device before its name appears.

        Raises StoreRefused for an existing name with other bytes or a directory that may not be written, StoreFull,
        StoreUnavailable.
        """
        self._put(name, content)

    def put_view(self, name: str, content: memoryview) -> None:
        """`put` of what a server received for a client: which kind of bytes it is was for that side to judge."""
        self._put(name, content)

    def _put(self, name: str, content: bytes | memoryview) -> None:
        above, leaf = self._writable(name)
        with self._translated(name):
            try:
                self._publish(above, leaf, name, content)
            except OSError as error:
                from lamella.stores.local.reserve import give_up_reserve

                if not (self._alone and give_up_reserve(self._root, error, len(content))):
                    raise
                self._reserved = False
                self._publish(above, leaf, name, content)
            self._mark_dirty(above)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly `length` bytes from `offset` (all from there when None).

        Raises ObjectNotFound; StoreError when the object ends before; StoreRefused for anything but a regular file.
        """
        above, leaf = self._parts(name)
        with self._translated(name, absent=True), opened_directory(self._root, above) as directory:  # noqa: SIM117
            with opened_file(directory, leaf, name) as (descriptor, size):
                end = range_end(name, size, offset, length)
                return read_range(descriptor, offset, end - offset, name)

    def stat(self, name: str) -> int:
        """Return the object's size in bytes. Raises ObjectNotFound; StoreRefused for anything but a regular file."""
        above, leaf = self._parts(name)
        with self._translated(name, absent=True), opened_directory(self._root, above) as directory:
            return checked_regular(os.stat(leaf, dir_fd=directory, follow_symlinks=False), name)

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`. A directory that cannot be read raises: it never looks empty."""
        parts = tuple(checked_prefix(prefix).split("/")[:-1])
        if parts:
            self._parts(prefix[:-1])
        return self._listed(prefix, parts)

    def delete(self, name: str) -> None:
        """Remove an object; no error if there is none. Raises StoreRefused, StoreUnavailable."""
        above, leaf = self._writable(name)
        try:
            with self._translated(name, absent=True), opened_directory(self._root, above) as directory:
                self._unlinked(directory, leaf)
                # Even if it was gone: another process may have removed it and not have synced.
                self._mark_dirty(above)
        except ObjectNotFound:
            return

    def include_in_sync(self, name: str) -> None:
        """Make the next `sync` cover an object that another process put. Its bytes were durable before its name."""
        self._mark_dirty(self._parts(name)[0])

    def sync(self) -> None:
        """Return when every earlier put and delete of this store is durable.

        Raises StoreError, not to be tried again, once any of it failed: the kernel reports a lost write only once, so a
        later success would prove nothing. StoreUnavailable when the directory is no longer where it was.
        """
        # One at a time: a second caller must not return while the first still writes what both wait for.
        with self._sync_lock:
            self._check_in_place()
            if self._sync_failed:
                raise StoreError("an earlier sync failed, writes before it may be lost", obj=self.url)
            try:
                if not self._swept and self._abilities.delete:
                    self._swept = True
                    self.sweep(_UNFINISHED_KEPT_SECONDS)
                self._sync_dirty()
                self._keep_reserve()
            except (OSError, StoreError) as error:
                self._sync_failed = True
                raise StoreError(f"sync failed, earlier writes may be lost: {error}", obj=self.url) from error

    @contextmanager
    def lock(self, *, exclusive: bool, wait_seconds: float = 0.0) -> Iterator[None]:
        """Hold the repository's lock (flock on the marker, or on the directory before there is one).

        Raises Locked when not had within `wait_seconds`, StoreRefused where the file system knows no locks.
        """
        with ExitStack() as stack:
            with self._translated(MARKER):
                stack.enter_context(held(self._root, exclusive=exclusive, wait_seconds=wait_seconds))
            if exclusive:
                self._alone = True
                stack.callback(self._not_alone)
            yield

    def sweep(self, older_than_seconds: float) -> int:
        """Remove unfinished writes at least that old; return how many (FORMAT 12: seven days).

        Age is by the file system's own clock, which on a network may differ from ours.
        """
        self._check_writable(TEMPORARY)
        removed = 0
        try:
            with self._translated(TEMPORARY, absent=True), opened_directory(self._root, (TEMPORARY,)) as directory:
                os.utime(directory)
                oldest_kept = os.fstat(directory).st_mtime - older_than_seconds
                with os.scandir(directory) as entries:
                    old = [entry.name for entry in entries if _is_old_temporary(entry, oldest_kept)]
                for name in old:
                    removed += self._unlinked(directory, name)
        except ObjectNotFound:
            return 0
        return removed

    def close(self) -> None:
        """Close the directory; further calls raise StoreError."""
        root, self._open_root = self._open_root, None
        if root is not None:
            os.close(root)

    def _not_alone(self) -> None:
        self._alone = False

    def _keep_reserve(self) -> None:
        if not self._reserved and self._abilities.delete:
            from lamella.stores.local.reserve import keep_reserve  # only writers need room kept back

            self._reserved = keep_reserve(self._root)

    def _publish(self, above: Parts, leaf: str, name: str, content: bytes | memoryview) -> None:
        temporary = os.urandom(16).hex()
        with opened_directory(self._root, (TEMPORARY,), create=True) as unfinished:
            from lamella.stores.local.making import new_file

            descriptor = new_file(unfinished, temporary, self._root)
            try:
                try:
                    write_whole(descriptor, content)
                finally:
                    os.close(descriptor)
                with opened_directory(self._root, above, create=True) as directory:
                    self._link((unfinished, temporary), (directory, leaf), name, content)
            finally:
                self._discarded(unfinished, temporary)

    def _link(self, source: FileName, target: FileName, name: str, content: bytes | memoryview) -> None:
        """Give the finished file its name, or find the name taken by the same bytes, else raise StoreRefused."""
        try:
            os.link(source[1], target[1], src_dir_fd=source[0], dst_dir_fd=target[0], follow_symlinks=False)
        except FileExistsError:
            self._check_equal(target, name, content)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise
            self._rename(source, target, name, content)

    def _rename(self, source: FileName, target: FileName, name: str, content: bytes | memoryview) -> None:
        """Do the same without hard links. Only threads of this process are kept from replacing each other's object."""
        with self._rename_lock:
            try:
                self._check_equal(target, name, content)
            except FileNotFoundError:
                os.rename(source[1], target[1], src_dir_fd=source[0], dst_dir_fd=target[0])

    @staticmethod
    def _check_equal(target: FileName, name: str, content: bytes | memoryview) -> None:
        directory, leaf = target
        if is_link(directory, leaf):
            raise StoreRefused("a symbolic link has this name", obj=name)
        try:
            with opened_file(directory, leaf, name) as (descriptor, size):
                if not holds_exactly(descriptor, size, content):
                    raise StoreRefused("the store holds other bytes under this name", obj=name)
                os.fsync(descriptor)  # it may have been copied here by something that did not
        except ObjectNotFound as error:
            raise StoreRefused("a directory has this name", obj=name) from error

    @staticmethod
    def _unlinked(directory: int, leaf: str) -> bool:
        try:
            os.unlink(leaf, dir_fd=directory)
        except (FileNotFoundError, IsADirectoryError):
            return False
        return True

    @staticmethod
    def _discarded(unfinished: int, temporary: str) -> None:
        try:
            os.unlink(temporary, dir_fd=unfinished)
        except OSError:
            return  # renamed into place, or out of reach: `sweep` finds it; what matters is the put's own outcome

    def _listed(self, prefix: str, parts: Parts) -> Iterator[Entry]:
        with self._translated(prefix), ExitStack() as stack:
            try:
                directory = stack.enter_context(opened_directory(self._root, parts))
            except (FileNotFoundError, NotADirectoryError):
                pass  # nothing has this prefix, if the root is still there
            else:
                yield from DirectoryWalk(self.url).below(directory, prefix)
            # At the end, when nothing can vanish unnoticed any more: a removed directory reads as an empty one.
            self._check_in_place()

    def _mark_dirty(self, above: Parts) -> None:
        # All the way up: whoever made a directory, we or another process, may not have synced it yet.
        with self._dirty_lock:
            self._dirty.update(above[:depth] for depth in range(len(above) + 1))

    def _sync_dirty(self) -> None:
        with self._dirty_lock:
            dirty, self._dirty = self._dirty, set()
        try:
            # Deepest first: a name that survives a crash then leads to something.
            for parts in sorted(dirty, key=len, reverse=True):
                with opened_directory(self._root, parts) as directory:
                    sync_directory(directory)
        except BaseException:
            with self._dirty_lock:
                self._dirty |= dirty
            raise

    def _parts(self, name: str) -> tuple[Parts, str]:
        parts = checked_name(name).split("/")
        if parts[0] == TEMPORARY:
            raise StoreRefused(f"names below {TEMPORARY} are kept for unfinished writes", obj=name)
        return tuple(parts[:-1]), parts[-1]

    def _writable(self, name: str) -> tuple[Parts, str]:
        parts = self._parts(name)
        self._check_writable(name)
        return parts

    def _check_writable(self, obj: str) -> None:
        if not self._abilities.write:
            raise StoreRefused("the store can only be read", obj=obj)

    @property
    def _root(self) -> int:
        if self._open_root is None:
            raise StoreError("the store is closed", obj=self.url)
        return self._open_root

    def _check_in_place(self) -> None:
        """Raise StoreUnavailable when the path no longer leads to the directory opened: unmounted, moved, removed."""
        root = os.fstat(self._root)
        try:
            now = self._path.stat()
        except OSError as error:
            raise StoreUnavailable("the directory is gone", obj=self.url) from error
        if (root.st_dev, root.st_ino) != (now.st_dev, now.st_ino):
            raise StoreUnavailable("another directory has taken the place of the one opened", obj=self.url)

    @contextmanager
    def _translated(self, obj: str, *, absent: bool = False) -> Iterator[None]:
        """Turn OSError into the store's errors; `absent`: a missing file is a missing object, if the root is there."""
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                self._check_in_place()
            raise store_error(error, self._path, obj, absent=absent) from error


def _make_directory(place: Path) -> None:
    try:
        place.mkdir(mode=0o700)
    except FileExistsError:
        return
    sync_directory(place.parent)


def _missing_hint(create: bool) -> str:
    return "make the directory above it first, and check that its disk is mounted" if create else "is its disk mounted?"


def _is_old_temporary(entry: os.DirEntry[str], oldest_kept: float) -> bool:
    if not _TEMPORARY_NAME.fullmatch(entry.name):
        return False
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_mtime <= oldest_kept
