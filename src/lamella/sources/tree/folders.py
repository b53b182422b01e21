"""Directories below a root, opened one name after the other, so that no symbolic link is ever followed."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

_KEPT = 32
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def joined(above: bytes, name: bytes) -> bytes:
    """The path of an entry of a directory, whose own path is empty for the top."""
    return above + b"/" + name if above else name


class Folders:
    """Open directories below `root`, by their path from it; the ones used last stay open. Thread-safe."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._open: OrderedDict[bytes, int] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def opened(self, path: bytes) -> Iterator[int]:
        """The directory at a path, empty for the root; closed by whoever needs the room, but not before this ends.

        Raises OSError; ELOOP or ENOTDIR if something else took the place of a directory.
        """
        with self._lock:
            own = os.dup(self._find(path))
        try:
            yield own
        finally:
            os.close(own)

    def _find(self, path: bytes) -> int:
        """The descriptor of a directory, kept for the next who asks. The lock is held."""
        if not path:
            return self._root
        found = self._open.pop(path, None)
        if found is None:
            above, _, name = path.rpartition(b"/")
            found = os.open(name, FOLDER_FLAGS, dir_fd=self._above(above))
        self._open[path] = found
        while len(self._open) > _KEPT:
            os.close(self._open.popitem(last=False)[1])
        return found

    def _above(self, path: bytes) -> int:
        """As `_find`, without keeping what is found: a path may be longer than the number kept."""
        if not path or path in self._open:
            return self._open.get(path, self._root)
        held = self._root
        try:
            for name in path.split(b"/"):
                below = os.open(name, FOLDER_FLAGS, dir_fd=held)
                if held != self._root:
                    os.close(held)
                held = below
        except OSError:
            if held != self._root:
                os.close(held)
            raise
        self._open[path] = held
        return held

    def close(self) -> None:
        """Close them all, the root excepted."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])
