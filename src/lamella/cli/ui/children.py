"""Other runs of this program: questions, whose answer is awaited, and jobs, which are followed while they work."""

from __future__ import annotations

import json
import os
import selectors
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from lamella.base.errors import LamellaError
from lamella.cli.shown import shown
from lamella.run.beside import Beside
from lamella.run.spawn import Child

Row = dict[str, Any]
QUESTION_SECONDS = 120.0
_MOST_OUTPUT = 64 << 20
_MOST_LINE = 1 << 20
_MESSAGES = 200
_KEPT_JOBS = 50
_END_SECONDS = 30.0
_PIECE = 1 << 16


@dataclass
class ChildRun:
    """One `lamella` that was started: its words, what it said so far, and how it ended.

    `secret` goes to its standard input and is forgotten.
    """

    argv: Sequence[str]
    secret: str | None = None
    code: int | None = None
    """The exit code; None while it works."""
    progress: Row = field(default_factory=dict)
    """The last event that said how far it is."""
    messages: deque[str] = field(default_factory=lambda: deque(maxlen=_MESSAGES))
    error: str = ""
    output: bytearray = field(default_factory=bytearray)
    _rest: bytearray = field(default_factory=bytearray)
    _child: Child | None = None

    def pump(self, seconds: float | None = None) -> None:
        """Run it to its end, or kill it after `seconds`. What goes wrong is its error; nothing is raised."""
        try:
            child = self._child = Child(self.argv)
        except LamellaError as error:
            self.code, self.error = error.exit_code, error.message
            return
        try:
            self._feed(child)
            self._drain(child, None if seconds is None else time.monotonic() + seconds)
        finally:
            code = child.wait(_END_SECONDS)
            child.end(0.0)
            self.code = 1 if code is None else code if code >= 0 else 128 - code
            if self.code and not self.error:
                self.error = child.said() or f"ended with {self.code}"

    def stop(self) -> None:
        """Ask it to end: what it committed stays."""
        if self._child is not None and self.code is None:
            self._child.terminate()

    @property
    def document(self) -> Row:
        """What it printed with --json; empty without."""
        try:
            found = json.loads(self.output)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def lines(self) -> list[str]:
        """What it printed for people."""
        return [shown(line) for line in self.output.decode("utf-8", "replace").splitlines()]

    def _feed(self, child: Child) -> None:
        secret, self.secret = self.secret, None
        if secret is not None:
            data = os.fsencode(secret)
            try:
                os.write(child.stdin, data)  # shorter than the pipe's buffer: a request is small
            except OSError:
                self.error = "it ended before it took its passphrase"
        child.close_stdin()

    def _drain(self, child: Child, until: float | None) -> None:
        with selectors.DefaultSelector() as waiting:
            for descriptor in (child.stdout, child.stderr):
                os.set_blocking(descriptor, False)
                waiting.register(descriptor, selectors.EVENT_READ)
            while waiting.get_map():
                ready = waiting.select(1.0)
                if until is not None and time.monotonic() > until:
                    self.error = "it did not end in time"
                    child.kill()
                    return
                for key, _ in ready:
                    if not self._take(key.fd, from_stdout=key.fd == child.stdout):
                        waiting.unregister(key.fd)

    def _take(self, descriptor: int, *, from_stdout: bool) -> bool:
        piece = os.read(descriptor, _PIECE)
        if from_stdout:
            self.output += piece[: _MOST_OUTPUT - len(self.output)]
            return bool(piece)
        self._rest += piece
        *lines, rest = self._rest.split(b"\n")
        self._rest = bytearray(rest[:_MOST_LINE])
        for line in lines:
            self._event(bytes(line))
        return bool(piece)

    def _event(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            kind = event["event"]
        except (ValueError, KeyError, TypeError):
            self.messages.append(shown(line.decode("utf-8", "replace")))
            return
        if kind == "progress":
            self.progress = event
        elif kind == "error":
            self.error = shown(str(event.get("message", "")))
        elif kind in ("message", "warning"):
            self.messages.append(shown(("warning: " if kind == "warning" else "") + str(event.get("message", ""))))


@dataclass
class Job:
    """A run that goes on while pages are looked at."""

    number: int
    title: str
    run: ChildRun
    began: float
    """By the monotonic clock."""
    result: tuple[str | int, ...] = ()
    """The address of the page that shows what it found."""
    ended: float | None = None

    @property
    def state(self) -> str:
        """`works`, `done` or `failed`."""
        return "works" if self.ended is None else "failed" if self.run.code else "done"

    @property
    def share(self) -> float | None:
        """How much is done, from 0 to 1; None if nobody knows."""
        done, total = self.run.progress.get("done_bytes"), self.run.progress.get("total_bytes")
        return min(1.0, done / total) if isinstance(done, int) and isinstance(total, int) and total > 0 else None


class Jobs:
    """The jobs of this server, newest last; the oldest that ended are forgotten."""

    def __init__(self, ended: Callable[[Job], None]) -> None:
        self._ended = ended
        self._lock = Lock()
        self._jobs: dict[int, Job] = {}
        self._last = 0

    def start(self, title: str, run: ChildRun, result: tuple[str | int, ...] = ()) -> Job:
        """Start it beside."""
        with self._lock:
            self._last += 1
            job = self._jobs[self._last] = Job(self._last, title, run, time.monotonic(), result)
            ended = [number for number, one in self._jobs.items() if one.ended is not None]
            for number in ended[: max(0, len(self._jobs) - _KEPT_JOBS)]:
                del self._jobs[number]

        def work() -> None:
            try:
                run.pump()
            finally:
                job.ended = time.monotonic()
                self._ended(job)

        Beside(work, f"lamella-job-{job.number}")
        return job

    def all(self) -> list[Job]:
        """The newest first."""
        with self._lock:
            return list(self._jobs.values())[::-1]

    def of(self, number: int) -> Job | None:
        """One of them."""
        with self._lock:
            return self._jobs.get(number)

    def end(self) -> int:
        """Ask those that still work to end, and wait for them; how many there were."""
        working = [job for job in self.all() if job.ended is None]
        for job in working:
            job.run.stop()
        until = time.monotonic() + _END_SECONDS
        while any(job.ended is None for job in working) and time.monotonic() < until:
            time.sleep(0.05)
        return len(working)
