"""Work on many hosts: a `lamella` of its own for each, some at a time, each with its own end.

Whatever one of them does - fails, hangs, prints rubbish, is killed - is that host's result.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lamella.cli.fleet.hosts import SCHEME, FleetHost
from lamella.cli.ui.children import ChildRun
from lamella.cli.ui.looking import program
from lamella.run.beside import Crew

AT_ONCE = 4
_USAGE = 2
_LOOK_AGAIN_SECONDS = 0.2

Command = Callable[[FleetHost], Sequence[str]]
"""The words of the command for a host, without REPO."""


@dataclass(frozen=True, slots=True)
class HostResult:
    """How the work on a host ended: `code` as the exit code of its command, `error` why, if that is not 0."""

    host: FleetHost
    code: int
    error: str
    kind: str
    document: dict[str, Any]


def each(hosts: Sequence[FleetHost], command: Command, *, at_once: int, seconds: float | None) -> Iterator[HostResult]:
    """Run `command` for each host, at most `at_once` at a time; yields the results as they come.

    A host whose file cannot be understood has that as its result. With `seconds` a run that takes longer is killed.
    Leaving early, also by Ctrl-C, asks all that run to end and waits for them: what they committed stays.
    """
    sound = [host for host in hosts if not host.problem]
    for host in hosts:
        if host.problem:
            yield HostResult(host, _USAGE, host.problem, "usage", {})
    work = _Work(command, at_once, seconds)
    try:
        work.begin(sound)
        for _ in sound:
            yield work.results.get()
    finally:
        work.end()


class _Work:
    """The runs of one `each`."""

    def __init__(self, command: Command, at_once: int, seconds: float | None) -> None:
        # Bounded, as what waits in it holds a whole answer.
        self.results: queue.Queue[HostResult] = queue.Queue(at_once)
        self._command = command
        self._at_once = at_once
        self._seconds = seconds
        self._hosts: queue.SimpleQueue[FleetHost] = queue.SimpleQueue()
        self._running: dict[str, ChildRun] = {}
        self._stopping = False
        self._working = 0
        self._crew = Crew(at_once, at_once)

    def begin(self, hosts: Sequence[FleetHost]) -> None:
        """Start the first of them; each that ends makes room for the next."""
        for host in hosts:
            self._hosts.put(host)
        self._working = min(self._at_once, len(hosts))
        for _ in range(self._working):
            self._crew.submit(self._work)

    def end(self) -> None:
        """Ask what still runs to end, and wait for it."""
        self._stopping = True
        while self._running:
            for run in tuple(self._running.values()):
                run.stop()
            time.sleep(_LOOK_AGAIN_SECONDS)
        self._crew.close()

    def _work(self) -> None:
        while not self._stopping:
            try:
                host = self._hosts.get_nowait()
            except queue.Empty:
                return
            self._put(self._result(host))

    def _result(self, host: FleetHost) -> HostResult:
        run = ChildRun([*program(), *self._command(host), "-r", f"{SCHEME}{host.name}", "--json", "--json-lines"])
        self._running[host.name] = run
        try:
            if self._stopping:
                return HostResult(host, 1, "not begun", "interrupted", {})
            run.pump(self._seconds)
            return _ended(host, run)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is this host's, and the others go on)
            return HostResult(host, 1, f"{type(error).__name__}: {error}", "failed", {})
        finally:
            del self._running[host.name]

    def _put(self, result: HostResult) -> None:
        while not self._stopping:
            with suppress(queue.Full):
                self.results.put(result, timeout=_LOOK_AGAIN_SECONDS)
                return


def _ended(host: FleetHost, run: ChildRun) -> HostResult:
    document, code = run.document, 1 if run.code is None else run.code
    failure = document.get("error")
    kind = str(failure.get("kind", "")) if isinstance(failure, dict) else ""
    if not code and not document:
        code, run.error = 1, "it gave no answer"
    return HostResult(host, code, run.error if code else "", kind, document)
