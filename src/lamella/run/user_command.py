"""A command as its user typed it, whose output is read as it comes."""

from __future__ import annotations

import os
import select
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from lamella.base.errors import LamellaError
from lamella.run.spawn import Child, exit_words

if TYPE_CHECKING:
    from typing import Self

# The guard waits for the end of the pipe that only this process holds open, however this process ends, and then kills
# the command with everything that it started. The shell must say of each part of a pipe whether the part failed: a dump
# that broke off before `| gzip` would look whole otherwise. The command gets the user's own locale again.
_GUARDED: Final = """
exec 3<&0 </dev/null
{ read -r _; kill -KILL -$$; } <&3 3<&- >/dev/null 2>&1 &
exec 3<&-
if [ -n "$3" ]; then export LC_ALL="$3"; else unset LC_ALL; fi
exec "$1" -o pipefail -c "$2"
"""
_LOOK_SECONDS: Final = 0.2
_END_SECONDS: Final = 10.0


def fill(fd: int, buffer: memoryview, wait: Callable[[], None] = lambda: None) -> int:
    """Read from a descriptor that cannot seek until `buffer` is full or there is no more; returns the bytes read.

    `wait` is called before each read. Raises OSError.
    """
    done = 0
    while done < len(buffer):
        wait()
        try:
            count = os.readv(fd, [buffer[done:]])
        except BlockingIOError:  # whoever gave us the descriptor does not wait
            select.select([fd], [], [])
            continue
        if not count:
            break
        done += count
    return done


class UserCommand:
    """A running shell command: `bash`, or where there is none `sh`, with `pipefail`.

    The command has a session of its own, no terminal, and nothing on standard input. Used as a context manager: at the
    end the command and everything in its process group are killed, and so they are if this process is killed.
    """

    def __init__(self, command: str, locale: str, error: type[LamellaError]) -> None:
        """Start the command with this LC_ALL, or with none. Raises `error`."""
        self._error = error
        shell = shutil.which("bash") or "sh"
        words = ["sh", "-c", _GUARDED, "sh", shell, command, locale]
        self._child = Child(words, error=error)
        self._poll = select.poll()
        self._poll.register(self._child.stdout)
        self._poll.register(self._child.stderr, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.end(_END_SECONDS)

    def read(self, buffer: memoryview) -> int:
        """Fill `buffer` with what the command writes next; less only at the end. Raises OSError."""
        return fill(self._child.stdout, buffer, self._wait)

    def _wait(self) -> None:
        """Wait for output; meanwhile the command must not be stuck with what it says on standard error."""
        while True:
            ready = [fd for fd, _ in self._poll.poll()]
            if self._child.stderr in ready and not self._child.drain_stderr():
                self._poll.unregister(self._child.stderr)
            if self._child.stdout in ready:
                return

    def finish(self) -> None:
        """Wait for the end of the command. Raises `error` unless it succeeded."""
        while (status := self._child.wait(_LOOK_SECONDS)) is None:
            self._child.drain_stderr()
        self._child.drain_stderr()
        if status:
            said = self._child.said()
            raise self._error(f"the command {exit_words(status)}" + (f": {said}" if said else ""))
