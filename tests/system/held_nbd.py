"""An NBD server behind a proxy that holds one kind of request back: time stands still between two looks at a disk."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path

from lamella.base.nbd import REQUEST_MAGIC, Command

_HEAD = struct.Struct(">IHHQQI")
_START = struct.pack(">I", REQUEST_MAGIC)
SECONDS = 20


class HeldNbd:
    """Listens on `place`, for one client. Once `hold` is set, the next question about blocks waits until `let_go`."""

    def __init__(self, place: Path, server: Path) -> None:
        self.hold = threading.Event()
        self.holds = threading.Event()
        """Whether a question is waiting."""
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(place))
        self._listener.listen(1)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(str(server))
        self._client: socket.socket | None = None
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._forth, self._back)]
        for thread in self._threads:
            thread.start()

    def let_go(self) -> None:
        """Pass on what was held back."""
        with self._lock:
            self._server.sendall(b"".join(self._waiting))
            self._waiting.clear()

    def close(self) -> None:
        """Hang up on both sides."""
        for one in (self._client, self._server):
            if one is not None:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(SECONDS)
        for one in (self._client, self._server):
            if one is not None:
                one.close()

    def _back(self) -> None:
        while self._client is None and self._threads[0].is_alive():
            self._threads[0].join(0.01)
        with suppress(OSError):
            while self._client is not None and (said := self._server.recv(1 << 20)):
                self._client.sendall(said)

    def _forth(self) -> None:
        with suppress(OSError):
            self._client, _ = self._listener.accept()
            self._listener.close()
            # The negotiation goes through as it comes, until the first request: QEMU waits for each answer.
            while not (said := self._client.recv(1 << 16)).startswith(_START):
                if not said:
                    return
                self._server.sendall(said)
            self._requests(said)

    def _requests(self, said: bytes) -> None:
        assert self._client is not None
        while True:
            while len(said) < _HEAD.size:
                said += self._more()
            _, _, kind, _, _, length = _HEAD.unpack_from(said)
            whole = _HEAD.size + (length if kind == Command.WRITE else 0)
            while len(said) < whole:
                said += self._more()
            request, said = said[:whole], said[whole:]
            with self._lock:
                if kind == Command.BLOCK_STATUS and self.hold.is_set():
                    self._waiting.append(request)
                    self.hold.clear()  # QEMU asks again before it copies what the guest overwrites
                    self.holds.set()
                else:
                    self._server.sendall(request)

    def _more(self) -> bytes:
        assert self._client is not None
        got = self._client.recv(1 << 16)
        if not got:
            raise OSError("it hung up")
        return got
