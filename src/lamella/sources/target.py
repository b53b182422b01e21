"""The Target contract for everything that a volume is restored to, and the common part of all targets.

Order of calls: `prepare`, any number of `write`, `zero` and `punch` from any threads, `settle`, then `finish`;
`abandon` instead at any point. Before `settle`, `read_into` proves something only for what is direct, and for what was
there from the beginning. A target is used once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Protocol

from lamella.base.errors import SourceError
from lamella.sources.direct import ALIGNMENT, reopened

_FULL = {errno.ENOSPC, errno.EDQUOT}


class OldState(Enum):
    """The fate of what is at the target."""

    NONE = 0
    """Nothing is there."""
    REPLACED = 1
    """It stays until the restored volume has been compared, and is replaced then."""
    LOST = 2
    """It is overwritten where it lies."""


class Target(Protocol):
    """Something a volume can be restored to. Operating system errors become SourceError, refusals UsageError."""

    @property
    def path(self) -> Path:
        """Where the volume is to be, links followed."""

    @property
    def working_path(self) -> Path:
        """Where the bytes are until `finish`; this is what `abandon` leaves behind."""

    @property
    def old_state(self) -> OldState:
        """The fate of what is there."""

    @property
    def starts_zeroed(self) -> bool:
        """After `prepare` everything reads as zero, so holes and zeros need no call."""

    @property
    def holds(self) -> bool:
        """After `prepare` there may be contents that are right already: comparing them may save writing them."""

    @property
    def tail_bytes(self) -> int:
        """Bytes behind the volume's end that are left as they are; 0 for files."""

    @property
    def notes(self) -> list[str]:
        """The things that the target could not do as it should, in whole sentences."""

    def prepare(self, size: int, needed_bytes: int) -> None:
        """Open for a volume of `size` bytes of which `needed_bytes` will be written.

        Raises UsageError if the target must not be written, Locked if another restore writes it, SourceError if it
        cannot be opened or lacks space.
        """

    def write(self, offset: int, content: bytes | bytearray | memoryview) -> None:
        """Write all of `content` at `offset`. Raises SourceError, ValueError beyond the volume's end."""

    def zero(self, start: int, end: int) -> None:
        """Make `[start, end)` read as zero and keep its space."""

    def punch(self, start: int, end: int) -> None:
        """Make `[start, end)` read as zero and give its space back where that is possible."""

    def settle(self) -> None:
        """Make everything durable and forget cached pages, so that what is read next comes from the disk."""

    def is_direct(self, start: int, end: int) -> bool:
        """Whether `[start, end)` is read from the disk itself, past every cache, into a page-aligned buffer."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`. Raises SourceError."""

    def stored(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of `[start, end)` that the file system stores; everything else reads as zero.

        Call it after `settle`: what the file system says of unwritten pages is not to be trusted before.
        """

    def finish(self) -> None:
        """Make everything durable and give it its final name. Raises SourceError; UsageError if the name was taken."""

    def abandon(self) -> Path:
        """Close, leave what there is, and return where it lies. Does nothing after `finish`."""


class OpenTarget:
    """The common part of targets: a descriptor used by offset only, and where possible another past the page cache."""

    starts_zeroed = False
    holds = False
    old_state = OldState.LOST

    def __init__(self, path: Path) -> None:
        self._given = path
        self._fd = -1
        self._direct_fd = -1
        self._direct_fails = False
        self._size = 0
        self.path = path
        self.working_path = path
        self.tail_bytes = 0
        self.notes: list[str] = []

    def write(self, offset: int, content: bytes | bytearray | memoryview) -> None:
        view = memoryview(content).cast("B")
        self._check_range(offset, offset + len(view))
        with self._translated("write", offset):
            while view:
                count = self._move(os.pwrite, view, offset)
                view, offset = view[count:], offset + count

    def zero(self, start: int, end: int) -> None:
        self._zero(start, end, keep_space=True)

    def punch(self, start: int, end: int) -> None:
        self._zero(start, end, keep_space=False)

    def settle(self) -> None:
        with self._translated("flush"):
            os.fsync(self._fd)
        with suppress(OSError):  # some file systems have nothing but memory
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def is_direct(self, start: int, end: int) -> bool:
        return self._direct_fd >= 0 and not self._direct_fails and not (start | end) % ALIGNMENT

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._check_range(offset, offset + len(buffer))
        done = 0
        with self._translated("read back", offset):
            while done < len(buffer):
                count = self._move(_pread, buffer[done:], offset + done)
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

    def _begin(self, size: int) -> None:
        """The open target is for a volume of `size` bytes. What it holds is brought to the disk, to be read from it."""
        self._size = size
        if self.holds:
            self.settle()
        self._direct_fd = reopened(self._fd)

    def _move(self, move: Callable[[int, memoryview, int], int], part: memoryview, offset: int) -> int:
        """Read or write, directly if possible. The kernel keeps both ways consistent."""
        if self.is_direct(offset, offset + len(part)):
            try:
                return move(self._direct_fd, part, offset)
            except OSError as reason:
                if reason.errno != errno.EINVAL:
                    raise
                self._direct_fails = True  # this disk, or this memory, is aligned otherwise
        return move(self._fd, part, offset)

    def _zero(self, start: int, end: int, *, keep_space: bool) -> None:
        from lamella.sources.zeroing import Zeroing, zero_range  # a new file is all zeros

        self._check_range(start, end)
        with self._translated("clear", start):
            zero_range(self._fd, start, end, Zeroing.KEEP_SPACE if keep_space else Zeroing.GIVE_BACK)

    def _check_range(self, start: int, end: int) -> None:
        if self._fd < 0:
            raise ValueError("the target is not open")
        if not 0 <= start <= end <= self._size:
            raise ValueError(f"[{start}, {end}) is not inside a volume that ends at {self._size}")

    def _close(self) -> None:
        for fd in (self._direct_fd, self._fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct_fd = -1

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


def _pread(fd: int, part: memoryview, offset: int) -> int:
    return os.preadv(fd, [part], offset)
