"""Telling threads that wait for a program that this process is to end: only the main thread gets the exception."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

_FIRST_SECONDS = 0.5
_ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


class Ending:
    """While this lasts, `came` says whether a signal came that ends a command.

    Only the main thread can enter it; anywhere else nothing ever comes.
    """

    def __init__(self) -> None:
        self._source, self._sink = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before: int | None = None
        self._since = float("inf")

    def came(self) -> bool:
        """Whether such a signal came, and the main thread, which tidies up, had time to hear of it first."""
        with suppress(BlockingIOError):
            if not _ENDING.isdisjoint(os.read(self._source, 4096)):
                self._since = min(self._since, time.monotonic())
        return time.monotonic() - self._since > _FIRST_SECONDS

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.set_wakeup_fd(self._sink, warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.set_wakeup_fd(self._before)
        os.close(self._sink)
        os.close(self._source)
