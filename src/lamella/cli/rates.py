"""Rates by the time of day: `1M@08:00-18:00,20M` is 1 MiB a second by day, and 20 at night."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, time

from lamella.base.clock import local_now
from lamella.cli.values import rate

_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True, slots=True)
class RateWindow:
    """A rate in bytes a second from `begin` until before `end`, local time, over midnight if `end` is earlier.

    Always, if both are the same.
    """

    bytes_per_second: int
    begin: time = time()
    end: time = time()

    def holds(self, now: time) -> bool:
        """Whether the window is open."""
        if self.begin < self.end:
            return self.begin <= now < self.end
        return now >= self.begin or now < self.end


@dataclass(frozen=True, slots=True)
class Rates:
    """Windows, of which the first that is open counts; without one there is no limit. `text` has them as written."""

    text: str
    windows: tuple[RateWindow, ...]

    def now(self, clock: Callable[[], datetime] = local_now) -> int | None:
        """The limit of this moment in bytes a second; None if there is none."""
        now = clock().time()
        return next((one.bytes_per_second for one in self.windows if one.holds(now)), None)

    def __str__(self) -> str:
        return self.text


def read_rates(text: str) -> int | Rates:
    """A rate, or rates by the time of day. Raises ArgumentTypeError."""
    if "@" not in text and "," not in text:
        return rate(text)
    return Rates(text, tuple(_window(one.strip()) for one in text.split(",")))


def _window(text: str) -> RateWindow:
    amount, at, hours = text.partition("@")
    if not at:
        return RateWindow(rate(amount))
    match = _WINDOW.fullmatch(hours.strip())
    if match is None or match.group(1, 2) == match.group(3, 4):
        raise argparse.ArgumentTypeError(f"not a time of day: {hours!r}; write for example 1M@08:00-18:00")
    hour, minute, last_hour, last_minute = map(int, match.groups())
    return RateWindow(rate(amount), time(hour, minute), time(last_hour, last_minute))
