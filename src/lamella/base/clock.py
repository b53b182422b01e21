"""The only home of wall time. Everything else is handed a `Clock`, so that tests can choose the moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Clock = Callable[[], int]
"""Returns milliseconds since 1970-01-01 UTC, as `now_ms` does."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
END_OF_TIME_MS = 253_402_300_799_999
"""The last millisecond of the year 9999."""


def now_ms() -> int:
    """Return the wall time in milliseconds since 1970-01-01 UTC; may jump in both directions."""
    return time.time_ns() // 1_000_000


def local_now() -> datetime:
    """Return the wall time in this machine's zone."""
    return datetime.now().astimezone()


def both_clocks() -> tuple[float, float]:
    """Seconds since the machine was started, sleep included, and since 1970: for `seconds_since`."""
    return time.clock_gettime(time.CLOCK_BOOTTIME), time.clock_gettime(time.CLOCK_REALTIME)


def seconds_since(before: tuple[float, float], now: tuple[float, float]) -> float:
    """The larger of both clocks' differences; without end if one of them went back."""
    differences = [later - earlier for later, earlier in zip(now, before, strict=True)]
    return float("inf") if min(differences) < 0 else max(differences)


def utc_text(ms: int) -> str:
    """Return a moment as used in names: `20261122T184501Z`, fractions cut off; at the latest the end of year 9999."""
    return moment_of(ms).strftime("%Y%m%dT%H%M%SZ")


def iso(ms: int) -> str:
    """Return a moment as ISO 8601 in UTC: `2026-11-22T18:45:01.123Z`; at the latest the end of year 9999."""
    return moment_of(ms).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def moment_of(ms: int) -> datetime:
    """Return a moment in UTC. A record may claim any: what no calendar has is 1970, or the end of year 9999."""
    return _EPOCH + timedelta(milliseconds=min(max(ms, 0), END_OF_TIME_MS))
