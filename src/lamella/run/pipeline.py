"""Ordered, bounded work over threads; with `beside` the only user of threads.

Worker threads take whole ranges and do every stage of the work themselves; the libraries that do the work (hashing,
zstd, AES, system calls) let go of the interpreter lock, so threads are enough (measured: docs/decisions).
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from typing import Self

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_workers() -> int:
    """As many workers as this process may use processors."""
    return max(1, len(os.sched_getaffinity(0)))


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int = 2
) -> Generator[Result, None, None]:
    """Yield `function(item)` for each item, in order, computed by `workers` threads at most `ahead` rounds in advance.

    The first error ends the iteration and is raised here; nothing keeps running behind a closed iterator.
    """
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="lamella")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= workers * ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Outbox:
    """Uploads that go on beside the workers, at most `depth` at a time; a full outbox makes the sender wait.

    With `room`, several are only on their way together if they have no more bytes than that.

    Each upload on its way holds a pack in memory. On a local disk a second one gains nothing (measured).

    An upload that fails is raised by the next `submit` or by `drain`, and by every later one: nothing may be believed
    stored then.
    """

    def __init__(self, depth: int = 1, room: int | None = None) -> None:
        self._pool = ThreadPoolExecutor(depth, thread_name_prefix="lamella-put")
        self._pending: deque[tuple[Future[None], int]] = deque()
        self._depth = depth
        self._room = room
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    def submit(self, upload: Callable[[], None], size: int = 0) -> None:
        """Start an upload of so many bytes, waiting first while too many of them are unfinished."""
        with self._lock:
            while self._pending and (self._is_full(size) or self._pending[0][0].done()):
                self._wait_for_oldest()
            self._check()
            self._pending.append((self._pool.submit(upload), size))

    def _is_full(self, size: int) -> bool:
        held = sum(pending for _, pending in self._pending)
        return len(self._pending) >= self._depth or (self._room is not None and held + size > self._room)

    def drain(self) -> None:
        """Wait for every upload; raise the first error there was."""
        self.wait()
        with self._lock:
            self._check()

    def wait(self) -> None:
        """Wait for every upload, failed or not."""
        with self._lock:
            while self._pending:
                self._wait_for_oldest()

    def _wait_for_oldest(self) -> None:
        # Only then is it taken away: a wait that Ctrl-C breaks off must not make the upload forgotten.
        error = self._pending[0][0].exception()
        self._pending.popleft()
        if error is not None and self._error is None:
            self._error = error

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
