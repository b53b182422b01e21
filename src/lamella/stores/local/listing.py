"""Walking the objects below a directory: streamed, without following links.

A failure is never taken for emptiness.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from lamella.base.errors import StoreRefused
from lamella.stores.base import Entry, checked_name
from lamella.stores.local.directory import DIRECTORY_FLAGS

TEMPORARY = "tmp"
"""Directory of unfinished writes, no part of the store's names (FORMAT 13.22)."""
MAX_INVALID = 1000


class Walk:
    """One listing. Counts what cannot be an object, so that a hostile directory cannot keep us busy for ever."""

    def __init__(self, obj: str) -> None:
        self._obj = obj
        self._invalid = 0

    def below(self, directory: int, prefix: str) -> Iterator[Entry]:
        """Yield the objects in the open directory that stands for `prefix`, and in those below it.

        A file that vanishes meanwhile is left out. Raises OSError when any directory cannot be read to its end,
        StoreRefused after more than 1000 entries that are no objects (invalid names, links, devices).
        """
        with os.scandir(directory) as entries:
            for entry in entries:
                name = prefix + entry.name
                if name == TEMPORARY:
                    continue
                if not self._valid(name):
                    self._count_invalid()
                elif entry.is_dir(follow_symlinks=False):
                    yield from self._inside(directory, entry.name, name)
                elif entry.is_file(follow_symlinks=False):
                    yield from _file(entry, name)
                elif entry.is_symlink() or _exists(directory, entry.name):
                    self._count_invalid()

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
        if self._invalid > MAX_INVALID:
            raise StoreRefused(f"more than {MAX_INVALID} entries in the directory are no objects", obj=self._obj)


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
