"""An NBD server in the foreground: one disk, any number of polite clients, a bounded number of all."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from lamella.base.errors import LamellaError
from lamella.base.events import Reporter, Warned
from lamella.operations.access.channel import Channel, ClientGone, ClientStalled
from lamella.operations.access.disk import Disk
from lamella.operations.access.nbd_connection import NbdConnection
from lamella.operations.access.nbd_protocol import Malformed
from lamella.operations.access.view import PIECE
from lamella.run.beside import Beside

MAX_CLIENTS = 64
"""Connections at a time; a further one is closed at once."""
END_SECONDS = 10.0
"""Seconds that the end waits for requests that are being served."""
_TOLD_MOST = 1000
_BACKLOG = 64
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 3}


@dataclass(frozen=True, slots=True)
class Served:
    """The served disk, the export's name, and a line about it for people."""

    disk: Disk
    name: str
    description: str


class NbdServer:
    """Serves until it is told to stop, or, with `once`, until the last client has left.

    `listener` is bound and listening. What goes wrong with the disk's content is reported, each object once.
    """

    def __init__(self, listener: socket.socket, served: Served, reporter: Reporter, *, once: bool = False) -> None:
        self._listener = listener
        self._served = served
        self._reporter = reporter
        self._once = once
        self._lock = threading.Lock()
        self._clients: dict[Channel, Beside] = {}
        self._told: set[str] = set()
        self._wake, self._waker = socket.socketpair()
        self._stopping = self._ending = False

    def run(self) -> None:
        """Accept clients. Raises KeyboardInterrupt as it comes; call `close` in any case."""
        self._listener.setblocking(False)
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._listener, selectors.EVENT_READ)
            waiting.register(self._wake, selectors.EVENT_READ)
            had_clients = False
            while not self._stopping:
                for key, _ in waiting.select():
                    if key.fileobj is self._listener:
                        had_clients = self._accept() or had_clients
                    else:
                        self._wake.recv(4096)
                with self._lock:
                    empty = not self._clients
                if empty and (self._ending or (self._once and had_clients)):
                    return

    def stop(self) -> None:
        """Have `run` return; from any thread."""
        self._stopping = True
        with suppress(OSError):
            self._waker.send(b"x")

    def end_with_clients(self) -> None:
        """Have `run` return as soon as no client is connected; from any thread."""
        self._ending = True
        with suppress(OSError):
            self._waker.send(b"x")

    def close(self) -> None:
        """Take no more clients and end the connections, after the requests that are being served."""
        self._listener.close()
        with self._lock:
            clients = dict(self._clients)
        for channel in clients:
            channel.finish()
        until = time.monotonic() + END_SECONDS
        for channel, thread in clients.items():
            if not thread.join(max(0.0, until - time.monotonic())):
                channel.shut()
        self._wake.close()
        self._waker.close()

    def _accept(self) -> bool:
        """Whether a client was taken."""
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has left already, or there are no more descriptors: others go on
            return False
        with self._lock:
            if len(self._clients) >= MAX_CLIENTS:
                connection.close()
                self._warn_once(f"more than {MAX_CLIENTS} clients: further connections are refused")
                return False
            try:
                channel = Channel(_prepared(connection))
                # It leaves under the same lock, so it is known before it leaves.
                self._clients[channel] = Beside(lambda: self._serve(channel), "lamella-nbd")
            except (OSError, RuntimeError):  # it has left already, or there is no further thread to be had
                connection.close()
                return False
        return True

    def _serve(self, channel: Channel) -> None:
        served = self._served
        try:
            NbdConnection(channel, served.name, served.description, served.disk, self._tell).run()
        except (Malformed, ClientStalled) as error:
            self._warn_once(
                f"a client was disconnected: {error}" if str(error) else "a client that stalled was cut off"
            )
        except ClientGone:
            pass
        finally:
            channel.shut()
            with self._lock:
                del self._clients[channel]
            channel.close()
            with suppress(OSError):
                self._waker.send(b"x")

    def _tell(self, error: Exception) -> None:
        if isinstance(error, LamellaError):
            self._warn_once(error.message, error.obj)
        else:
            self._warn_once(str(error))

    def _warn_once(self, message: str, obj: str = "") -> None:
        if message in self._told or len(self._told) >= _TOLD_MOST:
            return
        self._told.add(message)
        self._reporter(Warned(message, obj))


def _prepared(connection: socket.socket) -> socket.socket:
    """With what keeps a connection quick, and ends one whose other side is dead."""
    # As much as the system allows: each time that the client must empty it first, both wait for a processor.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE)
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection
