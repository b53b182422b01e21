"""How often a long run says how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """A run says how far it is after so many bytes read, or so many seconds, whichever comes first.

    When it is stopped it says so once more, if it has read at least `least_bytes` since.
    """

    bytes: int = 8 << 30
    seconds: float = 600.0
    least_bytes: int = 64 << 20
    now: Callable[[], float] = time.monotonic
