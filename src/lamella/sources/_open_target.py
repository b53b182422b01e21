"""What targets of a restore share: one open descriptor, used by offset only, and errors in the user's words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lamella.base.errors import SourceError, UsageError
from lamella.sources._zeroing import Zeroing, zero_range
from lamella.sources.old_state import OldState

_FULL = {errno.ENOSPC, errno.EDQUOT}


class OpenTarget:
    """What all targets share: one descriptor, used by offset only."""

    starts_zeroed = False
    old_state = OldState.LOST

    def __init__(self, path: Path) -> None:
        self._given = path
        self._fd = -1
        self._size = 0
        self.path = path
        self.working_path = path
        self.tail_bytes = 0

    def write(self, offset: int, content: bytes | bytearray | memoryview) -> None:
        view = memoryview(content).cast("B")
        self._check_range(offset, offset + len(view))
        with self._translated("write", offset):
            while view:
                count = os.pwrite(self._fd, view, offset)
                view, offset = view[count:], offset + count

    def zero(self, start: int, end: int) -> None:
        self._zero(start, end, Zeroing.KEEP_SPACE)

    def punch(self, start: int, end: int) -> None:
        self._zero(start, end, Zeroing.GIVE_BACK)

    def settle(self) -> None:
        with self._translated("flush"):
            os.fsync(self._fd)
        with suppress(OSError):  # some file systems have nothing but memory
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._check_range(offset, offset + len(buffer))
        done = 0
        with self._translated("read back", offset):
            while done < len(buffer):
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
                if count == 0:
                    raise SourceError(f"{self.working_path} ends before offset {offset + done}", obj=str(self.path))
                done += count

    def stored(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        position = start
        while position < end:
            try:
                begin = min(os.lseek(self._fd, position, os.SEEK_DATA), end)
                position = min(os.lseek(self._fd, begin, os.SEEK_HOLE), end) if begin < end else end
            except OSError as error:
                if error.errno == errno.ENXIO:  # lseek(2): no data beyond this offset
                    return
                begin, position = position, end
            if begin < position:
                yield begin, position

    def abandon(self) -> Path:
        self._close()
        return self.working_path

    def _zero(self, start: int, end: int, how: Zeroing) -> None:
        self._check_range(start, end)
        with self._translated("clear", start):
            zero_range(self._fd, start, end, how)

    def _check_range(self, start: int, end: int) -> None:
        if self._fd < 0:
            raise ValueError("the target is not open")
        if not 0 <= start <= end <= self._size:
            raise ValueError(f"[{start}, {end}) is not inside a volume of {self._size} bytes")

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """Close again if anything fails before the target is ready."""
        try:
            with self._translated("prepare"):
                yield
        except BaseException:
            self._close()
            raise

    @contextmanager
    def _translated(self, act: str, offset: int | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as reason:
            where = "" if offset is None else f" at or after offset {offset}"
            hint = "free some space there and restore again" if reason.errno in _FULL else ""
            message = f"cannot {act} {self.working_path}{where}: {reason.strerror or reason}"
            raise SourceError(message, obj=str(self.path), hint=hint) from reason


def refuse_used(path: Path, uses: list[str]) -> None:
    """Raise UsageError if there are any uses of what would be written."""
    if uses:
        raise in_use(path, "; ".join(uses))


def in_use(path: Path, how: str) -> UsageError:
    """The error that says why a target must not be written."""
    return UsageError(f"{path} is in use: {how}", obj=str(path), hint="unmount or detach it first")
