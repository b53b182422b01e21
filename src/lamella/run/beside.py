"""Work beside the main thread, in no order: what both ends of a pipe do, and reading ahead.

Only this and `pipeline` start threads.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress


class Crew:
    """Calls made by a few threads, in no order; at most `limit` are unfinished, a further one waits for room.

    A call reports its own outcome: what it raises is not seen.
    """

    def __init__(self, workers: int, limit: int) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="lamella-crew")
        self._room = threading.BoundedSemaphore(limit)

    def submit(self, call: Callable[[], None]) -> None:
        """Queue a call; waits while too many are unfinished."""
        self._room.acquire()
        try:
            self._pool.submit(call).add_done_callback(lambda _: self._room.release())
        except BaseException:
            self._room.release()
            raise

    def close(self) -> None:
        """Wait until every call was made."""
        self._pool.shutdown(wait=True)


class Spare:
    """A few threads for work that may be left undone: calls that are offered while there is room for them.

    No thread exists before the first call, and none keeps the process from ending. What a call raises is not seen.
    """

    def __init__(self, workers: int, limit: int, name: str) -> None:
        self._workers = workers
        self._name = name
        self._calls: queue.Queue[Callable[[], object]] = queue.Queue(limit)
        self._lock = threading.Lock()
        self._threads: list[Beside] = []
        self._closed = False

    def offer(self, call: Callable[[], object]) -> bool:
        """Queue a call if there is room for it at once; whether there was."""
        if not self._threads:
            self._start()
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            return False
        return not self._closed

    def close(self, seconds: float) -> None:
        """Make no further call; wait so long, at most, for those that are being made."""
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, []
        for _ in threads:
            with suppress(queue.Full):  # a thread that waits for a call sees the end when one comes
                self._calls.put_nowait(int)
        until = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _start(self) -> None:
        with self._lock:
            while len(self._threads) < self._workers and not self._closed:
                self._threads.append(Beside(self._work, self._name))

    def _work(self) -> None:
        while not self._closed:
            call = self._calls.get()
            if not self._closed:
                with suppress(Exception):
                    call()


class Beside:
    """One function in a thread of its own. The function must not raise."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        # A daemon: a process whose main thread is done does not wait for what a stuck peer keeps alive.
        self._thread = threading.Thread(target=work, name=name, daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Wait until it has returned; whether it has."""
        if self._thread is threading.current_thread():
            return False
        self._thread.join(seconds)
        return not self._thread.is_alive()
