"""A store that fails on request: queued faults per method, each of which must come true before the test ends."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeVar

from lamella.base.trust import Clear, Sealed
from lamella.stores.base import Abilities, Entry, Store
from lamella.stores.held import Held

Method = Literal["put", "get", "stat", "list", "delete", "sync", "lock"]
T = TypeVar("T")


@dataclass(slots=True)
class _Fault:
    method: Method
    after: int
    times: int
    what: str
    error: BaseException | None = None
    reply_lost: bool = False
    spoil: Callable[[bytes], bytes] | None = None
    listed: int = 0

    def __str__(self) -> str:
        return f"{self.method}: {self.what} (skips {self.after} more calls, then {self.times} times)"


class FaultStore:
    """The store inside, with faults.

    Faults of one method form a queue: the first lets `after` calls of that method pass, strikes `times` calls, and
    gives way to the next. End a test with `assert_all_fired`.
    """

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self._queues: defaultdict[Method, deque[_Fault]] = defaultdict(deque)
        self._mutex = threading.Lock()

    def fail(self, method: Method, error: BaseException, *, times: int = 1, after: int = 0) -> None:
        """Raise `error` instead of doing the call. For `list`: at the first entry, as a listing that cannot begin."""
        self._queue(_Fault(method, after, times, f"raises {error!r}", error=error))

    def lose_reply(self, method: Method, error: BaseException, *, times: int = 1, after: int = 0) -> None:
        """Do the call, then raise `error`: the request arrived and the answer did not. Not for `list` and `lock`."""
        if method in {"list", "lock"}:
            raise ValueError(f"{method} has no reply to lose")
        self._queue(_Fault(method, after, times, f"done, then raises {error!r}", error=error, reply_lost=True))

    def flip_byte(self, position: int = 0, *, times: int = 1, after: int = 0) -> None:
        """Let `get` return wrong bytes: all bits flipped at `position` of the answer, from its end if negative."""

        def flipped(content: bytes) -> bytes:
            wrong = bytearray(content)
            wrong[position] ^= 0xFF
            return bytes(wrong)

        self._queue(_Fault("get", after, times, f"byte {position} flipped", spoil=flipped))

    def cut_short(self, keep_bytes: int, *, times: int = 1, after: int = 0) -> None:
        """Let `get` break its promise and return only the first `keep_bytes` bytes."""
        self._queue(
            _Fault("get", after, times, f"cut to {keep_bytes} bytes", spoil=lambda content: content[:keep_bytes])
        )

    def hide_listing(self, *, listed: int = 0, times: int = 1, after: int = 0) -> None:
        """Let `list` end without an error after `listed` entries, as a store that forgets objects."""
        self._queue(_Fault("list", after, times, f"ends after {listed}", listed=listed))

    def break_listing(self, error: BaseException, *, listed: int, times: int = 1, after: int = 0) -> None:
        """Let `list` raise `error` after `listed` entries."""
        self._queue(_Fault("list", after, times, f"raises {error!r} after {listed}", error=error, listed=listed))

    def assert_all_fired(self) -> None:
        """Raise AssertionError naming the faults that have not come true as often as asked."""
        with self._mutex:
            left = [str(fault) for queue in self._queues.values() for fault in queue]
        if left:
            raise AssertionError("faults that never fired: " + "; ".join(left))

    @property
    def url(self) -> str:
        """Where the store inside is."""
        return self._inner.url

    @property
    def abilities(self) -> Abilities:
        """Those of the store inside."""
        return self._inner.abilities

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store an object, or fail."""
        self._call("put", lambda: self._inner.put(name, content))

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes asked for, or others, or fewer, or fail."""
        fault = self._next("get")
        content = self._struck(fault, lambda: self._inner.get(name, offset, length))
        return fault.spoil(content) if fault and fault.spoil else content

    def stat(self, name: str) -> int:
        """Return the object's size in bytes, or fail."""
        return self._call("stat", lambda: self._inner.stat(name))

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`, or some of them, or fail."""
        fault = self._next("list")
        if fault is None:
            return self._inner.list(prefix)
        return self._spoiled_listing(prefix, fault)

    def delete(self, name: str) -> None:
        """Remove an object, or fail."""
        self._call("delete", lambda: self._inner.delete(name))

    def sync(self) -> None:
        """Make earlier writes durable, or fail."""
        self._call("sync", self._inner.sync)

    def lock(self, *, exclusive: bool, wait_seconds: float = 0.0) -> AbstractContextManager[Held | None]:
        """Hold the lock of the store inside, or fail."""
        return self._call("lock", lambda: self._inner.lock(exclusive=exclusive, wait_seconds=wait_seconds))

    def close(self) -> None:
        """Close the store inside."""
        self._inner.close()

    def _queue(self, fault: _Fault) -> None:
        if fault.times < 1 or fault.after < 0:
            raise ValueError(f"a fault that cannot happen: {fault}")
        with self._mutex:
            self._queues[fault.method].append(fault)

    def _next(self, method: Method) -> _Fault | None:
        """Count one call of `method`; return the fault that strikes it, if any."""
        with self._mutex:
            queue = self._queues[method]
            if not queue:
                return None
            fault = queue[0]
            if fault.after:
                fault.after -= 1
                return None
            fault.times -= 1
            if not fault.times:
                queue.popleft()
            return fault

    def _call(self, method: Method, call: Callable[[], T]) -> T:
        return self._struck(self._next(method), call)

    @staticmethod
    def _struck(fault: _Fault | None, call: Callable[[], T]) -> T:
        if fault is None or fault.error is None:
            return call()
        if fault.reply_lost:
            call()
        raise fault.error

    def _spoiled_listing(self, prefix: str, fault: _Fault) -> Iterator[Entry]:
        yield from islice(self._inner.list(prefix), fault.listed)
        if fault.error is not None:
            raise fault.error
