"""The only user of subprocess: argument lists without a shell, C locale, a deadline, and bounded output.

`run` and `stream` kill the program when their caller leaves early; `run_unbroken` never kills it.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO

from lamella.base.errors import LamellaError, UsageError, printable
from lamella.run.private import is_secret

MAX_OUTPUT = 1 << 20
"""Bytes of standard output accepted when the caller names no other bound."""

_MAX_STDERR = 4096
_PIECE = 1 << 16
_GRACE_SECONDS = 30.0
_PIPE_BYTES = 1 << 20
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
"""Signals by which this process may be asked to end; the last by itself, a moment after one of the others."""


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
    exchange = _started(argv, input or b"", timeout_seconds, max_output, error)
    name = printable(argv[0])
    try:
        status = exchange.run_to_end()
    except subprocess.TimeoutExpired as reason:
        raise error(f"{name} did not end within {timeout_seconds:g} s", obj=name) from reason
    except _TooMuch as reason:
        raise error(f"{name} wrote more than {max_output} bytes", obj=name) from reason
    finally:
        exchange.close()
    _refuse_failure(name, status, bytes(exchange.stderr), error)
    return bytes(exchange.stdout)


def stream(
    argv: Sequence[str], *, timeout_seconds: float, error: type[LamellaError] = LamellaError
) -> Generator[bytes]:
    """Run a program and yield its standard output piece by piece, however much it is.

    Like `run` otherwise: raises `error` for the same reasons, a failure after the last piece. What was yielded before
    may be incomplete then.
    """
    exchange = _started(argv, b"", timeout_seconds, _PIECE, error)
    name = printable(argv[0])
    try:
        yield from exchange.pieces()
        status = exchange.ended()
    except subprocess.TimeoutExpired as reason:
        raise error(f"{name} did not end within {timeout_seconds:g} s", obj=name) from reason
    finally:
        exchange.close()
    _refuse_failure(name, status, bytes(exchange.stderr), error)


def run_unbroken(argv: Sequence[str], *, timeout_seconds: float, error: type[LamellaError] = LamellaError) -> None:
    """Run a program that must not be interrupted, such as one that holds devices suspended while it works.

    It is never killed, and it survives the death of this process: its output goes to an unnamed file. Signals that ask
    this process to end take effect when the program has ended. At the deadline it gets SIGTERM; if it does not stop, it
    is left running. Raises `error` then, and like `run`.
    """
    name = printable(argv[0])
    with signals_later(), tempfile.TemporaryFile() as said:
        program = _popen(argv, error, subprocess.DEVNULL, said.fileno(), said.fileno())
        status = _waited_for(program, timeout_seconds)
        said.seek(0)
        text = said.read(_MAX_STDERR)
    if status is None:
        raise error(f"{name} did not end within {timeout_seconds:g} s and is left running", obj=name)
    _refuse_failure(name, status, text, error)


def _waited_for(program: subprocess.Popen[bytes], timeout_seconds: float) -> int | None:
    """The exit status; None if it did not end, not even when asked to."""
    try:
        return program.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        program.terminate()
    try:
        return program.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        return None


@contextmanager
def signals_later() -> Iterator[None]:
    """Delay signals that ask this process to end until the block is left.

    Masking them would not do: the program would inherit the mask. Only the main thread receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in _ENDING}
    taken = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in taken:
        signal.signal(number, lambda found, _: came.append(found))
    try:
        yield
    finally:
        for number, old in taken.items():
            signal.signal(number, old)
        if came:
            signal.raise_signal(came[0])


def _started(
    argv: Sequence[str], input: bytes, timeout_seconds: float, max_output: int, error: type[LamellaError]
) -> _Exchange:
    stdin = subprocess.PIPE if input else subprocess.DEVNULL
    program = _popen(argv, error, stdin, subprocess.PIPE, subprocess.PIPE)
    return _Exchange(program, input, time.monotonic() + timeout_seconds, max_output)


def _popen(
    argv: Sequence[str], error: type[LamellaError], stdin: int, stdout: int, stderr: int, *, terminal: bool = False
) -> subprocess.Popen[bytes]:
    if not argv:
        raise error("no program to run")
    name = printable(argv[0])
    try:
        return subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=_environment(),
            start_new_session=not terminal,
            preexec_fn=_ignore_interrupts if terminal else None,
            bufsize=0,
        )
    except (OSError, ValueError) as reason:
        raise error(f"cannot run {name}: {_reason(reason)}", obj=name) from reason


def _refuse_failure(name: str, status: int, text: bytes, error: type[LamellaError]) -> None:
    if status:
        said = printable(text.decode("utf-8", "replace"))
        raise error(f"{name} {exit_words(status)}" + (f": {said}" if said else ""), obj=name)


def exit_words(status: int) -> str:
    """The end of a program that did not succeed, in words."""
    return f"ended with status {status}" if status > 0 else f"was ended by signal {-status}"


class Child:
    """A program that runs beside this one and is spoken to through pipes, until `end`.

    With `terminal` it stays on the terminal of this process, so that it can ask a person for a password; Ctrl-C is then
    not for it: its owner decides when it ends. Raises `error` when it cannot be started.
    """

    def __init__(
        self, argv: Sequence[str], *, terminal: bool = False, error: type[LamellaError] = LamellaError
    ) -> None:
        self.name = printable(argv[0])
        self._program = _popen(argv, error, subprocess.PIPE, subprocess.PIPE, subprocess.PIPE, terminal=terminal)
        self.pid, self._stderr = self._program.pid, bytearray()
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
        return printable(self._stderr.decode("utf-8", "replace"))

    def terminate(self) -> None:
        """Ask it to end."""
        self._program.terminate()

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
        for _ in self._rounds():
            if len(self.stdout) > self.max_output:
                raise _TooMuch
        return self.ended()

    def pieces(self) -> Iterator[bytes]:
        """Yield standard output as it comes, and forget it. Raises subprocess.TimeoutExpired."""
        for _ in self._rounds():
            if self.stdout:
                piece = bytes(self.stdout)
                self.stdout.clear()
                yield piece

    def ended(self) -> int:
        """Wait for the exit status. Raises subprocess.TimeoutExpired."""
        return self.program.wait(self._seconds_left())

    def _rounds(self) -> Iterator[None]:
        """Feed and drain until all pipes are closed; yields after each pipe that was served."""
        with selectors.DefaultSelector() as waiting:
            for pipe, event in self._pipes():
                os.set_blocking(pipe.fileno(), False)
                waiting.register(pipe, event)
            while waiting.get_map():
                for key, _ in waiting.select(self._seconds_left()):
                    self._serve(waiting, key)
                    yield

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
        return not piece


def _environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not is_secret(name)}
    return inherited | {"LC_ALL": "C"}


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
