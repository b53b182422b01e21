"""A stream socket of a client nobody trusts: every wait has an end, and nothing is kept but what was asked for."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress

STALL_SECONDS = 60.0
"""A client that has begun a message, or is being sent a reply, must move on within this time."""
_TICK = 5
"""Seconds after which a blocked call looks at the clock again."""
_BUFFER = 64 * 1024
_AT_ONCE = 512
"""Buffers handed to the kernel in one call; Linux takes 1024."""


class ClientGone(Exception):
    """The other side has closed the connection, or it broke."""


class ClientStalled(ClientGone):
    """The other side did not move on in time."""


class Channel:
    """Reads and writes whole messages. Used by one thread; `shut` may be called by any."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        # The kernel's own timeouts cost no further system call, as Python's would.
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", _TICK, 0))
        self._socket = connection
        self._buffer = bytearray(_BUFFER)
        self._start = self._end = 0

    def idle(self) -> None:
        """Wait for the next message for as long as it takes. Raises ClientGone."""
        while self._start == self._end and not self._fill():
            pass

    def take(self, length: int, until: float | None = None) -> bytes:
        """The next bytes, few of them. Raises ClientGone; ClientStalled at `until`, or without progress."""
        last = time.monotonic() if until is None else until - STALL_SECONDS
        while self._end - self._start < length:
            moved = self._fill()
            last = time.monotonic() if moved and until is None else last
            if time.monotonic() > last + STALL_SECONDS:
                raise ClientStalled
        taken = bytes(self._buffer[self._start : self._start + length])
        self._start += length
        return taken

    def take_into(self, target: memoryview) -> None:
        """Fill `target` with the next bytes. Raises ClientGone, ClientStalled."""
        at_hand = min(len(target), self._end - self._start)
        target[:at_hand] = self._buffer[self._start : self._start + at_hand]
        self._start += at_hand
        last = time.monotonic()
        while at_hand < len(target):
            received = self._receive(target[at_hand:])
            at_hand += received
            last = time.monotonic() if received else last
            if time.monotonic() > last + STALL_SECONDS:
                raise ClientStalled

    def at_hand(self) -> memoryview:
        """The bytes that were received and not taken yet, without waiting."""
        return memoryview(self._buffer)[self._start : self._end]

    def send(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send everything. Raises ClientGone; ClientStalled if the other side does not read."""
        left = [memoryview(part) for part in parts if len(part)]
        last = time.monotonic()
        while left:
            try:
                sent = self._socket.sendmsg(left[:_AT_ONCE])
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                raise ClientGone from error
            last = time.monotonic() if sent else last
            if time.monotonic() > last + STALL_SECONDS:
                raise ClientStalled
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = left[0][sent:]

    def shut(self) -> None:
        """End the connection: whoever waits for the other side raises ClientGone."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def finish(self) -> None:
        """Take nothing more from the other side; what is being sent goes on."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def _fill(self) -> bool:
        """Receive what is there into the buffer, waiting a little; whether anything came. Raises ClientGone."""
        if self._start:
            rest = self._end - self._start
            self._buffer[:rest] = self._buffer[self._start : self._end]
            self._start, self._end = 0, rest
        received = self._receive(memoryview(self._buffer)[self._end :])
        self._end += received
        return bool(received)

    def _receive(self, target: memoryview) -> int:
        try:
            received = self._socket.recv_into(target)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise ClientGone from error
        if not received:
            raise ClientGone
        return received
