"""A limit for the bytes that go to and come from a store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from lamella.base.trust import Clear, Sealed
from lamella.stores.base import Entry, Store
from lamella.stores.wrap.wrapper import Wrapper

BURST_SECONDS = 1.0
PIECE = 1 << 20
"""Reads of more than this are made piece by piece, so that the limit holds within them, too."""
LISTED_BYTES = 150
"""The approximate cost of one listed object on the line."""


class TokenBucket:
    """Lets through `bytes_per_second` on the average, and at most one second's worth at once. Thread-safe.

    A call books its bytes at once and returns how long the caller has to wait for them: callers queue in the order of
    their bookings, and nobody who waits holds the lock. `clock` gives seconds and never goes back.

    The rate may be asked for at each booking: a callable returns it, or None for no limit now.
    """

    def __init__(
        self, bytes_per_second: int | Callable[[], int | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not callable(bytes_per_second) and bytes_per_second < 1:
            raise ValueError(f"not a rate: {bytes_per_second} bytes a second")
        self._rate = bytes_per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock() - BURST_SECONDS
        """When everything booked so far has gone through."""

    def book(self, count: int) -> float:
        """Book `count` bytes; return the seconds to wait before they may be sent, or more may be asked for."""
        with self._lock:
            now = self._clock()
            begin = max(self._free_at, now - BURST_SECONDS)
            rate = self._rate() if callable(self._rate) else self._rate
            self._free_at = begin if rate is None else begin + count / rate
            return max(0.0, self._free_at - now)


class LimitedStore(Wrapper):
    """A store whose puts, gets and listings together move at most so many bytes a second, whatever their threads.

    A put waits before it sends, because its bytes then travel at the speed of the line. A get waits after each
    mebibyte; a get of a whole object waits at its end, because asking for the size would cost a request each time.
    """

    def __init__(self, inner: Store, bucket: TokenBucket, *, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(inner)
        self._bucket = bucket
        self._sleep = sleep

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store an object, when its turn has come."""
        self._spend(len(content))
        self._inner.put(name, content)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly the bytes asked for, in pieces where `length` is given."""
        if length is None or length <= PIECE:
            return self._got(name, offset, length)
        starts = range(offset, offset + length, PIECE)
        return b"".join(self._got(name, start, min(PIECE, offset + length - start)) for start in starts)

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`; each counts as some bytes."""
        for entry in self._inner.list(prefix):
            self._spend(LISTED_BYTES)
            yield entry

    def _got(self, name: str, offset: int, length: int | None) -> bytes:
        content = self._inner.get(name, offset, length)
        self._spend(len(content))
        return content

    def _spend(self, count: int) -> None:
        seconds = self._bucket.book(count)
        if seconds > 0:
            self._sleep(seconds)
