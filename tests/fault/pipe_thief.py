"""A client written by hand from docs/PIPE.md, as a thief of a credential would. Imports nothing of Lamella."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Self

HELLO, GET, STAT, LIST, MORE, CANCEL, PUT, PIECE, DELETE, SYNC, LOCK, UNLOCK, TICK, KEEP = range(1, 15)
DONE, DATA, PAGE, ERROR, TOCK = range(32, 37)
DELETES, WRITES, IMMUTABLE = 2, 4, 8
_SECONDS = 60


class Refused(Exception):
    """The server said no; the text is its own."""


class Thief:
    """One connection to whatever `argv` starts."""

    def __init__(self, argv: Sequence[str], place: str = "/", flags: int = 0) -> None:
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._number = 0
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(b"LMLPIPE1")
        try:
            self.send(HELLO, 0, struct.pack("<HB", 1, flags) + place.encode())
            assert self._hear(8) == b"LMLSERV1"
            self.abilities = self._answer(0)[2]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._process.kill()
        self._process.communicate(timeout=_SECONDS)

    def ask(self, kind: int, payload: bytes = b"", body: bytes | None = None) -> bytes:
        """Send a request, return what comes with its answer. Raises Refused; EOFError when the server hangs up."""
        self._number += 1
        self.send(kind, self._number, payload)
        for at in range(0, len(body or b""), 1 << 18):
            self.send(PIECE, self._number, (body or b"")[at : at + (1 << 18)])
        return self._answer(self._number)

    def _answer(self, wanted: int) -> bytes:
        content = b""
        while True:
            length, answer, number = struct.unpack("<IBI", self._hear(9))
            payload = self._hear(length)
            if answer == ERROR:
                raise Refused(payload[1:].decode("utf-8", "replace"))
            if number != wanted:
                continue
            content += payload
            if answer == PAGE:
                self.send(MORE, wanted)
            if answer == DONE:
                return content

    def put(self, name: str, content: bytes, *, durable: bool = False) -> None:
        """Store an object."""
        self.ask(PUT, struct.pack("<IB", len(content), durable) + name.encode(), content)

    def names(self, prefix: str = "") -> list[str]:
        """Everything listed."""
        page, found = self.ask(LIST, prefix.encode()), []
        while page:
            end = 1 + page[0]
            found.append(page[1:end].decode())
            page = page[end + 8 :]
        return found

    def send(self, kind: int, number: int, payload: bytes = b"") -> None:
        """Send a frame."""
        assert self._process.stdin is not None
        self._process.stdin.write(struct.pack("<IBI", len(payload), kind, number) + payload)
        self._process.stdin.flush()

    def _hear(self, count: int) -> bytes:
        assert self._process.stdout is not None
        content = self._process.stdout.read(count)
        if len(content) < count:
            raise EOFError
        return content
