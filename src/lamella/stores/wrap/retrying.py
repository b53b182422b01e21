"""A store that tries again what may work later."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from lamella.base.errors import StoreError
from lamella.base.trust import Clear, Sealed
from lamella.stores.base import Entry, Store, ascending, put_durable
from lamella.stores.wrap.wrapper import Wrapper

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often and how patiently a call is tried again. Times in seconds, for one call."""

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


class RetryingStore(Wrapper):
    """Repeats calls that failed with a retryable error. Nothing else in Lamella looks at `retryable`.

    Every repeated call is idempotent by contract: a `put` whose reply was lost finds its own bytes, a `delete` finds
    nothing. `lock` is not repeated: it has a waiting time of its own, and losing it must be noticed. `tell` hears at
    the first failure what is tried again and for how long; `sleep` takes seconds; `jitter` returns a number in [0, 1),
    which keeps many clients from coming back at the same moment.
    """

    def __init__(
        self,
        inner: Store,
        backoff: Backoff | None = None,
        *,
        tell: Callable[[str], None] = lambda text: None,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(inner)
        self._backoff = backoff or PATIENT
        self._tell = tell
        self._sleep = sleep
        self._jitter = jitter
        self._answered = self._told = False
        self._hasty = True

    def put_durable(self, name: str, content: Sealed | Clear) -> None:
        """Store an object, durable on return."""
        self._through(lambda: put_durable(self._inner, name, content))

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`, each name once and in order, whatever failed in between.

        A listing that breaks is begun anew and skips what it has yielded.
        """
        pauses = self._pauses()
        last = ""
        tried = False
        while True:
            try:
                for entry in ascending(self._inner.list(prefix), prefix):
                    if entry.name > last:
                        last = entry.name
                        yield entry
            except StoreError as error:
                self._pause_or_raise(error, pauses)
                tried = True
            else:
                self._works(tried)
                return

    def _through(self, call: Callable[[], T]) -> T:
        pauses = self._pauses()
        tried = False
        while True:
            try:
                result = call()
            except StoreError as error:
                self._pause_or_raise(error, pauses)
                tried = True
            else:
                self._works(tried)
                return result

    def _pause_or_raise(self, error: StoreError, pauses: Iterator[float]) -> None:
        self._hasty = self._hasty or error.brief
        seconds = next(pauses, None) if error.retryable else None
        if seconds is None:
            if error.retryable:
                self._hasty = True
            else:
                self._works(tried=False)  # a refusal is an answer, too
            raise error
        if not self._told:
            self._told = True
            whole = min(self._backoff.first_seconds * 2.0 ** (self._attempts - 1), self._backoff.budget_seconds)
            about = f"{error.obj}: " if error.obj else ""
            self._tell(f"{about}{error.message}; trying again for up to {whole:.0f} s")
        self._sleep(seconds)

    def _works(self, tried: bool) -> None:
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
