"""A far side written by hand from docs/PIPE.md, which lies as told: `pipe_peer.py LIE`. Imports nothing of Lamella.

It keeps objects in memory. `LIE` names one departure from the protocol or from the truth; `none` is an honest server.
"""

from __future__ import annotations

import os
import struct
import sys
import time

HELLO, GET, STAT, LIST, MORE, CANCEL, PUT, PIECE, DELETE, SYNC, LOCK, UNLOCK, TICK, KEEP = range(1, 15)
DONE, DATA, PAGE, ERROR, TOCK = range(32, 37)
MAX_DATA = 1 << 18


def say(kind: int, request: int, payload: bytes = b"", length: int | None = None) -> None:
    """Send a frame, of another length than it says if told so."""
    os.write(1, struct.pack("<IBI", len(payload) if length is None else length, kind, request) + payload)


def hear(count: int) -> bytes:
    """The next bytes; ends the program where there are none."""
    content = b""
    while len(content) < count:
        piece = os.read(0, count - len(content))
        if not piece:
            sys.exit()
        content += piece
    return content


def row(name: bytes, size: int) -> bytes:
    """One row of a page."""
    return bytes([len(name)]) + name + struct.pack("<Q", size)


class Peer:
    """Answers requests, with one lie."""

    def __init__(self, lie: str) -> None:
        self.lie = lie
        self.objects: dict[bytes, bytes] = {b"lamella": b"marker", b"p/ab/x": b"0123456789" * 1000}
        self.page = 0
        self.receiving: tuple[int, bytes, int, bytes] | None = None

    def run(self) -> None:
        """Serve until the client goes."""
        magic = hear(8)
        if magic == b"LMLBOOT1":
            hear(int(hear(8), 16))
            magic = hear(8)
        assert magic == b"LMLPIPE1"
        if self.lie == "shell":
            os.write(1, b"Welcome to \x1b[31mhost\x1b[0m! You have mail.\n")
            time.sleep(600)
        os.write(1, b"LMLSERV1")
        while True:
            length, kind, request = struct.unpack("<IBI", hear(9))
            payload = hear(length)
            if self.lie != "holding" or kind in {HELLO, TICK}:
                self.answer(kind, request, payload)

    def answer(self, kind: int, request: int, payload: bytes) -> None:
        """One request."""
        if kind == HELLO:
            say(DONE, request, struct.pack("<HB", 9 if self.lie == "version" else 1, 0b111))
        elif kind == TICK and self.lie != "deaf":
            say(TOCK, 0)
        elif kind == GET:
            offset, length = struct.unpack_from("<QQ", payload)
            self.get(request, offset, length, payload[16:])
        elif kind == STAT:
            self.stat(request, payload)
        elif kind == LIST:
            self.list(request, payload)
        elif kind == MORE and self.lie in {"endless-list", "repeated-pages"}:
            self.next_page(request)
        elif kind == PUT:
            self.receiving = (request, payload[5:], struct.unpack_from("<I", payload)[0], b"")
            self.piece(b"")
        elif kind == PIECE:
            self.piece(payload)
        elif kind in {DELETE, SYNC, LOCK, UNLOCK, KEEP}:
            say(DONE, request)

    def piece(self, payload: bytes) -> None:
        """A part of an object."""
        assert self.receiving is not None
        request, name, size, content = self.receiving
        self.receiving = (request, name, size, content + payload)
        if len(content) + len(payload) == size:
            self.objects[name] = content + payload
            say(DONE, request)

    def stat(self, request: int, name: bytes) -> None:
        """The size, or what is told instead."""
        if self.lie == "short-answer":
            say(DONE, request, b"\x01")
        elif self.lie == "two-answers":
            say(DONE, request, struct.pack("<Q", 1))
            say(DONE, request, struct.pack("<Q", 2))
        elif self.lie == "wrong-kind":
            say(DATA, request, b"x")
        elif self.lie == "odd-error":
            say(ERROR, request, b"\xc8what")
        elif self.lie == "escape":
            say(ERROR, request, b"\x03\x1b[31mred\x07\n\xff" + b"A" * 3000)
        elif name not in self.objects:
            say(ERROR, request, b"\x02gone\0")
        else:
            say(DONE, request, struct.pack("<Q", len(self.objects[name])))

    def get(self, request: int, offset: int, length: int, name: bytes) -> None:
        """The bytes, or what is told instead."""
        content = self.objects.get(name)
        if content is None:
            say(ERROR, request, b"\x02gone\0")
            return
        content = content[offset:] if length == (1 << 64) - 1 else content[offset : offset + length]
        self.flood(request)
        while self.lie == "slow" and content:
            time.sleep(1)
            say(DATA, request, content[:2500])
            content = content[2500:]
        frames = {
            "silent": [],
            "large-frame": [(DATA, request, bytes(MAX_DATA + 1))],
            "unknown-kind": [(99, request, b"")],
            "other-request": [(DATA, request + 7, content)],
            "late": [(DATA, request, content), (DONE, request, b""), (DATA, request, content)],
            "short": [(DATA, request, content[:-1]), (DONE, request, b"")],
        }
        pieces = [(DATA, request, content[at : at + MAX_DATA]) for at in range(0, len(content), MAX_DATA)]
        for frame in frames.get(self.lie, [*pieces, (DONE, request, b"")]):
            say(*frame)

    def flood(self, request: int) -> None:
        """Answers of bytes that do not end, or not where they say."""
        while self.lie == "never-ending-data":
            say(DATA, request, bytes(MAX_DATA))
        while self.lie == "empty-pieces":
            say(DATA, request)
        while self.lie == "ticking":
            say(TOCK, 0)
            time.sleep(0.01)
        while self.lie == "trickling":
            say(DATA, request, b"x")
            time.sleep(0.1)
        if self.lie == "huge-frame":
            say(DATA, request, b"x", length=1 << 31)
        if self.lie == "cut":
            say(DATA, request, b"0123456789", length=10_000)
            sys.exit(3)

    def next_page(self, request: int) -> None:
        """A page of a listing that never ends."""
        say(PAGE, request, b"".join(row(b"p/%012x" % (1000 * self.page + n), 1) for n in range(1000)))
        self.page += self.lie != "repeated-pages"

    def list(self, request: int, prefix: bytes) -> None:
        """The names, or what is told instead."""
        if self.lie in {"endless-list", "repeated-pages"}:
            for _ in range(4):
                self.next_page(request)
            return
        while self.lie == "unasked-pages":
            self.next_page(request)
        if self.lie == "falling-names":
            say(PAGE, request, row(b"p/b", 1) + row(b"p/a", 1))
        if self.lie == "empty-pages":
            while True:
                say(PAGE, request)
        if self.lie == "torn-page":
            say(PAGE, request, row(b"lamella", 1)[:-1])
        elif self.lie == "bad-name":
            say(PAGE, request, row(b"../../etc/passwd", 1))
        elif self.lie == "other-names":
            say(PAGE, request, row(b"a/other", 1))
        names = [name for name in self.objects if name.startswith(prefix)]
        say(PAGE, request, b"".join(row(name, len(self.objects[name])) for name in names))
        say(DONE, request)


if __name__ == "__main__":
    try:
        Peer(sys.argv[1]).run()
    except BrokenPipeError:
        sys.exit(0)
