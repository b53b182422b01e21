"""Signals that end a command: they raise KeyboardInterrupt in the main thread, at a point where that breaks nothing.

The standard library's locks and futures are Python code, and an exception between two of its steps leaves a lock taken
for ever, or releases it twice: the run would hang, or report an internal error. So the exception waits until the main
thread has left that code. Only where the thread is blocked, which is a safe step, the exception is raised inside.
"""

from __future__ import annotations

import signal
from types import FrameType

_LOCKING = frozenset({"threading", "queue", "concurrent.futures._base", "concurrent.futures.thread"})
_AGAIN_SECONDS = 0.01

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MINE = (signal.SIG_DFL, signal.default_int_handler)

_seen: list[tuple[FrameType, int]] = []
"""Where the main thread was inside locking code at the last look: the frame and its instruction."""


def take() -> None:
    """Have the signals that ask a process to end raise KeyboardInterrupt. Those that are ignored stay so (nohup)."""
    for number in (*_ENDING, signal.SIGALRM):
        if signal.getsignal(number) in _MINE:
            signal.signal(number, _stop)


def leave() -> None:
    """The work is done and its result is printed: a signal may now cut the interpreter's own end short."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (*_ENDING, signal.SIGALRM):
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> None:
    place = _place_in_locking(frame)
    if place is None or place in _seen:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _seen.clear()
        raise KeyboardInterrupt
    _seen[:] = [place]
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)


def _place_in_locking(frame: FrameType | None) -> tuple[FrameType, int] | None:
    """The innermost frame and its instruction, if locking code is anywhere on the stack."""
    outer = frame
    while outer is not None and outer.f_globals.get("__name__") not in _LOCKING:
        outer = outer.f_back
    return None if frame is None or outer is None else (frame, frame.f_lasti)
