"""One export over several connections: reading from many threads, and what the server says of its blocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from lamella.base.errors import SourceError
from lamella.base.nbd import ALLOCATION_CONTEXT, Allocation, Transmission
from lamella.sources.nbd.address import NbdAddress
from lamella.sources.nbd.wire import Connection, ServerError

CONNECTIONS: Final = 4
"""At most so many at once, where the server says that several see the same."""

_NEXT_SECONDS: Final = 5.0
"""A server that takes one client lets the next one wait: then there is only one."""
_PIECE: Final = 256 * 1024
"""Bytes asked for in one request. A guest's write waits for those that are open: few, and short."""
_AT_ONCE: Final = 4
"""Requests of one range that are open at the same time."""
_PAUSE_SECONDS: Final = 0.1
"""Who asks for nothing so long does not wait for the server, but for a slow destination."""
_PEACE_SECONDS: Final = 0.25
"""So long after a pause one request is made at a time: a local server gives several packs meanwhile."""
_STATUS: Final = 1 << 30
"""Bytes of the volume that one question about blocks is about."""
_LEAST_ADVANCE: Final = 4096
"""Bytes that an answer about blocks gets on, on average."""
_MOST_ANSWERS: Final = 1024

Stretch = tuple[int, int, int]
"""Start, end and state of a part of the volume, in bytes."""


class Export:
    """An export that is open. Thread-safe. Raises SourceError, as all its methods do."""

    def __init__(self, address: NbdAddress, contexts: Sequence[str]) -> None:
        self._address = address
        self._wanted = tuple(contexts)
        self._free = threading.Condition()
        self._closed = False
        self._all: list[Connection] = []
        self._idle: list[Connection] = []
        self._one_by_one = threading.Lock()
        self._asked = time.monotonic()
        self._peace_ends = 0.0
        with self._told():
            first = Connection(address, self._wanted)
        self._all.append(first)
        self._idle.append(first)
        self._may_open = CONNECTIONS - 1 if first.flags & Transmission.CAN_MULTI_CONN else 0
        self.size, self._block, self._most = first.size, first.block, first.most
        self.contexts = dict(first.contexts)
        """Those of the wanted contexts that there are."""

    def close(self) -> None:
        """End all connections; whoever reads gets an error."""
        with self._free:
            self._closed = True
            self._free.notify_all()  # who waits for a connection
            for connection in self._all:
                if connection in self._idle:
                    connection.close()
                else:
                    connection.shut()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, which lies within the export."""
        first, last = offset - offset % self._block, offset + len(buffer)
        end = min(-(-last // self._block) * self._block, self.size)
        piece = max(self._block, min(_PIECE, self._most) // self._block * self._block)
        exact = (first, end) == (offset, last)
        whole = buffer if exact else memoryview(bytearray(end - first))
        if self._has_time():
            with self._one_by_one, self._connection() as connection:
                connection.read(first, whole, piece, 1)
        else:
            with self._connection() as connection:
                connection.read(first, whole, piece, _AT_ONCE)
        with self._free:
            self._asked = time.monotonic()
        if not exact:
            buffer[:] = whole[offset - first : last - first]

    def _has_time(self) -> bool:
        """Whether a slow destination leaves the time to spare the guest, whose disk is used by others than us."""
        with self._free:
            now = time.monotonic()
            if now - self._asked > _PAUSE_SECONDS:
                self._peace_ends = now + _PEACE_SECONDS
            self._asked = now
            return now < self._peace_ends

    def allocation(self) -> Iterator[Stretch]:
        """What the server says of data and zeros, where zeros were said twice; the whole volume in order.

        QEMU looks at its scratch image first and at the guest's disk afterwards. What the guest discards between the
        two looks passes for zeros once. It is in the scratch image then, where the second question finds it.
        """
        for start, end, state in self.stretches(ALLOCATION_CONTEXT):
            if state & Allocation.ZERO:
                yield from self.stretches(ALLOCATION_CONTEXT, start, end)
            else:
                yield start, end, state

    def stretches(self, context: str, start: int = 0, stop: int | None = None) -> Iterator[Stretch]:
        """What the server says of the volume, or of a part, in one of the contexts, in order and without a gap."""
        number, offset, answers = self.contexts[context], start, 0
        stop = self.size if stop is None else stop
        while offset < stop:
            answers += 1
            if answers > _MOST_ANSWERS + self.size // _LEAST_ADVANCE:
                raise self._error("it describes blocks without coming to an end")
            length = min(stop - offset, _STATUS)
            with self._connection() as connection:
                said = connection.status(offset, length).get(number)
            if not said:
                raise self._error("it says nothing about some blocks")
            for stretch, state in said:
                end = min(offset + stretch, stop)
                if end > offset:
                    yield offset, end, state
                offset = end

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        connection, sound = self._taken(), False
        try:
            with self._told():
                yield connection
            sound = True
        finally:
            with self._free:
                # One that failed half-way is out of step with its server: it is not used again.
                if sound:
                    self._idle.append(connection)
                else:
                    self._all.remove(connection)
                    connection.shut()
                    connection.close()
                self._free.notify()

    def _taken(self) -> Connection:
        """A connection that nobody uses, or a new one."""
        with self._free:
            while True:
                if self._closed:
                    raise self._error("the export is closed")
                if self._idle:
                    return self._idle.pop()
                if self._may_open > 0:
                    self._may_open -= 1
                    break
                if not self._all:
                    raise self._error("the connection failed before")
                self._free.wait()
        try:
            return self._joined(Connection(self._address, self._wanted, _NEXT_SECONDS))
        except ServerError:
            with self._free:
                self._may_open = 0
            return self._taken()

    def _joined(self, connection: Connection) -> Connection:
        with self._free:
            same = (connection.size, connection.block, connection.contexts) == (self.size, self._block, self.contexts)
            if self._closed or not same:
                connection.close()
                raise self._error("the export changed while it was read" if not self._closed else "it is closed")
            self._all.append(connection)
        return connection

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except ServerError as reason:
            raise self._error(str(reason)) from reason

    def _error(self, what: str) -> SourceError:
        place = self._address.text
        return SourceError(f"{place}: {what}", obj=place)
