"""The only user of subprocess: argument lists without a shell, C locale, a deadline, and bounded output."""

from __future__ import annotations

import fcntl
import os
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from lamella.errors import LamellaError, UsageError

MAX_OUTPUT = 1 << 20
"""Bytes of standard output accepted when the caller names no other bound."""

_MAX_STDERR = 4096
_PIECE = 1 << 16
_SECRETS = frozenset({"LAMELLA_PASSPHRASE", "LAMELLA_TO_PASSPHRASE"})
_PIPE_BYTES = 1 << 20


def run(
    argv: Sequence[str],
    *,
    input: bytes | None = None,
    timeout_seconds: float,
    max_output: int = MAX_OUTPUT,
    error: type[LamellaError] = LamellaError,
) -> bytes:
    """Run a program to its end and return its standard output.

    `input` is its standard input (none: empty). It runs in a session of its own, without a terminal; when it fails
    to end in time, or writes more than `max_output` bytes, its whole process group is killed. Raises `error` then, and
    when it cannot be started or ends with a status other than 0; the message holds what it wrote to standard error.
    """
    if not argv:
        raise error("no program to run")
    name = _printable(argv[0])
    try:
        program = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE if input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            start_new_session=True,
            bufsize=0,
        )
    except (OSError, ValueError) as reason:
        raise error(f"cannot run {name}: {_reason(reason)}", obj=name) from reason
    exchange = _Exchange(program, input or b"", time.monotonic() + timeout_seconds, max_output)
    try:
        status = exchange.run_to_end()
    except subprocess.TimeoutExpired as reason:
        raise error(f"{name} did not end within {timeout_seconds:g} s", obj=name) from reason
    except _TooMuch as reason:
        raise error(f"{name} wrote more than {max_output} bytes", obj=name) from reason
    finally:
        exchange.close()
    if status:
        how = f"ended with status {status}" if status > 0 else f"was ended by signal {-status}"
        said = _printable(exchange.stderr.decode("utf-8", "replace"))
        raise error(f"{name} {how}" + (f": {said}" if said else ""), obj=name)
    return bytes(exchange.stdout)


class Child:
    """A program that runs beside this one and is spoken to through pipes, until `end`.

    With `terminal` it stays on the terminal of this process, so that it can ask a person for a password; Ctrl-C is then
    not for it: whoever started it decides when it ends. Raises `error` when it cannot be started.
    """

    def __init__(
        self, argv: Sequence[str], *, terminal: bool = False, error: type[LamellaError] = LamellaError
    ) -> None:
        self.name = _printable(argv[0])
        self._stderr = bytearray()
        try:
            self._program = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(),
                start_new_session=not terminal,
                preexec_fn=_ignore_interrupts if terminal else None,
                bufsize=0,
            )
        except (OSError, ValueError) as reason:
            raise error(f"cannot run {self.name}: {_reason(reason)}", obj=self.name) from reason
        stdin, stdout, stderr = self._pipes()
        self.stdin, self.stdout, self.stderr = stdin.fileno(), stdout.fileno(), stderr.fileno()
        os.set_blocking(self.stderr, False)
        for descriptor in (self.stdin, self.stdout):
            with suppress(OSError):  # a larger pipe is faster, and nothing depends on it
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def _pipes(self) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
        program = self._program
        assert program.stdin is not None and program.stdout is not None and program.stderr is not None
        return program.stdin, program.stdout, program.stderr

    def drain_stderr(self) -> bool:
        """Take what it has written to standard error; False once that is closed."""
        try:
            while piece := os.read(self.stderr, _PIECE):
                self._stderr += piece
                del self._stderr[:-_MAX_STDERR]
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def said(self) -> str:
        """The end of what it wrote to standard error, as one printable line."""
        return _printable(self._stderr.decode("utf-8", "replace"))

    def kill(self) -> None:
        """Kill it; its pipes end by that."""
        self._program.kill()

    def wait(self, seconds: float) -> int | None:
        """Its exit status (negative: the signal that ended it), None if it has not ended in time."""
        try:
            return self._program.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def close_stdin(self) -> None:
        """Tell it that nothing more will come."""
        with suppress(OSError):
            self._pipes()[0].close()

    def end(self, seconds: float) -> int | None:
        """Close its input, give it time to end by itself, kill it otherwise. The exit status it had by itself."""
        self.close_stdin()
        status = self.wait(seconds)
        if status is None:
            self.kill()
            self._program.wait()
        self.drain_stderr()
        for pipe in self._pipes():
            with suppress(OSError):
                pipe.close()
        return status


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def shell_words(text: str) -> list[str]:
    """Split a command line into words by the quoting rules of a shell, expanding nothing. Raises UsageError."""
    try:
        words = shlex.split(text)
    except ValueError as reason:
        raise UsageError(f"cannot split the command into words: {reason}") from reason
    if not words:
        raise UsageError("the command is empty")
    return words


class _TooMuch(Exception):
    """The program wrote more than was allowed."""


@dataclass
class _Exchange:
    """Feeds and drains one running program with a single thread, so that no pipe can block another."""

    program: subprocess.Popen[bytes]
    to_write: bytes
    deadline: float
    max_output: int
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)

    def run_to_end(self) -> int:
        """Return the exit status. Raises subprocess.TimeoutExpired and _TooMuch, the program still running."""
        with selectors.DefaultSelector() as waiting:
            for pipe, event in self._pipes():
                os.set_blocking(pipe.fileno(), False)
                waiting.register(pipe, event)
            while waiting.get_map():
                for key, _ in waiting.select(self._seconds_left()):
                    self._serve(waiting, key)
        return self.program.wait(self._seconds_left())

    def close(self) -> None:
        """Kill what still runs and release the pipes."""
        # The group is signalled only while its leader has not been waited for: until then its number cannot be reused.
        if self.program.returncode is None:
            os.killpg(self.program.pid, signal.SIGKILL)
            self.program.wait()
        for pipe, _ in self._pipes():
            pipe.close()

    def _pipes(self) -> list[tuple[IO[bytes], int]]:
        found = (
            (self.program.stdin, selectors.EVENT_WRITE),
            (self.program.stdout, selectors.EVENT_READ),
            (self.program.stderr, selectors.EVENT_READ),
        )
        return [(pipe, event) for pipe, event in found if pipe is not None and not pipe.closed]

    def _seconds_left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise subprocess.TimeoutExpired(self.program.args, 0)
        return left

    def _serve(self, waiting: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        if key.fileobj is self.program.stdin:
            finished = self._feed(key.fd)
        else:
            finished = self._drain(key.fd, to_stdout=key.fileobj is self.program.stdout)
        if finished:
            waiting.unregister(key.fileobj)
            next(pipe for pipe, _ in self._pipes() if pipe is key.fileobj).close()

    def _feed(self, fd: int) -> bool:
        try:
            written = os.write(fd, self.to_write[:_PIECE])
        except BrokenPipeError:  # the program may decide that it has read enough
            return True
        self.to_write = self.to_write[written:]
        return not self.to_write

    def _drain(self, fd: int, *, to_stdout: bool) -> bool:
        piece = os.read(fd, _PIECE)
        if not to_stdout:
            self.stderr += piece[: _MAX_STDERR - len(self.stderr)]
            return not piece
        self.stdout += piece
        if len(self.stdout) > self.max_output:
            raise _TooMuch
        return not piece


def _environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    return inherited | {"LC_ALL": "C"}


def _printable(text: str) -> str:
    """One line that cannot move the cursor or colour a terminal."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text).strip()


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
