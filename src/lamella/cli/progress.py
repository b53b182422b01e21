"""The progress bar: one line at the bottom of a terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from threading import Lock
from typing import TextIO

from lamella.base.events import Progress
from lamella.cli.output import INTERVAL_SECONDS
from lamella.cli.shown import shown, shown_bytes, shown_seconds

_SETTLED_SECONDS = 1.0


class Tally:
    """The progress of all volumes of one stage together."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._stage = ""
        self._began = now()
        self._volumes: dict[str, tuple[int, int]] = {}
        self.expected: dict[str, int] = {}
        """Bytes known beforehand for a stage: what the volumes not yet begun will add."""

    def add(self, event: Progress) -> tuple[int, int, float]:
        """Take an event in. Returns bytes done, bytes in all (0: unknown) and seconds, of the event's stage."""
        if event.stage != self._stage:
            self._stage, self._began, self._volumes = event.stage, self._now(), {}
        self._volumes[event.volume] = (event.done_bytes, event.total_bytes)
        done = sum(row[0] for row in self._volumes.values())
        total = max(self.expected.get(event.stage, 0), sum(row[1] for row in self._volumes.values()))
        return done, total, self._now() - self._began


class Bar:
    """Draws a tally on a terminal, at most ten times a second; may be called from several threads."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self.tally = Tally(now)
        self._stream = stream
        self._now = now
        self._next = 0.0
        self._drawn = False
        self._lock = Lock()

    def update(self, event: Progress) -> None:
        """Draw the event, unless the last drawing was a moment ago."""
        with self._lock:
            figures = self.tally.add(event)
            if self._now() >= self._next:
                self._next = self._now() + INTERVAL_SECONDS
                self._write("\r" + line(event, *figures)[: self._width() - 1] + "\x1b[K")
                self._drawn = True

    def clear(self) -> None:
        """Remove the line, so that something else can be printed."""
        with self._lock:
            if self._drawn:
                self._write("\r\x1b[K")
                self._drawn = False

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:
            return 80

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # a terminal that went away must not end the work
            pass


def line(event: Progress, done: int, total: int, spent_seconds: float) -> str:
    """The text of the bar; a narrow terminal cuts off its end, so the least important part comes last."""
    parts = [f"{event.stage} {shown(event.volume)}"]
    if total:
        parts.append(f"{min(100.0, done * 100 / total):5.1f} %  {shown_bytes(done)} of {shown_bytes(total)}")
    else:
        parts.append(shown_bytes(done))
    if spent_seconds >= _SETTLED_SECONDS and done:
        parts.append(f"{shown_bytes(done / spent_seconds)}/s")
        if total > done:
            parts.append(f"{shown_seconds(spent_seconds * (total - done) / done)} left")
    if event.stored_bytes:
        parts.append(f"stored {shown_bytes(event.stored_bytes)}")
    return "  ".join(parts)
