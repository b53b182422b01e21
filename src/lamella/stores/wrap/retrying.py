"""A store that tries again what may work later."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from lamella.base.errors import StoreError
from lamella.base.trust import Clear, Sealed
from lamella.stores.base import Entry, Store, put_durable
from lamella.stores.versions import Judge, reinstate
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

    def pauses(self, attempts: int) -> Iterator[float]:
        """Yield the longest pause before each further try, until the attempts are used up."""
        for number in range(attempts - 1):
            yield min(self.first_seconds * 2.0**number, self.longest_seconds)


PATIENT = Backoff(attempts=16, hasty_attempts=5)
"""Two minutes for a destination that has answered before, some seconds for others."""


@dataclass(slots=True)
class _Call:
    """How far the tries of one call are."""

    done: bool = False
    pauses: Iterator[float] | None = None


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

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store an object, all or nothing."""
        self._repeated(lambda: self._inner.put(name, content))

    def put_durable(self, name: str, content: Sealed | Clear) -> None:
        """Store an object, durable on return."""
        self._repeated(lambda: put_durable(self._inner, name, content))

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly the bytes asked for."""
        return self._repeated(lambda: self._inner.get(name, offset, length))

    def stat(self, name: str) -> int:
        """Return the object's size in bytes."""
        return self._repeated(lambda: self._inner.stat(name))

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`, each name once, whatever failed in between.

        A listing that breaks is begun anew and skips what it has yielded. Order may differ between two listings, so the
        names themselves are remembered (about 0.2 MB per 1000 objects): a position would lose or repeat some.
        """
        seen: set[str] = set()
        for attempt in self._attempts():
            with attempt:
                for entry in self._inner.list(prefix):
                    if entry.name not in seen:
                        seen.add(entry.name)
                        yield entry

    def delete(self, name: str) -> None:
        """Remove an object; no error if there is none."""
        self._repeated(lambda: self._inner.delete(name))

    def sync(self) -> None:
        """Return when every earlier put and delete is durable."""
        self._repeated(self._inner.sync)

    def reinstate(self, name: str, is_genuine: Judge) -> bool:
        """Have the store inside look for a genuine version."""
        return self._repeated(lambda: reinstate(self._inner, name, is_genuine))

    def _repeated(self, call: Callable[[], T]) -> T:
        for attempt in self._attempts():
            with attempt:
                result = call()
        return result

    def _attempts(self) -> Iterator[AbstractContextManager[None]]:
        """Yield a context for each try of one call, until one ends well or raises."""
        state = _Call()
        while not state.done:
            yield self._attempt(state)

    @contextmanager
    def _attempt(self, call: _Call) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            if not error.retryable:
                self._works(tried=False)  # a refusal is an answer, too
                raise
            if call.pauses is None:
                call.pauses = self._begin_again(error)
            seconds = next(call.pauses, None)
            if seconds is None:
                self._hasty = True
                raise
            self._sleep(seconds)
        else:
            call.done = True
            self._works(tried=call.pauses is not None)

    def _works(self, tried: bool) -> None:
        """The store has answered a call, after failures if `tried`."""
        if tried or not self._answered:
            self._answered, self._hasty = True, False
        if tried:
            self._told = False

    def _begin_again(self, error: StoreError) -> Iterator[float]:
        """The pauses after a first failure, which is told unless it is part of one that was told before."""
        backoff = self._backoff
        hasty = backoff.hasty_attempts if self._hasty or error.brief else None
        attempts = hasty or backoff.attempts
        if not self._told and attempts > 1:
            self._told = True
            longest = min(sum(backoff.pauses(attempts)), backoff.budget_seconds)
            self._tell(f"{error.obj}: {error.message}; trying again for up to {longest:.0f} s")
        spent = 0.0
        for longest in backoff.pauses(attempts):
            # Between half and all of it: never a storm of immediate repeats, never in step with other clients.
            seconds = longest * (0.5 + self._jitter() / 2)
            spent += seconds
            if spent > backoff.budget_seconds:
                return
            yield seconds
