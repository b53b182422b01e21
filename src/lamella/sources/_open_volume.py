"""Reading from an open volume whose size is known: what drivers share whose volumes are a descriptor."""

from __future__ import annotations

import os
from pathlib import Path

from lamella.base.errors import SourceError


class OpenVolume:
    """`size` bytes behind a descriptor; `path` is for messages. Reads name their offset: many threads may read."""

    def __init__(self, path: Path, fd: int, size: int) -> None:
        self.path = path
        self._fd = fd
        self._size = size

    @property
    def size(self) -> int:
        """Bytes of the volume when it was frozen."""
        return self._size

    def closed(self) -> None:
        """Forget the descriptor: a late read must fail, not read whatever file gets its number next."""
        self._fd = -1

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`. Raises SourceError if the volume ends before, or cannot be read there."""
        if offset < 0 or offset + len(buffer) > self._size:
            raise SourceError(f"{self.path}: nothing to read beyond its {self._size} bytes", obj=str(self.path))
        done = 0
        while done < len(buffer):
            try:
                count = self._read_some(offset + done, buffer[done:])
            except OSError as reason:
                raise read_failed(self.path, reason, f" at offset {offset + done}") from reason
            if count == 0:
                raise SourceError(
                    f"{self.path} became shorter while it was read: it ends at or before offset {offset + done}",
                    obj=str(self.path),
                )
            done += count

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        return os.preadv(self._fd, [buffer], offset)


def read_failed(path: Path, reason: OSError, where: str = "") -> SourceError:
    """The error that says a volume cannot be read, in the system's words."""
    return SourceError(f"cannot read {path}{where}: {reason.strerror or reason}", obj=str(path))
