"""The NBD protocol: its numbers, and its messages to bytes and back. Pure.

Source: "The NBD protocol" (doc/proto.md of the nbd project). Everything is big-endian.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import NamedTuple

from lamella.base import nbd
from lamella.base.nbd import (
    DONE,
    GREETING,
    MAX_NAME,
    MAX_PAYLOAD,
    OPTION_MAGIC,
    Allocation,
    Answer,
    Chunk,
    Command,
    Handshake,
    Info,
    Option,
    Transmission,
)

__all__ = [
    "DONE",
    "GREETING",
    "MAX_NAME",
    "MAX_PAYLOAD",
    "OPTION_MAGIC",
    "Allocation",
    "Answer",
    "Chunk",
    "Command",
    "Handshake",
    "Info",
    "Option",
    "Transmission",
]

_OPTION_REPLY_MAGIC = nbd.OPTION_REPLY_MAGIC
_REQUEST_MAGIC = nbd.REQUEST_MAGIC
_SIMPLE_REPLY_MAGIC = nbd.SIMPLE_REPLY_MAGIC
_CHUNK_MAGIC = nbd.CHUNK_MAGIC


class RequestFlag(IntFlag):
    """Flags of a command."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3


ALLOWED = {
    Command.READ: RequestFlag.DF | RequestFlag.FUA,
    Command.WRITE: RequestFlag.FUA,
    Command.FLUSH: RequestFlag.FUA,
    Command.TRIM: RequestFlag.FUA,
    Command.CACHE: RequestFlag.FUA,
    Command.WRITE_ZEROES: RequestFlag.FUA | RequestFlag.NO_HOLE,
    Command.BLOCK_STATUS: RequestFlag.REQ_ONE | RequestFlag.FUA,
}
"""The flags that each command understands."""


ALLOCATION_NAME = nbd.ALLOCATION_CONTEXT.encode("ascii")
ALLOCATION_ID = 1

_REQUEST = struct.Struct(">IHHQQI")
REQUEST_SIZE = _REQUEST.size
_OPTION = struct.Struct(">8sII")
OPTION_SIZE = _OPTION.size
_OPTION_REPLY = struct.Struct(">QIII")
_SIMPLE = struct.Struct(">IIQ")
_CHUNK = struct.Struct(">IHHQI")
_U16, _U32, _U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")


class Malformed(Exception):
    """The other side does not speak the protocol; the connection cannot go on."""


class NbdRequest(NamedTuple):
    """The head of a request."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int


def decode_request(head: bytes | memoryview) -> NbdRequest:
    """Raises Malformed."""
    magic, *fields = _REQUEST.unpack(head)
    if magic != _REQUEST_MAGIC:
        raise Malformed("no request where one was due")
    return NbdRequest(*fields)


def decode_option(head: bytes | memoryview) -> tuple[int, int]:
    """The number of an option and the length of its data. Raises Malformed."""
    magic, number, length = _OPTION.unpack(head)
    if magic != OPTION_MAGIC:
        raise Malformed("no option where one was due")
    return number, length


def greeting() -> bytes:
    """The greeting of a server."""
    return GREETING + OPTION_MAGIC + _U16.pack(Handshake.FIXED_NEWSTYLE | Handshake.NO_ZEROES)


def option_reply(option: int, answer: Answer, content: bytes = b"") -> bytes:
    """A reply to an option; the content of an error is a text for people."""
    return _OPTION_REPLY.pack(_OPTION_REPLY_MAGIC, option, answer, len(content)) + content


def export_info(size: int, flags: Transmission) -> bytes:
    """The facts that every client must know of the export it chose."""
    return _U64.pack(size) + _U16.pack(flags)


def info(kind: Info, content: bytes) -> bytes:
    """The content of an INFO reply."""
    return _U16.pack(kind) + content


def block_sizes(least: int, preferred: int, most: int) -> bytes:
    """The content of INFO_BLOCK_SIZE, all in bytes."""
    return struct.pack(">III", least, preferred, most)


def named(name: bytes, rest: bytes = b"") -> bytes:
    """A string with its length before it."""
    return _U32.pack(len(name)) + name + rest


def meta_context(number: int) -> bytes:
    """The content of a META_CONTEXT reply for base:allocation, the only context here."""
    return _U32.pack(number) + ALLOCATION_NAME


def decode_go(data: bytes) -> tuple[bytes, list[int]]:
    """The name and the wanted kinds of information of INFO and GO. Raises ValueError."""
    name, rest = _string(data)
    if len(rest) < 2 or len(rest) != 2 + 2 * _U16.unpack(rest[:2])[0]:
        raise ValueError("not as long as it says")
    return name, [kind for (kind,) in _U16.iter_unpack(rest[2:])]


def decode_contexts(data: bytes) -> tuple[bytes, list[bytes]]:
    """The name and the queries of LIST_META_CONTEXT and SET_META_CONTEXT. Raises ValueError."""
    name, rest = _string(data)
    if len(rest) < 4:
        raise ValueError("no count of queries")
    count = _U32.unpack(rest[:4])[0]
    rest = rest[4:]
    queries: list[bytes] = []
    while len(queries) < count:  # each takes at least four bytes, so that a false count ends soon
        query, rest = _string(rest)
        queries.append(query)
    if rest:
        raise ValueError("longer than it says")
    return name, queries


def _string(data: bytes) -> tuple[bytes, bytes]:
    """A string with its length before it, and what follows. Raises ValueError."""
    if len(data) < 4:
        raise ValueError("no length")
    length = _U32.unpack(data[:4])[0]
    if length > min(MAX_NAME, len(data) - 4):
        raise ValueError("a string that is too long")
    return data[4 : 4 + length], data[4 + length :]


def simple_reply(cookie: int, error: int = 0) -> bytes:
    """The head of a simple reply; after one without error come the bytes that were read."""
    return _SIMPLE.pack(_SIMPLE_REPLY_MAGIC, error, cookie)


def done_chunk(cookie: int) -> bytes:
    """The end of a structured reply."""
    return _CHUNK.pack(_CHUNK_MAGIC, DONE, Chunk.NONE, cookie, 0)


def data_chunk(cookie: int, offset: int, length: int, flags: int = 0) -> bytes:
    """The head of a chunk with so many bytes, which follow."""
    return _CHUNK.pack(_CHUNK_MAGIC, flags, Chunk.OFFSET_DATA, cookie, 8 + length) + _U64.pack(offset)


def hole_chunk(cookie: int, offset: int, length: int, flags: int = 0) -> bytes:
    """So many zeros."""
    head = _CHUNK.pack(_CHUNK_MAGIC, flags, Chunk.OFFSET_HOLE, cookie, 12)
    return head + _U64.pack(offset) + _U32.pack(length)


def error_chunk(cookie: int, error: int, offset: int | None = None) -> bytes:
    """The end of a structured reply that failed; with `offset` only there."""
    place = b"" if offset is None else _U64.pack(offset)
    kind = Chunk.ERROR if offset is None else Chunk.ERROR_OFFSET
    return _CHUNK.pack(_CHUNK_MAGIC, DONE, kind, cookie, 6 + len(place)) + _U32.pack(error) + _U16.pack(0) + place


def status_chunk(cookie: int, stretches: list[tuple[int, Allocation]]) -> bytes:
    """The end of a reply to BLOCK_STATUS: lengths and states in order."""
    body = b"".join(struct.pack(">II", length, state) for length, state in stretches)
    return _CHUNK.pack(_CHUNK_MAGIC, DONE, Chunk.BLOCK_STATUS, cookie, 4 + len(body)) + _U32.pack(ALLOCATION_ID) + body
