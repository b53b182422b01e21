"""Packets of the SSH File Transfer Protocol, version 3 (draft-ietf-secsh-filexfer-02), and OpenSSH's extensions to it
(its file PROTOCOL, section 4). Whatever a server sends is bounded before it is believed.

A packet is `length u32 | kind u8 | id u32 | fields`, big endian; a text is `length u32 | bytes`.
"""

from __future__ import annotations

import stat
import struct
from enum import IntEnum
from typing import NamedTuple

from lamella.base.errors import (
    ObjectNotFound,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    printable,
)
from lamella.stores.pipe.frames import ProtocolError

VERSION = 3
MAX_PACKET = (256 << 10) + 1024
"""Bytes of a packet, at most: OpenSSH neither sends nor takes more than 256 KiB."""
PIECE = 32 << 10
"""Bytes of a file in one packet: what every server must be able to take (draft, section 3)."""
MAX_HANDLE = 256
FSYNC, HARDLINK, STATVFS = "fsync@openssh.com", "hardlink@openssh.com", "statvfs@openssh.com"
READ, NEW = 0x01, 0x02 | 0x08 | 0x20
"""How a file is opened: to read, or to write where the name must be free."""

_HAS_SIZE, _HAS_OWNER, _HAS_MODE, _HAS_TIMES, _HAS_MORE = 0x01, 0x02, 0x04, 0x08, 0x80000000
_WORD, _LONG = struct.Struct(">I"), struct.Struct(">Q")
_SHOWN = 200


class PacketKind(IntEnum):
    """Kinds of packets."""

    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    LSTAT = 7
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    STAT = 17
    RENAME = 18
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED = 200
    EXTENDED_REPLY = 201


class Status(IntEnum):
    """What a STATUS packet says; the last two come from later versions of the protocol."""

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    BAD_MESSAGE = 5
    NO_CONNECTION = 6
    CONNECTION_LOST = 7
    OP_UNSUPPORTED = 8
    NO_SPACE = 14
    QUOTA_EXCEEDED = 15


class Attributes(NamedTuple):
    """What a server says of a file: its size in bytes, its mode, when it was changed (seconds; 0: not said)."""

    size: int
    mode: int
    changed: int

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


class NamedFile(NamedTuple):
    """One name in a directory."""

    name: str
    attributes: Attributes


NamedFiles = list[NamedFile]


class SftpAnswer(NamedTuple):
    """A packet that answers a request; `fields` is what follows the id."""

    kind: int
    fields: bytes

    @property
    def status(self) -> int:
        """The code of a STATUS; -1 for any other answer. Raises ProtocolError."""
        return Fields(self.fields).word() if self.kind == PacketKind.STATUS else -1

    def said(self) -> str:
        """What a STATUS says beside its code, as one short line."""
        fields = Fields(self.fields)
        code = fields.word()
        text = printable(fields.text()[:_SHOWN].decode("utf-8", "replace")) if fields.left else ""
        return text or f"status {code}"


class Fields:
    """Reads the fields of a packet. Every method raises ProtocolError where the packet ends too early."""

    def __init__(self, packet: bytes) -> None:
        self._packet = packet
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return len(self._packet) - self._at

    def taken(self, length: int) -> bytes:
        """The next bytes."""
        if length > self.left:
            raise ProtocolError("a packet that ends within a field")
        self._at += length
        return self._packet[self._at - length : self._at]

    def word(self) -> int:
        """The next 32-bit number."""
        return int(_WORD.unpack(self.taken(4))[0])

    def long(self) -> int:
        """The next 64-bit number."""
        return int(_LONG.unpack(self.taken(8))[0])

    def text(self, most: int = MAX_PACKET) -> bytes:
        """The next text, of at most so many bytes."""
        length = self.word()
        if length > most:
            raise ProtocolError(f"a text of {length} bytes")
        return self.taken(length)

    def attributes(self) -> Attributes:
        """The next attributes of a file."""
        flags = self.word()
        size = self.long() if flags & _HAS_SIZE else 0
        if flags & _HAS_OWNER:
            self.taken(8)
        mode = self.word() if flags & _HAS_MODE else 0
        changed = (self.word(), self.word())[1] if flags & _HAS_TIMES else 0
        for _ in range(self.word() if flags & _HAS_MORE else 0):
            self.text(), self.text()
        return Attributes(size, mode, changed)

    def names(self) -> list[NamedFile]:
        """The rows of a NAME packet; what is no text in ASCII is shown as such and is no object's name."""
        rows: list[NamedFile] = []
        for _ in range(self.word()):
            name = self.text().decode("ascii", "backslashreplace")
            self.text()  # the line that `ls` would print
            rows.append(NamedFile(name, self.attributes()))
        return rows

    def extensions(self) -> frozenset[str]:
        """Names of the extensions in a VERSION packet."""
        found: set[str] = set()
        while self.left:
            found.add(self.text().decode("ascii", "replace"))
            self.text()
        return frozenset(found)


def word(number: int) -> bytes:
    """A 32-bit number."""
    return _WORD.pack(number)


def long(number: int) -> bytes:
    """A 64-bit number."""
    return _LONG.pack(number)


def text(value: bytes) -> bytes:
    """A text."""
    return _WORD.pack(len(value)) + value


def private(mode: int) -> bytes:
    """Attributes that say nothing but who may do what."""
    return word(_HAS_MODE) + word(mode)


def refusal(answer: SftpAnswer, obj: str) -> StoreError:
    """The error for an answer that is not the one hoped for. Raises ProtocolError for one that makes no sense."""
    if answer.kind != PacketKind.STATUS or answer.status == Status.OK:
        raise ProtocolError("an answer to another request")
    code, said = answer.status, answer.said()
    if code == Status.NO_SUCH_FILE:
        return ObjectNotFound("no such object", obj=obj)
    if code in {Status.NO_SPACE, Status.QUOTA_EXCEEDED}:
        return StoreFull(f"no space left at the far side: {said}", obj=obj, hint=ROOM)
    if code in {Status.FAILURE, Status.NO_CONNECTION, Status.CONNECTION_LOST, Status.EOF}:
        return StoreUnavailable(f"the far side failed: {said}", obj=obj)
    return StoreRefused(f"the far side refuses: {said}", obj=obj)


ROOM = "make room there, with lamella prune too; then run the command again"
