"""Work beside the main thread, in no order: what both ends of a pipe do. Only this and `pipeline` start threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


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
        self._start(call)

    def offer(self, call: Callable[[], object]) -> bool:
        """Queue a call only if there is room for it at once; whether there was."""
        if not self._room.acquire(blocking=False):
            return False
        self._start(call)
        return True

    def _start(self, call: Callable[[], object]) -> None:
        try:
            self._pool.submit(call).add_done_callback(lambda _: self._room.release())
        except BaseException:
            self._room.release()
            raise

    def close(self) -> None:
        """Wait until every call was made."""
        self._pool.shutdown(wait=True)


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
