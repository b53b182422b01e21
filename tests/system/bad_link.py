"""A TCP link of our own that is slow, loses packets, or breaks: kernels without `tc netem` have none to offer."""

from __future__ import annotations

import random
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_PIECE = 1 << 16
_BACKLOG = 8 << 20
_RESEND_SECONDS = 0.2
"""What a lost packet costs where nothing after it tells of the loss: the least time TCP waits (Linux, TCP_RTO_MIN)."""


class _Way:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source, self.target = source, target
        self.late: deque[tuple[float, bytes]] = deque()
        self.waiting = 0

    def close(self, *, reset: bool) -> None:
        """End the connection, as a router that forgot it where `reset`."""
        if reset:
            with suppress(OSError):
                self.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        for end in (self.source, self.target):
            with suppress(OSError):
                end.close()


class BadLink:
    """Forwards connections from a port to another one. `delay` is seconds one way."""

    def __init__(self, target: tuple[str, int], *, delay: float = 0.0) -> None:
        self._target = target
        self.delay = delay
        self.passed = 0
        """Bytes that went towards the target."""
        self.loss = 0.0
        """How likely each piece of up to 64 KiB is lost and sent again, and what follows it waits."""
        self.lost = 0
        self._chance = random.Random(1)
        self.cut_after: int | None = None
        """Cut everything once so many bytes have passed; then None again."""
        self.on_cut: Callable[[], None] = lambda: None
        self.cuts = 0
        self.frozen = False
        """Nothing passes in either direction, and no connection ends: a cable that was pulled."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ways: list[_Way] = []
        self._stuck: list[_Way] = []
        self._mutex = threading.Lock()
        self._stop = False
        self._threads = [threading.Thread(target=self._accept), threading.Thread(target=self._pump)]
        for thread in self._threads:
            thread.start()

    def cut(self) -> None:
        """Break every connection, as a router that forgot them."""
        self.cuts += self._hang_up()

    def freeze_present(self) -> None:
        """Nothing passes over the connections that are there any more, and none of them ends; new ones work."""
        with self._mutex:
            self._stuck += self._ways
            self._ways = []

    def _hang_up(self) -> bool:
        with self._mutex:
            ways, self._ways = self._ways, []
            if self._stop:
                ways += self._stuck
        for way in ways:
            way.close(reset=True)
        return bool(ways)

    def _ended(self, way: _Way) -> None:
        """One side has ended a connection: it alone ends, whatever else passes here."""
        with self._mutex:
            both = [one for one in self._ways if one is way or one.source is way.target]
            self._ways = [one for one in self._ways if one not in both]
        for one in both:
            one.close(reset=True)

    def close(self) -> None:
        """Stop."""
        self._stop = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(20)

    def _accept(self) -> None:
        while not self._stop:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, timeout=10)
            except OSError:
                near.close()
                continue
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                one.setblocking(False)
            with self._mutex:
                self._ways += [_Way(near, far), _Way(far, near)]

    def _pump(self) -> None:
        while not self._stop:
            with self._mutex:
                ways = list(self._ways)
            if self.frozen or not ways:
                time.sleep(0.005)
                continue
            self._round(ways)

    def _round(self, ways: list[_Way]) -> None:
        now = time.monotonic()
        due = min((way.late[0][0] for way in ways if way.late), default=now + 0.05)
        with selectors.DefaultSelector() as ready:
            for way in ways:
                if way.waiting < _BACKLOG:
                    with self._judged(way):
                        ready.register(way.source, selectors.EVENT_READ, way)
            for key, _ in ready.select(max(0.0, due - now)):
                with self._judged(key.data):
                    self._read(key.data)
        now = time.monotonic()
        for way in ways:
            with self._judged(way):
                while way.late and way.late[0][0] <= now and self._sent(way):
                    pass

    @contextmanager
    def _judged(self, way: _Way) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):
            self._ended(way)

    def _read(self, way: _Way) -> None:
        piece = way.source.recv(_PIECE)
        if not piece:
            raise ConnectionResetError
        due = time.monotonic() + self.delay
        pause = _RESEND_SECONDS
        while self._chance.random() < self.loss:
            self.lost += 1
            due += pause
            pause *= 2
        way.late.append((due, piece))
        way.waiting += len(piece)
        if way.target.getpeername() == self._target:
            self.passed += len(piece)
            if self.cut_after is not None and self.passed >= self.cut_after:
                self.cut_after = None
                self.cut()
                self.on_cut()

    def _sent(self, way: _Way) -> bool:
        """Send what is due; whether all of the first piece went."""
        due, piece = way.late[0]
        try:
            sent = way.target.send(piece)
        except BlockingIOError:
            time.sleep(0.001)
            return False
        way.waiting -= sent
        if sent < len(piece):
            way.late[0] = due, piece[sent:]
            return False
        way.late.popleft()
        return True


@contextmanager
def bad_link(target: tuple[str, int], *, delay: float = 0.0) -> Iterator[BadLink]:
    """A running link."""
    link = BadLink(target, delay=delay)
    try:
        yield link
    finally:
        link.close()
