"""A store in a directory: one file per object, written beside and linked into place.

So no name ever shows half an object. A put is durable in two steps: the file's bytes before its name appears, the
directories' names at `sync`. Below the root lies `tmp/` for unfinished writes; its names belong to no object.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.base.errors import NoRepository, StoreRefused, UsageError
from lamella.base.names import MARKER
from lamella.base.trust import Clear, Sealed
from lamella.stores.base import Abilities, Entry, checked_prefix, range_end
from lamella.stores.local.directory import (
    TEMPORARY,
    DirectoryWalk,
    checked_regular,
    opened_directory,
    opened_file,
    read_range,
)
from lamella.stores.local.flock import LOCKING_FILE_SYSTEMS, file_system_of, held
from lamella.stores.local.root import Root

if TYPE_CHECKING:
    from lamella.stores.local.root import Parts
    from lamella.stores.local.writing import DirectoryWriter


class LocalStore:
    """Objects as files below a directory of a mounted file system; made by `open`."""

    def __init__(self, root: Root, abilities: Abilities) -> None:
        self._root = root
        self._abilities = abilities
        self._alone = False
        self._made: DirectoryWriter | None = None
        self._making = threading.Lock()

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
                from lamella.stores.local.writing import make_directory

                make_directory(place)
            root = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            from lamella.stores.local.refusal import missing

            raise missing(error, place, create=create) from error
        except NotADirectoryError as error:
            raise NoRepository("not a directory", obj=str(place)) from error
        except OSError as error:
            from lamella.stores.local.refusal import store_error

            raise store_error(error, place, str(place), absent=False) from error
        writable = not read_only and not os.fstatvfs(root).f_flag & os.ST_RDONLY
        locks = file_system_of(root) in LOCKING_FILE_SYSTEMS
        return cls(Root(place, root), Abilities(exclusive_lock=locks, delete=writable, write=writable))

    @property
    def url(self) -> str:
        """The absolute path of the directory."""
        return self._root.url

    @property
    def abilities(self) -> Abilities:
        """Abilities found at opening: a file system known to lock properly, and whether it may be written."""
        return self._abilities

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly `length` bytes from `offset` (all from there when None).

        Raises ObjectNotFound; StoreError when the object ends before; StoreRefused for anything but a regular file.
        """
        with self._directory_of(name) as (directory, leaf), opened_file(directory, leaf, name) as (descriptor, size):
            end = range_end(name, size, offset, length)
            return read_range(descriptor, offset, end - offset, name)

    def stat(self, name: str) -> int:
        """Return the object's size in bytes. Raises ObjectNotFound; StoreRefused for anything but a regular file."""
        with self._directory_of(name) as (directory, leaf):
            return checked_regular(os.stat(leaf, dir_fd=directory, follow_symlinks=False), name)

    @contextmanager
    def _directory_of(self, name: str) -> Iterator[tuple[int, str]]:
        """The open directory that holds an object, and the name of its file."""
        above, leaf = self._root.parts(name)
        with self._root.translated(name, absent=True), opened_directory(self._root.descriptor, above) as directory:
            yield directory, leaf

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`. A directory that cannot be read raises: it never looks empty."""
        parts = tuple(checked_prefix(prefix).split("/")[:-1])
        if parts:
            self._root.parts(prefix[:-1])
        return self._listed(prefix, parts)

    def _listed(self, prefix: str, parts: Parts) -> Iterator[Entry]:
        with self._root.translated(prefix), ExitStack() as stack:
            try:
                directory = stack.enter_context(opened_directory(self._root.descriptor, parts))
            except (FileNotFoundError, NotADirectoryError):
                pass  # nothing has this prefix, if the root is still there
            else:
                yield from DirectoryWalk(self.url).below(directory, prefix)
            # At the end, when nothing can vanish unnoticed any more: a removed directory reads as an empty one.
            self._root.check_in_place()

    # -- writing ------------------------------------------------------------------------------------------------------

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store an object, all or nothing; its bytes are on the device before its name appears.

        Raises StoreRefused for an existing name with other bytes or a directory that may not be written, StoreFull,
        StoreUnavailable.
        """
        self._writer(name).put(name, content, alone=self._alone)

    def put_view(self, name: str, content: memoryview) -> None:
        """`put` of what a server received for a client: which kind of bytes it is was for that side to judge."""
        self._writer(name).put(name, content, alone=self._alone)

    def delete(self, name: str) -> None:
        """Remove an object; no error if there is none. Raises StoreRefused, StoreUnavailable."""
        self._writer(name).delete(name)

    def include_in_sync(self, name: str) -> None:
        """Make the next `sync` cover an object that another process put. Its bytes were durable before its name."""
        self._writing().mark_dirty(self._root.parts(name)[0])

    def sync(self) -> None:
        """Return when every earlier put and delete of this store is durable.

        Raises StoreError, not to be tried again, once any of it failed: the kernel reports a lost write only once, so a
        later success would prove nothing. StoreUnavailable when the directory is no longer where it was.
        """
        self._writing().sync()

    def sweep(self, older_than_seconds: float) -> int:
        """Remove unfinished writes at least that old; return how many (FORMAT 12: seven days)."""
        return self._writer(TEMPORARY).sweep(older_than_seconds)

    def _writer(self, obj: str) -> DirectoryWriter:
        """The writer below the root. Raises StoreRefused where nothing may be written."""
        if not self._abilities.write:
            raise StoreRefused("the store can only be read", obj=obj)
        return self._writing()

    def _writing(self) -> DirectoryWriter:
        with self._making:
            if self._made is None:
                from lamella.stores.local.writing import DirectoryWriter  # most commands only read

                self._made = DirectoryWriter(self._root, delete=self._abilities.delete)
            return self._made

    # -- the lock -----------------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self, *, exclusive: bool, wait_seconds: float = 0.0) -> Iterator[None]:
        """Hold the repository's lock (flock on the marker, or on the directory before there is one).

        Raises Locked when not had within `wait_seconds`, StoreRefused where the file system knows no locks.
        """
        with ExitStack() as stack:
            with self._root.translated(MARKER):
                stack.enter_context(held(self._root.descriptor, exclusive=exclusive, wait_seconds=wait_seconds))
            if exclusive:
                self._alone = True
                stack.callback(self._not_alone)
            yield

    def _not_alone(self) -> None:
        self._alone = False

    def close(self) -> None:
        """Close the directory; further calls raise StoreError."""
        self._root.close()
