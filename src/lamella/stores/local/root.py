"""The directory that a local store has opened: its descriptor, whether it is still in its place, and what failed in it.

The store reads below this root (store.py), and writes below it (writing.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.base.errors import StoreError, StoreRefused, StoreUnavailable
from lamella.stores.base import checked_name
from lamella.stores.local.directory import TEMPORARY

if TYPE_CHECKING:
    Parts = tuple[str, ...]


class Root:
    """An open directory, and the path that led to it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor: int | None = descriptor

    @property
    def url(self) -> str:
        """The absolute path of the directory."""
        return str(self._path)

    @property
    def descriptor(self) -> int:
        """The open directory. Raises StoreError once it is closed."""
        if self._descriptor is None:
            raise StoreError("the store is closed", obj=self.url)
        return self._descriptor

    def close(self) -> None:
        """Close the directory."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    @staticmethod
    def parts(name: str) -> tuple[Parts, str]:
        """The directories above an object, and the name of its file. Raises StoreRefused."""
        parts = checked_name(name).split("/")
        if parts[0] == TEMPORARY:
            raise StoreRefused(f"names below {TEMPORARY} are kept for unfinished writes", obj=name)
        return tuple(parts[:-1]), parts[-1]

    def check_in_place(self) -> None:
        """Raise StoreUnavailable when the path no longer leads to the directory opened: unmounted, moved, removed."""
        root = os.fstat(self.descriptor)
        try:
            now = self._path.stat()
        except OSError as error:
            raise StoreUnavailable("the directory is gone", obj=self.url) from error
        if (root.st_dev, root.st_ino) != (now.st_dev, now.st_ino):
            raise StoreUnavailable("another directory has taken the place of the one opened", obj=self.url)

    @contextmanager
    def translated(self, obj: str, *, absent: bool = False) -> Iterator[None]:
        """Turn OSError into the store's errors; `absent`: a missing file is a missing object, if the root is there."""
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                self.check_in_place()
            from lamella.stores.local.refusal import store_error  # mostly nothing fails

            raise store_error(error, self._path, obj, absent=absent) from error
