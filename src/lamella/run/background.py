"""Going on in the background: the only user of fork, called before anything else has started a thread."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

_GRACE_SECONDS = 2


def in_background(work: Callable[[Callable[[int], None]], int]) -> int:
    """Do `work` in a process of its own; returns when that is ready, or has ended.

    `work` gets a function that it calls once it is ready, with the descriptor of the file where later messages go.
    From then on it belongs to no terminal and no session, and this call returns 0 in the process that made it. If it
    ends before that, its exit code is returned. In the new process this returns what `work` returns.
    """
    ours, theirs = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.close(theirs)
        return _until_ready(child, ours)
    os.close(ours)

    def ready(log: int) -> None:
        os.setsid()
        sys.stdout.flush()
        sys.stderr.flush()
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for source, stream in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, stream)
        os.write(theirs, b"\0")
        os.close(theirs)

    return work(ready)


def _until_ready(child: int, pipe: int) -> int:
    """0 when the child has said that it is ready; otherwise its exit code, once it has ended."""
    try:
        if os.read(pipe, 1):
            return 0
    except KeyboardInterrupt:
        # At a terminal the child has been asked to end as well, and says so.
        _end(child)
    finally:
        os.close(pipe)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 1


def _end(child: int) -> None:
    """Let it end by itself, and ask it to if it does not."""
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGTERM))
    signal.setitimer(signal.ITIMER_REAL, _GRACE_SECONDS)
    with suppress(ChildProcessError):
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    signal.setitimer(signal.ITIMER_REAL, 0)
