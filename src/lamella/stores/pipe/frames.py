"""The protocol of a store behind a pipe: frames, their limits, what is in them, and how they pass a descriptor
(docs/PIPE.md).

A frame is `length u32 | kind u8 | request u32 | payload`, little endian; `length` is that of the payload. A reader
knows from the kind how long a payload may be before it takes a byte. This module and those it is packed with for a
far side without Lamella (stores/pipe/bundle.py) run on Python 3.8.
"""

from __future__ import annotations

import os
import struct
import threading
from typing import TYPE_CHECKING, NamedTuple

from lamella.base.errors import (
    LamellaError,
    Locked,
    NoRepository,
    ObjectNotFound,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    UsageError,
    printable,
)
from lamella.base.trust import Sealed
from lamella.stores.base import MAX_NAME, Abilities, Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BOOT_MAGIC = b"LMLBOOT1"
"""Precedes a packed agent (8 hex digits of length, then a zlib stream); a server that is installed skips the agent."""
CLIENT_MAGIC = b"LMLPIPE1"
SERVER_MAGIC = b"LMLSERV1"
VERSION = 1

HEADER = struct.Struct("<IBI")
PIECE = 1 << 18
"""Bytes of an object in one frame, at most."""
MAX_OBJECT = 72 << 20
"""Bytes of an object, at most: what the format allows (FORMAT 5) and some room."""
MAX_BOOT = 1 << 20
CREDIT = 4
"""Pages of a listing that may be on their way at once."""
PAGE_BYTES = PIECE - MAX_NAME - 9

SMALL_BYTES = 4096
"""An object of at most so many bytes is small ..."""
SMALL_OBJECTS = 32
"""... and so many of them are sent at once: as many as there may be key slots (FORMAT 3)."""

TICK_SECONDS = 20.0
"""A side that sent nothing for so long sends TICK or TOCK."""
SILENCE_SECONDS = 60.0
"""A client that waits gives the connection up after this much silence ..."""
ABANDONED_SECONDS = 120.0
"""... and a server ends after this much, which releases its locks. The client's limit is shorter: it knows that its
lock may be gone before another client can take it."""


class Frame:
    """The kinds of frames. Below 32 the client's, above the server's."""

    HELLO = 1
    GET = 2
    STAT = 3
    LIST = 4
    MORE = 5
    CANCEL = 6
    PUT = 7
    PIECE = 8
    DELETE = 9
    SYNC = 10
    LOCK = 11
    UNLOCK = 12
    TICK = 13
    KEEP = 14
    SMALL = 15
    DONE = 32
    DATA = 33
    PAGE = 34
    ERROR = 35
    TOCK = 36


_TEXT = 4096
_BUFFER = 1 << 16
CLIENT_LIMITS = {
    Frame.HELLO: 2 * _TEXT,
    Frame.GET: 16 + MAX_NAME,
    Frame.STAT: MAX_NAME,
    Frame.LIST: MAX_NAME,
    Frame.MORE: 0,
    Frame.CANCEL: 0,
    Frame.PUT: 5 + MAX_NAME,
    Frame.PIECE: PIECE,
    Frame.DELETE: MAX_NAME,
    Frame.SYNC: 0,
    Frame.LOCK: 1,
    Frame.UNLOCK: 4,
    Frame.TICK: 0,
    Frame.KEEP: 8 + MAX_NAME,
    Frame.SMALL: MAX_NAME,
}
SERVER_LIMITS = {
    Frame.DONE: _TEXT,
    Frame.DATA: PIECE,
    Frame.PAGE: PIECE,
    Frame.ERROR: _TEXT,
    Frame.TOCK: 0,
}

GET = struct.Struct("<QQ")
"""Offset and length; a length of TO_THE_END has no other meaning."""
TO_THE_END = (1 << 64) - 1
PUT = struct.Struct("<IB")
"""Size of the object, and whether it must be durable when it is acknowledged; a LIST sent behind waits for that."""
SIZE = struct.Struct("<Q")

_ERRORS: dict[int, type[LamellaError]] = {
    1: StoreError,
    2: ObjectNotFound,
    3: StoreUnavailable,
    4: StoreRefused,
    5: StoreFull,
    6: Locked,
    7: NoRepository,
    8: UsageError,
}
_MAX_MESSAGE = 600
_MOST_QUOTED = 200


class ProtocolError(Exception):
    """The other side does not keep to the protocol; the text says how."""


class Hello(NamedTuple):
    """The client's request at the start."""

    place: str
    create: bool
    read_only: bool
    checked: bool
    """Names are to be compared with contents, though this client may delete."""

    def encode(self) -> bytes:
        """The payload."""
        flags = self.create | self.read_only << 1 | self.checked << 2
        return struct.pack("<HB", VERSION, flags) + self.place.encode("utf-8", "surrogateescape")


def decode_hello(payload: bytes) -> Hello:
    """Read a client's first frame. Raises ProtocolError."""
    if len(payload) < 3:
        raise ProtocolError("a greeting that is too short")
    version, flags = struct.unpack_from("<HB", payload)
    if version != VERSION:
        raise ProtocolError(f"the client speaks version {version} of the protocol, this side version {VERSION}")
    return Hello(payload[3:].decode("utf-8", "surrogateescape"), bool(flags & 1), bool(flags & 2), bool(flags & 4))


_ABILITIES = ("exclusive_lock", "delete", "write", "immutable")


def encode_welcome(abilities: Abilities) -> bytes:
    """The answer to a greeting."""
    flags = sum(1 << bit for bit, name in enumerate(_ABILITIES) if getattr(abilities, name))
    return struct.pack("<HB", VERSION, flags)


def decode_welcome(payload: bytes) -> Abilities:
    """Read the answer to a greeting; what a later server adds behind it is left alone. Raises ProtocolError."""
    if len(payload) < 3:
        raise ProtocolError("an answer to the greeting that is too short")
    version, flags = struct.unpack_from("<HB", payload)
    if version != VERSION:
        raise ProtocolError(f"the far side speaks version {version} of the protocol, this side version {VERSION}")
    lock, delete, write, immutable = (bool(flags & 1 << bit) for bit in range(len(_ABILITIES)))
    return Abilities(lock, delete, write, immutable)


def encode_error(error: LamellaError) -> bytes:
    """An error as a frame's payload: code, then message and hint."""
    code = next((number for number, kind in _ERRORS.items() if type(error) is kind), 1)
    texts = (error.message, error.hint)
    return bytes([code]) + b"\0".join(text.encode("utf-8", "replace")[:_MAX_MESSAGE] for text in texts)


def decode_error(payload: bytes, obj: str) -> LamellaError:
    """The error that the far side reports, as one of ours, about our own object. Raises ProtocolError."""
    kind = _ERRORS.get(payload[0]) if payload else None
    if kind is None:
        raise ProtocolError("an error of no known kind")
    message, _, hint = payload[1:].partition(b"\0")
    return kind(shown(message) or "the far side failed", obj=obj, hint=shown(hint))


def shown(text: bytes) -> str:
    """The words of the far side, as one bounded line."""
    return printable(text.decode("utf-8", "replace")[:_MAX_MESSAGE])


def quoted(text: bytes) -> str:
    """The words of the far side where something else belongs: a part of them, or that they are no text."""
    said = text.decode("utf-8", "replace")[:_MOST_QUOTED]
    strange = sum(not (character.isprintable() or character.isspace()) or character == "\ufffd" for character in said)
    return "sends bytes that are no text" if 8 * strange > len(said) else f"says {printable(said)!r}"


def encode_entry(entry: Entry) -> bytes:
    """One row of a page."""
    name = entry.name.encode("ascii")
    return bytes([len(name)]) + name + SIZE.pack(entry.size)


def decode_page(payload: bytes) -> list[Entry]:
    """The rows of a page. Raises ProtocolError; the names are not yet checked."""
    entries: list[Entry] = []
    position = 0
    while position < len(payload):
        end = position + 1 + payload[position]
        if end + SIZE.size > len(payload):
            raise ProtocolError("a page that ends inside a row")
        name = payload[position + 1 : end].decode("ascii", "replace")
        entries.append(Entry(name, SIZE.unpack_from(payload, end)[0]))
        position = end + SIZE.size
    return entries


def encode_small(name: str, content: bytes) -> bytes:
    """One object of the answer to SMALL."""
    encoded = name.encode("ascii")
    return struct.pack("<BH", len(encoded), len(content)) + encoded + content


def decode_small(payload: bytes) -> dict[str, bytes]:
    """All objects of an answer to SMALL. Raises ProtocolError."""
    objects: dict[str, bytes] = {}
    position = 0
    while position < len(payload):
        if position + 3 > len(payload):
            raise ProtocolError("objects that end inside a head")
        name_bytes, size = struct.unpack_from("<BH", payload, position)
        start = position + 3 + name_bytes
        if start + size > len(payload):
            raise ProtocolError("objects that end inside one")
        objects[payload[position + 3 : start].decode("ascii", "replace")] = payload[start : start + size]
        position = start + size
    return objects


def as_sealed(content: memoryview) -> Sealed:
    """Received bytes, for a store: a server passes on what it cannot read, and does not judge."""
    return Sealed(bytes(content))


class FrameSource:
    """The frames of one descriptor, for one thread.

    `wait` returns when the descriptor can be read, and raises when nothing is to be waited for any more.
    """

    def __init__(self, descriptor: int, limits: Mapping[int, int], wait: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._limits = limits
        self._wait = wait
        self._buffer = memoryview(bytearray(_BUFFER))
        self._start = self._end = 0

    def header(self) -> tuple[int, int, int]:
        """Length of the payload that follows, kind and request of the next frame.

        Raises EOFError at the end, ProtocolError for a kind that has no place here or a payload longer than its kind
        may have, OSError.
        """
        if self._start == self._end:
            self._fill()
        length, kind, request = HEADER.unpack(self.exactly(HEADER.size))
        limit = self._limits.get(kind)
        if limit is None:
            raise ProtocolError(f"a frame of unknown kind {kind}")
        if length > limit:
            raise ProtocolError(f"a frame of {length} bytes, where {limit} is the limit")
        return length, kind, request

    def exactly(self, length: int) -> bytearray:
        """The next `length` bytes; the caller has bounded it. Raises EOFError if they end before, OSError."""
        content = bytearray(length)
        self.into(memoryview(content))
        return content

    def into(self, target: memoryview) -> None:
        """Fill `target` with the next bytes. Raises EOFError if they end before, OSError."""
        while target:
            taken = min(len(target), self._end - self._start)
            if taken:
                target[:taken] = self._buffer[self._start : self._start + taken]
                self._start += taken
            elif len(target) >= _BUFFER:  # straight to where it belongs
                self._wait()
                taken = os.readv(self._descriptor, [target])
                if not taken:
                    raise EOFError
            else:
                self._fill()
            target = target[taken:]

    def rest(self) -> bytes:
        """Bytes that were read and not taken yet: for messages about a side that speaks something else."""
        return bytes(self._buffer[self._start : self._end])

    def skip(self, length: int) -> None:
        """Pass over the next bytes."""
        while length:
            taken = min(length, _BUFFER)
            self.exactly(taken)
            length -= taken

    def _fill(self) -> None:
        self._wait()
        self._start, self._end = 0, os.readv(self._descriptor, [self._buffer])
        if not self._end:
            raise EOFError


class FrameSink:
    """Writes frames to one descriptor; threads take turns, a frame at a time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._turn = threading.Lock()
        self.frames = 0
        """Frames written: two equal looks at it mean that nothing was said in between."""

    def shut(self, seconds: float) -> bool:
        """Write nothing any more; False if a thread is still stuck in a write after that time."""
        if not self._turn.acquire(timeout=seconds):
            return False
        self._descriptor = -1
        self._turn.release()
        return True

    def raw(self, content: bytes) -> None:
        """Write bytes that are no frame. Raises OSError."""
        with self._turn:
            self._write([content])

    def frame(self, kind: int, request: int, payload: bytes | bytearray | memoryview = b"") -> None:
        """Write one frame. Raises OSError."""
        with self._turn:
            self._write([HEADER.pack(len(payload), kind, request), payload])
            self.frames += 1

    def frame_unless_busy(self, kind: int) -> None:
        """Write an empty frame of request 0, unless another one is just being written. Raises OSError."""
        if self._turn.acquire(blocking=False):
            try:
                self._write([HEADER.pack(0, kind, 0)])
                self.frames += 1
            finally:
                self._turn.release()

    def _write(self, parts: list[bytes | bytearray | memoryview]) -> None:
        written = os.writev(self._descriptor, parts)
        for part in parts:
            rest = memoryview(part)[written:]
            written = max(0, written - len(part))
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
