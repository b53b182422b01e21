"""Directories and files of a POSIX file system, as the local store needs them.

Every path is walked from the descriptor of the root directory, one part at a time and without following symbolic links:
whoever can write to the destination must not be able to point us at a file elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from lamella.base.errors import ObjectNotFound, StoreError, StoreRefused
from lamella.stores.base import MOST_OTHERS, Entry, checked_name

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: a planted pipe would otherwise stop the open for ever. Regular files ignore it.
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
TEMPORARY = "tmp"
"""Directory of unfinished writes, no part of the store's names (FORMAT 13.22)."""

FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def opened_directory(root: int, parts: tuple[str, ...], *, create: bool = False) -> Iterator[int]:
    """Give a descriptor of the directory `parts` below `root`; make missing ones (mode 0700) when `create`.

    Raises OSError; StoreRefused where a symbolic link stands in place of a directory.
    """
    current = os.open(".", DIRECTORY_FLAGS, dir_fd=root)
    try:
        for part in parts:
            below = _opened_below(current, part, root if create else None)
            os.close(current)
            current = below
        yield current
    finally:
        os.close(current)


def _opened_below(parent: int, part: str, root: int | None) -> int:
    try:
        return os.open(part, DIRECTORY_FLAGS, dir_fd=parent)
    except FileNotFoundError:
        if root is None:
            raise
    except NotADirectoryError:
        if is_link(parent, part):
            raise StoreRefused("a symbolic link stands in place of a directory", obj=part) from None
        raise
    from lamella.stores.local.making import new_directory  # a repository that is read needs none

    return new_directory(parent, part, root)


def is_link(parent: int, part: str) -> bool:
    """Whether `part` in the directory `parent` is a symbolic link."""
    try:
        return stat.S_ISLNK(os.stat(part, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def checked_regular(status: os.stat_result, name: str) -> int:
    """Return the size of a regular file. Raises ObjectNotFound for a directory, StoreRefused for anything else."""
    if stat.S_ISDIR(status.st_mode):
        raise ObjectNotFound("no such object: a directory has this name", obj=name)
    if not stat.S_ISREG(status.st_mode):
        raise StoreRefused("not a regular file", obj=name)
    return status.st_size


@contextmanager
def opened_file(directory: int, leaf: str, name: str) -> Iterator[tuple[int, int]]:
    """Give the descriptor and size in bytes of a regular file. Raises OSError, ObjectNotFound, StoreRefused."""
    descriptor = os.open(leaf, FILE_FLAGS, dir_fd=directory)
    try:
        yield descriptor, checked_regular(os.fstat(descriptor), name)
    finally:
        os.close(descriptor)


def read_range(descriptor: int, offset: int, length: int, name: str) -> bytes:
    """Return exactly `length` bytes from `offset`. Raises OSError; StoreError when the file ends before."""
    pieces: list[bytes] = []
    missing = length
    while missing:
        piece = os.pread(descriptor, missing, offset + length - missing)
        if not piece:
            raise StoreError(f"object became shorter while it was read: {missing} bytes missing", obj=name)
        pieces.append(piece)
        missing -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class DirectoryWalk:
    """One listing, streamed; a failure is never taken for emptiness.

    Counts what cannot be an object, so that a hostile directory cannot keep us busy for ever.
    """

    def __init__(self, obj: str) -> None:
        self._obj = obj
        self._invalid = 0

    def below(self, directory: int, prefix: str) -> Iterator[Entry]:
        """Yield the objects in the open directory that stands for `prefix`, and in those below it.

        A file that vanishes meanwhile is left out. Raises OSError when any directory cannot be read to its end,
        StoreRefused after more entries that are no objects (invalid names, links, devices) than there may be names.
        """
        for entry in self._sorted(directory, prefix):
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self._inside(directory, entry.name, name)
            elif entry.is_file(follow_symlinks=False):
                yield from _file(entry, name)
            elif entry.is_symlink() or _exists(directory, entry.name):
                self._count_invalid()

    def _sorted(self, directory: int, prefix: str) -> list[os.DirEntry[str]]:
        """Entries that may be objects or lead to some, in the order of the names of the objects."""
        found: list[os.DirEntry[str]] = []
        with os.scandir(directory) as entries:
            for entry in entries:
                if not self._valid(prefix + entry.name):
                    self._count_invalid()
                elif prefix + entry.name != TEMPORARY:
                    found.append(entry)
                    if len(found) > MOST_OTHERS:
                        raise StoreRefused(f"a directory of more than {MOST_OTHERS} entries", obj=self._obj)
        return sorted(found, key=lambda entry: entry.name + "/" * entry.is_dir(follow_symlinks=False))

    def _inside(self, parent: int, part: str, name: str) -> Iterator[Entry]:
        descriptor = os.open(part, DIRECTORY_FLAGS, dir_fd=parent)
        try:
            yield from self.below(descriptor, name + "/")
        finally:
            os.close(descriptor)

    @staticmethod
    def _valid(name: str) -> bool:
        try:
            checked_name(name)
        except StoreRefused:
            return False
        return True

    def _count_invalid(self) -> None:
        self._invalid += 1
        if self._invalid > MOST_OTHERS:
            raise StoreRefused(f"more than {MOST_OTHERS} entries in the directory are no objects", obj=self._obj)


def _file(entry: os.DirEntry[str], name: str) -> Iterator[Entry]:
    try:
        size = entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return
    yield Entry(name, size)


def _exists(directory: int, part: str) -> bool:
    try:
        os.stat(part, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
