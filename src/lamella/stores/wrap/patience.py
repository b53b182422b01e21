"""The patience with which calls to a store are tried again: loaded with the first failure."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from lamella.base.errors import StoreError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Backoff:
    """The number and the pauses of further attempts. Times in seconds, for one call."""

    attempts: int = 5
    """Tries in all, the first included; at least 1."""
    first_seconds: float = 0.5
    """Longest pause before the second try; doubled for each further one."""
    longest_seconds: float = 30.0
    """No pause is longer than this."""
    budget_seconds: float = 120.0
    """No further try once the pauses of the call would add up to more."""
    hasty_attempts: int | None = None
    """Attempts while the store has never answered, and after a call that failed for good, until a repeated call
    succeeds: a missing destination is reported soon, and a disk with many bad places does not cost the whole budget at
    each. None: as `attempts`."""


PATIENT = Backoff(attempts=16, hasty_attempts=5)
"""Two minutes for a destination that has answered before, some seconds for others."""


class Closable(Protocol):
    """A store that knows whether it was closed."""

    closed: bool


class Patience:
    """Decides about the failures of one store. `answered`: a call succeeded before the first failure.

    A failure after the store was closed is final and told nobody: a thread that read ahead when the work ended.
    `tell` hears at the first failure what is tried again and for how long; `sleep` takes seconds; `jitter` returns a
    number in [0, 1), which keeps many clients from coming back at the same moment.
    """

    def __init__(
        self,
        store: Closable,
        answered: bool,
        backoff: Backoff | None,
        tell: Callable[[str], None],
        sleep: Callable[[float], None] | None,
        jitter: Callable[[], float] | None,
    ) -> None:
        self._store = store
        self._backoff = backoff or PATIENT
        self._tell = tell
        self._sleep = sleep or time.sleep
        self._jitter = jitter or random.random
        self._answered = answered
        self._told = False
        self._hasty = not answered

    def repeat(self, call: Callable[[], T], error: StoreError) -> T:
        """Make a call again that failed with `error`, until it succeeds. Raises StoreError when that is given up."""
        pauses: Iterator[float] | None = None
        while True:
            pauses = self.pause_or_raise(error, pauses)
            try:
                result = call()
            except StoreError as again:
                error = again
            else:
                self.works(tried=True)
                return result

    def pause_or_raise(self, error: StoreError, pauses: Iterator[float] | None) -> Iterator[float]:
        """Wait for the next try of a call, or raise the error. Returns the pauses of the call that are left."""
        if self._store.closed:
            raise error
        pauses = pauses or self._pauses()
        once_more = error.retryable and not (error.silent and self._hasty)
        self._hasty = self._hasty or error.brief or error.silent
        seconds = next(pauses, None) if once_more else None
        if seconds is None:
            if error.retryable:
                self._hasty = True
            else:
                self.works(tried=False)  # a refusal is an answer, too
            raise error
        if not self._told:
            self._told = True
            whole = min(self._backoff.first_seconds * 2.0 ** (self._attempts - 1), self._backoff.budget_seconds)
            about = f"{error.obj}: " if error.obj else ""
            self._tell(f"{about}{error.message}; trying again for up to {whole:.0f} s")
        self._sleep(seconds)
        return pauses

    def works(self, *, tried: bool) -> None:
        """The store has answered a call, after failures if `tried`."""
        if tried or not self._answered:
            self._answered, self._hasty, self._told = True, False, False

    @property
    def _attempts(self) -> int:
        return (self._backoff.hasty_attempts if self._hasty else None) or self._backoff.attempts

    def _pauses(self) -> Iterator[float]:
        """Yield the pause before each further try, until attempts or budget are used up."""
        spent = 0.0
        longest = self._backoff.first_seconds
        for _ in range(self._attempts - 1):
            # Between half and all of it: never a storm of immediate repeats, never in step with other clients.
            seconds = min(longest, self._backoff.longest_seconds) * (0.5 + self._jitter() / 2)
            spent += seconds
            if spent > self._backoff.budget_seconds:
                return
            yield seconds
            longest *= 2
