"""Reading pieces of files that may change, shrink, go away or become something else at any moment."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import NamedTuple

from lamella.base.errors import printable
from lamella.sources.tree.layout import FileStatus

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)


class PieceState(Enum):
    """How reading a piece of a file ended."""

    SAME = 0
    """The file was the one that was looked at, before and after."""
    CHANGED = 1
    """It is another one, or was written to."""
    GONE = 2
    """There is no such file any more."""
    UNREADABLE = 3


class PieceRead(NamedTuple):
    """What became of reading a piece; `end` is where the file ended, if that was in the piece or before it."""

    state: PieceState
    end: int | None = None
    why: str = ""


GONE = PieceRead(PieceState.GONE, why="it went away meanwhile")


def fill(folder: int, name: bytes, status: FileStatus, offset: int, view: memoryview) -> PieceRead:
    """Fill `view` with a file's bytes from `offset`, and with zeros from where they end."""
    try:
        with _opened(folder, name) as file:
            before = os.fstat(file)
            if not stat.S_ISREG(before.st_mode):
                view[:] = bytes(len(view))
                return PieceRead(PieceState.GONE, why="something else has its name now")
            done = _read(file, offset, view)
            same = _is(status, before) and _is(status, os.fstat(file)) and done == len(view)
    except OSError as error:
        view[:] = bytes(len(view))
        if error.errno in _NO_FILE:
            return GONE
        return PieceRead(PieceState.UNREADABLE, why=error.strerror or printable(str(error)))
    view[done:] = bytes(len(view) - done)
    return PieceRead(PieceState.SAME if same else PieceState.CHANGED, offset + done if done < len(view) else None)


def data(folder: int, name: bytes, length: int) -> list[tuple[int, int]]:
    """The stretches `(start, end)` of a file's first `length` bytes that are no holes."""
    found: list[tuple[int, int]] = []
    try:
        with _opened(folder, name) as file:
            at = 0
            while at < length:
                start = os.lseek(file, at, os.SEEK_DATA)
                at = min(os.lseek(file, start, os.SEEK_HOLE), length)
                if start < at:
                    found.append((start, at))
    except OSError as error:
        if error.errno != errno.ENXIO:  # no data from there on
            return [(0, length)]
    return found


def _read(file: int, offset: int, view: memoryview) -> int:
    done = 0
    while done < len(view):
        count = os.preadv(file, [view[done:]], offset + done)
        if not count:
            break
        done += count
    return done


def _is(status: FileStatus, now: os.stat_result) -> bool:
    """Whether a file is still as it was when it was looked at."""
    seen = (status.inode, status.size, status.mtime_ns, status.ctime_ns)
    return seen == (now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)


@contextmanager
def _opened(folder: int, name: bytes) -> Iterator[int]:
    try:
        file = os.open(name, _FLAGS | os.O_NOATIME, dir_fd=folder)
    except PermissionError:  # O_NOATIME is for the file's owner
        file = os.open(name, _FLAGS, dir_fd=folder)
    try:
        yield file
    finally:
        os.close(file)
