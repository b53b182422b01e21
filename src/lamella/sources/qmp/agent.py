"""The guest's agent (qemu-guest-agent): the file systems of the guest are frozen for the moment, and thawed again.

A guest that stays frozen hangs. So what was asked for is written down before, and whoever comes next thaws it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from lamella.base.errors import SourceError
from lamella.sources.qmp.wire import JsonLines

SYNC_SECONDS: Final = 3.0
"""An agent that is there answers within milliseconds; a guest without one never does."""
FREEZE_SECONDS: Final = 20.0
"""Until the guest has written what it held back."""
_TRIES: Final = 3


class Agent:
    """A connection to an agent that answers. Raises SourceError if none does."""

    def __init__(self, path: str) -> None:
        self._lines = JsonLines(path, SYNC_SECONDS)
        try:
            self._sync()
        except BaseException:
            self._lines.close()
            raise

    def close(self) -> None:
        """Hang up."""
        self._lines.close()

    def do(self, command: str, seconds: float) -> Any:  # noqa: ANN401 - whatever the agent returns
        """Run a command; what the agent returns. Raises SourceError."""
        self._lines.send(json.dumps({"execute": command}).encode() + b"\n", seconds=seconds)
        answer = self._lines.message(time.monotonic() + seconds)
        if "return" not in answer:
            raise self._lines.error(f"the guest's agent refused {command}")
        return answer["return"]

    def _sync(self) -> None:
        """Skip what was said to clients before: the agent cannot tell one from another."""
        number = int.from_bytes(os.urandom(4), "big")
        asked = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        self._lines.send(b"\xff" + json.dumps(asked).encode() + b"\n", seconds=SYNC_SECONDS)
        until = time.monotonic() + SYNC_SECONDS
        while True:
            line = self._lines.line(until).rpartition(b"\xff")[2]
            with suppress(ValueError, RecursionError):
                found = json.loads(line)
                if isinstance(found, dict) and found.get("return") == number:
                    return


@contextmanager
def frozen(path: str, note: Path | None) -> Iterator[list[bool]]:
    """Keep the guest's file systems frozen while inside; the list gets True if they were frozen until the end.

    A guest whose agent does not answer is not frozen, and nothing else happens. `note` is a file that exists as long as
    the guest may be frozen.
    """
    held: list[bool] = []
    if not path:
        yield held
        return
    if note is not None and note.exists():
        thaw(path, note)
    agent = None
    with suppress(SourceError):
        agent = Agent(path)
    if agent is None:
        yield held
        return
    try:
        if note is not None:
            note.touch(0o600)
        count: object = 0
        try:
            with suppress(SourceError):
                count = agent.do("guest-fsfreeze-freeze", FREEZE_SECONDS)
            yield held
        finally:
            thawed: object = 0
            with suppress(SourceError):
                thawed = agent.do("guest-fsfreeze-thaw", FREEZE_SECONDS)
                _forget(note)
    finally:
        agent.close()
    if not thawed:
        thaw(path, note)
    # An agent thaws by itself what was frozen too long, and then thaws nothing here.
    held.append(isinstance(count, int) and isinstance(thawed, int) and 0 < count <= thawed)


def thaw(path: str, note: Path | None) -> None:
    """Thaw a guest that a killed run, or a lost answer, may have left frozen; tries again if the agent is silent."""
    for _ in range(_TRIES):
        with suppress(SourceError):
            agent = Agent(path)
            try:
                agent.do("guest-fsfreeze-thaw", FREEZE_SECONDS)
                _forget(note)
                return
            finally:
                agent.close()


def _forget(note: Path | None) -> None:
    if note is not None:
        note.unlink(missing_ok=True)
