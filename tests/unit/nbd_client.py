"""An NBD client of the tests' own, written from the protocol: it says what it likes, also what no client should."""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Self

SECONDS = 30
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE = 1, 2, 4, 8


class Refused(Exception):
    """The server answered with this error."""

    def __init__(self, number: int, offset: int | None = None) -> None:
        super().__init__(number)
        self.number = number
        self.offset = offset


class NbdClient:
    """One connection to a server's socket."""

    def __init__(self, place: str | tuple[str, int]) -> None:
        family = socket.AF_UNIX if isinstance(place, str) else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(SECONDS)
        self.socket.connect(place)
        self.structured = self.status = False
        self.size = self.flags = 0
        self._cookie = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def take(self, length: int) -> bytes:
        """The next bytes. Raises EOFError if the server has closed the connection."""
        taken = bytearray()
        while len(taken) < length:
            try:
                part = self.socket.recv(min(1 << 20, length - len(taken)))
            except ConnectionError as error:
                raise EOFError from error
            if not part:
                raise EOFError
            taken += part
        return bytes(taken)

    # -- haggling -----------------------------------------------------------------------------------------------------

    def greet(self, flags: int = 3) -> int:
        """Take the greeting and answer it; the server's flags."""
        assert self.take(16) == b"NBDMAGICIHAVEOPT"
        offered: int = struct.unpack(">H", self.take(2))[0]
        self.socket.sendall(struct.pack(">I", flags))
        return offered

    def option(self, number: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Ask for an option; the kinds and contents of all replies up to the last."""
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
        replies: list[tuple[int, bytes]] = []
        while not replies or not (replies[-1][0] == 1 or replies[-1][0] >> 31):
            magic, option, kind, length = struct.unpack(">QIII", self.take(20))
            assert (magic, option) == (0x3E889045565A9, number)
            replies.append((kind, self.take(length)))
        return replies

    def go(self, name: bytes = b"", *, structured: bool = True, status: bool = True) -> Self:
        """Haggle as most clients do; afterwards requests may be sent."""
        self.greet()
        if structured:
            assert self.option(8) == [(1, b"")]
            self.structured = True
        if structured and status:
            query = struct.pack(">I", len(name)) + name + struct.pack(">II", 1, 15) + b"base:allocation"
            replies = self.option(10, query)
            assert [kind for kind, _ in replies] == [4, 1]
            self.status = True
        replies = self.option(7, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
        assert replies[-1][0] == 1, replies
        infos = [content[2:] for kind, content in replies if kind == 3 and content[:2] == b"\0\0"]
        self.size, self.flags = struct.unpack(">QH", infos[0])
        return self

    # -- requests -----------------------------------------------------------------------------------------------------

    def send(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes = b"") -> int:
        """Send a request; its cookie."""
        self._cookie += 1
        head = struct.pack(">IHHQQI", 0x25609513, flags, command, self._cookie, offset, length)
        self.socket.sendall(head + payload)
        return self._cookie

    def simple(self) -> None:
        """Take a simple reply without data. Raises Refused."""
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        assert (magic, cookie) == (0x67446698, self._cookie)
        if error:
            raise Refused(error)

    def read(self, offset: int, length: int, flags: int = 0) -> bytes:
        """Raises Refused."""
        self.send(READ, offset, length, flags)
        if not self.structured:
            self.simple()
            return self.take(length)
        covered, chunks = 0, self.chunks()
        found = bytearray(length)
        for kind, content in chunks:
            if kind in (1, 2):
                at = struct.unpack(">Q", content[:8])[0] - offset
                data = content[8:] if kind == 1 else bytes(struct.unpack(">I", content[8:])[0])
                found[at : at + len(data)] = data
                covered += len(data)
        assert covered == length, "the chunks do not cover what was asked for"
        return bytes(found)

    def chunks(self) -> list[tuple[int, bytes]]:
        """Take a structured reply. Raises Refused, after its last chunk."""
        found: list[tuple[int, bytes]] = []
        refused: Refused | None = None
        flags = 0
        while not flags & 1:
            magic, flags, kind, cookie, length = struct.unpack(">IHHQI", self.take(20))
            assert (magic, cookie) == (0x668E33EF, self._cookie)
            content = self.take(length)
            if kind >> 15:
                place = struct.unpack(">Q", content[6:14])[0] if kind == 0x8002 else None
                refused = Refused(struct.unpack(">I", content[:4])[0], place)
            found.append((kind, content))
        if refused is not None:
            raise refused
        return found

    def extents(self, offset: int, length: int, flags: int = 0) -> list[tuple[int, int]]:
        """Lengths and states of base:allocation. Raises Refused."""
        self.send(BLOCK_STATUS, offset, length, flags)
        (chunk,) = self.chunks()
        assert chunk[0] == 5 and chunk[1][:4] == b"\0\0\0\1"
        return [pair for pair in struct.iter_unpack(">II", chunk[1][4:])]

    def do(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes = b"") -> None:
        """Any request that is answered by a simple reply. Raises Refused."""
        self.send(command, offset, length, flags, payload)
        self.simple()

    def write(self, offset: int, content: bytes, flags: int = 0) -> None:
        """Raises Refused."""
        self.do(WRITE, offset, len(content), flags, content)
