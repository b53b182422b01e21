"""The writing half of a local store: objects under their names, removals, and making both durable.

A command that only reads does not load this. A file is written below `tmp/` and linked into place, so that no name ever
shows half an object.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.base.durable import sync_directory
from lamella.base.errors import ObjectNotFound, StoreError
from lamella.stores.local.directory import TEMPORARY, opened_directory
from lamella.stores.local.making import new_file, write_whole
from lamella.stores.local.reserve import give_up_reserve, keep_reserve

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from lamella.stores.local.root import Parts, Root

    FileName = tuple[int, str]
    """The descriptor of a directory, and a name in it."""

_UNFINISHED_KEPT_SECONDS = 7 * 86400
"""A later writer removes what a killed writer left: by then no writer can still be using it."""
_TEMPORARY_NAME = re.compile(r"[0-9a-f]{32}")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT}
"""Why a link fails that would keep a renamed file from its place, too. What a file system without links answers is
anybody's guess: EPERM, ENOSYS, and in user space EIO, EINVAL, EXDEV or EACCES."""


def make_directory(place: Path) -> None:
    """Make a directory (mode 0700) durably, unless it exists. Raises OSError."""
    try:
        place.mkdir(mode=0o700)
    except FileExistsError:
        return
    sync_directory(place.parent)


class DirectoryWriter:
    """Writes and removes objects below a root. `delete`: objects may be removed, so sweeping is ours, too."""

    def __init__(self, root: Root, *, delete: bool) -> None:
        self._root = root
        self._delete = delete
        self._dirty: set[Parts] = set()
        self._dirty_lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._rename_lock = threading.Lock()
        self._sync_failed = False
        self._swept = False
        self._reserved = False

    def put(self, name: str, content: bytes | memoryview, *, alone: bool) -> None:
        """Store an object; `alone`: under the exclusive lock, so that the reserve may be given up for it."""
        above, leaf = self._root.parts(name)
        with self._root.translated(name):
            try:
                self._publish(above, leaf, name, content)
            except OSError as error:
                if not (alone and give_up_reserve(self._root.descriptor, error, len(content))):
                    raise
                self._reserved = False
                self._publish(above, leaf, name, content)
            self.mark_dirty(above)

    def delete(self, name: str) -> None:
        """Remove an object; no error if there is none."""
        above, leaf = self._root.parts(name)
        try:
            with self._root.translated(name, absent=True), self._opened(above) as directory:
                _unlinked(directory, leaf)
                # Even if it was gone: another process may have removed it and not have synced.
                self.mark_dirty(above)
        except ObjectNotFound:
            return

    def mark_dirty(self, above: Parts) -> None:
        """Have the next `sync` cover a directory."""
        # All the way up: whoever made a directory, we or another process, may not have synced it yet.
        with self._dirty_lock:
            self._dirty.update(above[:depth] for depth in range(len(above) + 1))

    def sync(self) -> None:
        """Return when every earlier put and delete is durable."""
        # One at a time: a second caller must not return while the first still writes what both wait for.
        with self._sync_lock:
            self._root.check_in_place()
            if self._sync_failed:
                raise StoreError("an earlier sync failed, writes before it may be lost", obj=self._root.url)
            try:
                if not self._swept and self._delete:
                    self._swept = True
                    self.sweep(_UNFINISHED_KEPT_SECONDS)
                self._sync_dirty()
                if not self._reserved and self._delete:
                    self._reserved = keep_reserve(self._root.descriptor)
            except (OSError, StoreError) as error:
                self._sync_failed = True
                raise StoreError(f"sync failed, earlier writes may be lost: {error}", obj=self._root.url) from error

    def sweep(self, older_than_seconds: float) -> int:
        """Remove unfinished writes at least that old; return how many (FORMAT 12: seven days).

        Age is by the file system's own clock, which on a network may differ from ours.
        """
        removed = 0
        try:
            with self._root.translated(TEMPORARY, absent=True), self._opened((TEMPORARY,)) as directory:
                os.utime(directory)
                oldest_kept = os.fstat(directory).st_mtime - older_than_seconds
                with os.scandir(directory) as entries:
                    old = [entry.name for entry in entries if _is_old_temporary(entry, oldest_kept)]
                for name in old:
                    removed += _unlinked(directory, name)
        except ObjectNotFound:
            return 0
        return removed

    def _opened(self, parts: Parts, *, create: bool = False) -> AbstractContextManager[int]:
        return opened_directory(self._root.descriptor, parts, create=create)

    def _publish(self, above: Parts, leaf: str, name: str, content: bytes | memoryview) -> None:
        temporary = os.urandom(16).hex()
        with self._opened((TEMPORARY,), create=True) as unfinished:
            try:
                descriptor = new_file(unfinished, temporary, self._root.descriptor)
                try:
                    write_whole(descriptor, content)
                finally:
                    os.close(descriptor)
                with self._opened(above, create=True) as directory:
                    self._link((unfinished, temporary), (directory, leaf), name, content)
            finally:
                _discarded(unfinished, temporary)

    def _link(self, source: FileName, target: FileName, name: str, content: bytes | memoryview) -> None:
        """Give the finished file its name, or find the name taken by the same bytes, else raise StoreRefused."""
        try:
            os.link(source[1], target[1], src_dir_fd=source[0], dst_dir_fd=target[0], follow_symlinks=False)
        except FileExistsError:
            from lamella.stores.local.taken import check_equal  # names are hashes, so that few are ever taken

            check_equal(target, name, content)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise
            self._rename(source, target, name, content)

    def _rename(self, source: FileName, target: FileName, name: str, content: bytes | memoryview) -> None:
        """Do the same without hard links. Only threads of this process are kept from replacing each other's object."""
        from lamella.stores.local.taken import check_equal

        with self._rename_lock:
            try:
                check_equal(target, name, content)
            except FileNotFoundError:
                os.rename(source[1], target[1], src_dir_fd=source[0], dst_dir_fd=target[0])

    def _sync_dirty(self) -> None:
        with self._dirty_lock:
            dirty, self._dirty = self._dirty, set()
        try:
            # Deepest first: a name that survives a crash then leads to something.
            for parts in sorted(dirty, key=len, reverse=True):
                with self._opened(parts) as directory:
                    sync_directory(directory)
        except BaseException:
            with self._dirty_lock:
                self._dirty |= dirty
            raise


def _unlinked(directory: int, leaf: str) -> bool:
    try:
        os.unlink(leaf, dir_fd=directory)
    except (FileNotFoundError, IsADirectoryError):
        return False
    return True


def _discarded(unfinished: int, temporary: str) -> None:
    try:
        os.unlink(temporary, dir_fd=unfinished)
    except OSError:
        return  # renamed into place, or out of reach: `sweep` finds it; what matters is the put's own outcome


def _is_old_temporary(entry: os.DirEntry[str], oldest_kept: float) -> bool:
    if not _TEMPORARY_NAME.fullmatch(entry.name):
        return False
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_mtime <= oldest_kept
