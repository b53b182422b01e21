"""Progress as people and programs see it: a line at the bottom of a terminal, or JSON objects."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, TextIO

from lamella.base.events import Progress
from lamella.cli.shown import shown, shown_bytes, shown_seconds

if TYPE_CHECKING:
    from lamella.cli.output import Output

INTERVAL_SECONDS = 0.1
"""Between two reports of progress."""
_SETTLED_SECONDS = 1.0
_STAGES = {"packs": "verify packs", "mark": "finding what is needed", "rewrite": "moving what is needed"}
"""Stages whose names say nothing to people."""


def progress_of(out: Output) -> Bar | ProgressLines:
    """The display of a command's progress, in the form that its options ask for."""
    return ProgressLines(out) if out.as_events else Bar(sys.stderr, rounds=out.rounds)


class Standing(NamedTuple):
    """The progress of all volumes of a stage together."""

    done: int
    total: int
    """Bytes in all; 0 means unknown."""
    seconds: float
    number: int = 1
    """Which volume it is: 1 is the first."""
    volumes: int = 1


class Tally:
    """The progress of all volumes of one stage together, which goes through them `rounds` times."""

    def __init__(self, now: Callable[[], float] = time.monotonic, rounds: int = 1) -> None:
        self._now = now
        self._rounds = rounds
        self._round = 0
        self._stage = ""
        self._began = now()
        self._volumes: dict[str, tuple[int, int]] = {}

    def add(self, event: Progress) -> Standing:
        """Take an event in."""
        if event.stage != self._stage:
            self._stage, self._began, self._volumes, self._round = event.stage, self._now(), {}, 0
        before = self._volumes.get(event.volume, (0, 0))
        if event.done_bytes < before[0] and self._round < self._rounds - 1:
            self._round += 1
            self._volumes = {name: (0, total) for name, (_, total) in self._volumes.items()}
        self._volumes[event.volume] = (event.done_bytes, event.total_bytes)
        one, count = sum(row[1] for row in self._volumes.values()), len(self._volumes)
        done = sum(row[0] for row in self._volumes.values()) + self._round * one
        number = list(self._volumes).index(event.volume) + 1 + self._round * count
        return Standing(done, one * self._rounds, self._now() - self._began, number, count * self._rounds)


class Bar:
    """Draws a tally on a terminal, at most ten times a second; may be called from several threads."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic, rounds: int = 1) -> None:
        self._tally = Tally(now, rounds)
        self._stream = stream
        self._now = now
        self._next = 0.0
        self._drawn = False
        self._lock = Lock()

    def update(self, event: Progress) -> None:
        """Draw the event, unless the last drawing was a moment ago."""
        with self._lock:
            standing = self._tally.add(event)
            # Nothing done: a volume of which the sum does not know yet may follow.
            if event.done_bytes and self._now() >= self._next:
                self._next = self._now() + INTERVAL_SECONDS
                self._write("\r" + line(event, standing)[: self._width() - 1] + "\x1b[K")
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


def line(event: Progress, all_volumes: Standing) -> str:
    """The text of the bar; a narrow terminal cuts off its end, so the least important part comes last."""
    done, total, seconds, number, volumes = all_volumes
    of = f" ({number} of {volumes})" if volumes > 1 else ""
    parts = [f"{_STAGES.get(event.stage, event.stage)} {shown(event.volume)}{of}".strip()]
    if total:
        parts.append(f"{min(100.0, done * 100 / total):5.1f} %  {shown_bytes(done)} of {shown_bytes(total)}")
    else:
        parts.append(shown_bytes(done))
    if seconds >= _SETTLED_SECONDS and done:
        if total > done:
            parts.append(f"{shown_seconds(seconds * (total - done) / done)} left")
        parts.append(f"{shown_bytes(done / seconds)}/s")
    if event.stored_bytes:
        parts.append(f"stored {shown_bytes(event.stored_bytes)}")
    return "  ".join(parts)


class ProgressLines:
    """Progress as JSON objects, for each volume at most ten times a second."""

    def __init__(self, out: Output, now: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._now = now
        self._next: dict[str, float] = {}

    def update(self, event: Progress) -> None:
        """Tell of an event, unless the last one of the volume was a moment ago."""
        now, key = self._now(), f"{event.stage} {event.volume}"
        if now < self._next.get(key, 0.0) and event.done_bytes != event.total_bytes:
            return
        self._next[key] = now + INTERVAL_SECONDS
        figures = {"done_bytes": event.done_bytes, "total_bytes": event.total_bytes, "stored_bytes": event.stored_bytes}
        self._out.event("progress", {"stage": event.stage, "volume": event.volume, **figures})

    def clear(self) -> None:
        """Nothing is drawn."""
