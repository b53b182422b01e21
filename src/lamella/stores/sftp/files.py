"""Files and directories behind a connection of SFTP: reading, writing and listing them, many requests at once.

Paths are bytes, as the server takes them. What the server says is no more than a claim: every loop has a bound.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from lamella.base.errors import StoreError, StoreFull, StoreRefused, StoreUnavailable
from lamella.stores.base import MOST_OTHERS, Entry, checked_name
from lamella.stores.pipe.frames import ProtocolError
from lamella.stores.sftp.connection import SILENCE_SECONDS, Flight, SftpConnection
from lamella.stores.sftp.packets import (
    FSYNC,
    PIECE,
    ROOM,
    STATVFS,
    Attributes,
    Fields,
    NamedFile,
    NamedFiles,
    PacketKind,
    SftpAnswer,
    Status,
    long,
    refusal,
    text,
    word,
)

SLOWEST_BYTES_PER_SECOND = 4096
"""A file that comes slower than this on the whole is given up, so that a trickle cannot hold us for ever."""
_WINDOW = 64
"""Pieces of one file on their way."""
_AHEAD = 4
"""Pages of one directory that are asked for at once."""
_SIDE_BY_SIDE = 16
"""Directories that are read at once."""
_BLOCK_SIZE, _FREE_BLOCKS = 1, 4
"""Which of the numbers in an answer to STATVFS they are."""


def attributes(connection: SftpConnection, answer: SftpAnswer, name: str) -> Attributes:
    """What LSTAT or STAT answered. Raises ObjectNotFound, StoreError."""
    with connection.judged():
        if answer.kind != PacketKind.ATTRS:
            raise refusal(answer, name)
        return Fields(answer.fields).attributes()


def done(connection: SftpConnection, answer: SftpAnswer, name: str) -> None:
    """Raise what the server says unless it did what it was asked to do."""
    with connection.judged():
        if answer.status != Status.OK:
            raise refusal(answer, name)


def status_of(connection: SftpConnection, answer: SftpAnswer) -> int:
    """The code of an answer that can only be a STATUS."""
    with connection.judged():
        code = answer.status
        if code < 0:
            raise ProtocolError("an answer to another request")
        return code


def read(connection: SftpConnection, handle: bytes, start: int, end: int, name: str) -> bytes:
    """The bytes [start, end) of an open file. Raises StoreError when it ends before, StoreUnavailable."""
    deadline = time.monotonic() + SILENCE_SECONDS + (end - start) / SLOWEST_BYTES_PER_SECOND
    flight = Flight(connection, name)
    content = bytearray(end - start)
    missing = deque((at, min(PIECE, end - at)) for at in range(start, end, PIECE))
    lengths: dict[int, int] = {}
    while missing or flight.pending:
        while missing and flight.pending < _WINDOW:
            at, length = missing.popleft()
            lengths[at] = length
            flight.ask(at, PacketKind.READ, text(handle) + long(at) + word(length), length)
        at, answer = flight.take()
        piece, length = _piece(connection, answer, name), lengths.pop(at)
        content[at - start : at - start + len(piece)] = piece
        if len(piece) < length:
            missing.appendleft((at + len(piece), length - len(piece)))
        if time.monotonic() > deadline:
            raise StoreUnavailable("the far side sends too slowly", obj=name)
    return bytes(content)


def _piece(connection: SftpConnection, answer: SftpAnswer, name: str) -> bytes:
    with connection.judged():
        if answer.kind == PacketKind.DATA:
            piece = Fields(answer.fields).text(PIECE)
            if not piece:
                raise ProtocolError("no bytes where some were asked for")
            return piece
        if answer.status == Status.EOF:
            raise StoreError("object became shorter while it was read", obj=name)
        raise refusal(answer, name)


def write(connection: SftpConnection, handle: bytes, content: bytes, name: str, root: bytes) -> None:
    """Write a new file below `root`, have it made durable where the server can do that, and close it.

    Raises StoreFull, StoreUnavailable; StoreError.
    """
    flight = Flight(connection, name)
    view = memoryview(content)
    for at in range(0, len(view), PIECE):
        if flight.pending == _WINDOW:
            _written(connection, flight, len(view), name, root)
        flight.ask(0, PacketKind.WRITE, text(handle) + long(at) + text(bytes(view[at : at + PIECE])))
    if FSYNC in connection.extensions:
        flight.ask(0, PacketKind.EXTENDED, text(FSYNC.encode()) + text(handle))
    flight.ask(0, PacketKind.CLOSE, text(handle))
    while flight.pending:
        _written(connection, flight, len(view), name, root)


def _written(connection: SftpConnection, flight: Flight, size: int, name: str, root: bytes) -> None:
    _, answer = flight.take()
    if status_of(connection, answer) == Status.FAILURE:  # which word of the protocol means a full disk?
        raise _failed_to_write(connection, answer, size, name, root)
    done(connection, answer, name)


def _failed_to_write(connection: SftpConnection, answer: SftpAnswer, size: int, name: str, root: bytes) -> StoreError:
    """The error for a file that cannot be written on: version 3 has no word for a full disk, nor for a quota."""
    said = answer.said()
    if STATVFS in connection.extensions:
        reply = connection.call(PacketKind.EXTENDED, text(STATVFS.encode()) + text(root), name)
        if reply.kind == PacketKind.EXTENDED_REPLY:
            with connection.judged():
                fields = Fields(reply.fields)
                numbers = [fields.long() for _ in range(_FREE_BLOCKS + 1)]
            if numbers[_BLOCK_SIZE] * numbers[_FREE_BLOCKS] >= size:
                return StoreFull(
                    f"the far side cannot write on ({said}): is a quota reached, or does its disk fail?",
                    obj=name,
                    hint=ROOM,
                )
    return StoreFull(f"no space left at the far side ({said})", obj=name, hint=ROOM)


def directories(connection: SftpConnection, paths: Sequence[bytes], obj: str) -> list[list[NamedFile] | None]:
    """The rows of several directories, read side by side; None for one that is not there. Raises StoreError."""
    flight = Flight(connection, obj)
    found: list[list[NamedFile]] = [[] for _ in paths]
    absent: set[int] = set()
    handles: dict[int, bytes] = {}
    for number, path in enumerate(paths):
        flight.ask(number, PacketKind.OPENDIR, text(path))
    try:
        while flight.pending:
            number, answer = flight.take()
            if number not in handles:
                if answer.status == Status.NO_SUCH_FILE:
                    absent.add(number)
                    continue
                handles[number] = connection.handle(answer, obj)
                more = _AHEAD
            else:
                more = int(_page(connection, answer, found[number], obj))
            for _ in range(more):
                flight.ask(number, PacketKind.READDIR, text(handles[number]))
    finally:
        for handle in handles.values():
            connection.post(PacketKind.CLOSE, text(handle))
    return [None if number in absent else rows for number, rows in enumerate(found)]


def _page(connection: SftpConnection, answer: SftpAnswer, rows: list[NamedFile], obj: str) -> bool:
    """Keep the names in an answer to READDIR; whether there may be more."""
    with connection.judged():
        if answer.kind == PacketKind.STATUS and answer.status == Status.EOF:
            return False
        if answer.kind != PacketKind.NAME:
            raise StoreUnavailable(f"the far side broke a listing off: {refusal(answer, obj).message}", obj=obj)
        page = Fields(answer.fields).names()
        if not page:
            raise ProtocolError("a page of a directory without a name")
    rows += page
    if len(rows) > 2 * MOST_OTHERS:
        raise StoreRefused(f"a directory of more than {2 * MOST_OTHERS} entries", obj=obj)
    return True


ReadDirectories = Callable[[Sequence[str]], Sequence[NamedFiles | None]]
"""The rows of the directories that stand for these prefixes; None for one that is not there."""


class FolderWalk:
    """One listing, in the order of names. What cannot be an object is counted, and too many of that end it."""

    def __init__(self, read: ReadDirectories, hidden: str, obj: str, *, lasting: bool) -> None:
        """`read` gives the rows of directories; `hidden` is the name that is no part of the listing; `lasting`: nothing
        removes a directory.
        """
        self._read = read
        self._hidden = hidden
        self._obj = obj
        self._lasting = lasting
        self._invalid = 0

    def below(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`, none if there is no such directory. Raises StoreError."""
        (rows,) = self._read([prefix])
        yield from self._inside(rows or [], prefix)

    def _inside(self, rows: list[NamedFile], prefix: str) -> Iterator[Entry]:
        rows = self._sorted(rows, prefix)
        folders = [f"{prefix}{row.name}/" for row in rows if row.attributes.is_directory]
        read: dict[str, NamedFiles | None] = {}
        for row in rows:
            name = prefix + row.name
            if not row.attributes.is_directory:
                yield Entry(name, row.attributes.size)
                continue
            if not read:
                group, folders = folders[:_SIDE_BY_SIDE], folders[_SIDE_BY_SIDE:]
                read = dict(zip(group, self._read(group), strict=True))
            below = read.pop(f"{name}/")
            if below is None and self._lasting:
                raise StoreUnavailable("a directory vanished while it was listed", obj=name)
            yield from self._inside(below or [], f"{name}/")

    def _sorted(self, rows: list[NamedFile], prefix: str) -> list[NamedFile]:
        """What may be an object or lead to some, in the order of the names of the objects."""
        found: dict[str, NamedFile] = {}
        for row in rows:
            if row.name in {".", ".."} or prefix + row.name == self._hidden:
                continue
            if row.name in found:
                raise StoreError("the far side lists a name twice", obj=prefix + row.name)
            if not row.attributes.mode:
                raise StoreRefused("the far side does not say what its entries are", obj=self._obj)
            if self._may_be_one(row, prefix):
                found[row.name] = row
        return sorted(found.values(), key=lambda row: row.name + "/" * row.attributes.is_directory)

    def _may_be_one(self, row: NamedFile, prefix: str) -> bool:
        try:
            checked_name(prefix + row.name)
        except StoreRefused:
            valid = False
        else:
            valid = "/" not in row.name and (row.attributes.is_file or row.attributes.is_directory)
        if not valid:
            self._invalid += 1
            if self._invalid > MOST_OTHERS:
                raise StoreRefused(f"more than {MOST_OTHERS} entries in the directory are no objects", obj=self._obj)
        return valid
