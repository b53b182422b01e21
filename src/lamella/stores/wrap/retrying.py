"""A store that tries again what may work later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from lamella.base.errors import StoreError
from lamella.base.trust import Clear, Sealed
from lamella.stores.base import Entry, Store, ascending, put_durable
from lamella.stores.wrap.wrapper import Wrapper

if TYPE_CHECKING:
    from lamella.stores.wrap.patience import Backoff, Patience

T = TypeVar("T")


class RetryingStore(Wrapper):
    """Repeats calls that failed with a retryable error. Nothing else in Lamella looks at `retryable`.

    Every repeated call is idempotent by contract: a `put` whose reply was lost finds its own bytes, a `delete` finds
    nothing. `lock` is not repeated: it has a waiting time of its own, and losing it must be noticed. For `tell`,
    `sleep` and `jitter` see `Patience`.
    """

    def __init__(
        self,
        inner: Store,
        backoff: Backoff | None = None,
        *,
        tell: Callable[[str], None] = lambda text: None,
        sleep: Callable[[float], None] | None = None,
        jitter: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(inner)
        self._how = (backoff, tell, sleep, jitter)
        self.closed = self._answered = False
        self._made: Patience | None = None

    def close(self) -> None:
        """Close the inner store. A call of another thread that fails from now on is not repeated."""
        self.closed = True
        super().close()

    def put_durable(self, name: str, content: Sealed | Clear) -> None:
        """Store an object, durable on return."""
        self._through(lambda: put_durable(self._inner, name, content))

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`, each name once and in order, whatever failed in between.

        A listing that breaks is started again and skips what it has yielded.
        """
        pauses: Iterator[float] | None = None
        last = ""
        while True:
            try:
                for entry in ascending(self._inner.list(prefix), prefix):
                    if entry.name > last:
                        last = entry.name
                        yield entry
            except StoreError as error:
                pauses = self._patience().pause_or_raise(error, pauses)
            else:
                self._works(tried=pauses is not None)
                return

    def _through(self, call: Callable[[], T]) -> T:
        try:
            result = call()
        except StoreError as error:
            return self._patience().repeat(call, error)
        self._works(tried=False)
        return result

    def _works(self, *, tried: bool) -> None:
        self._answered = True
        if self._made is not None:
            self._made.works(tried=tried)

    def _patience(self) -> Patience:
        if self._made is None:
            from lamella.stores.wrap.patience import Patience  # most stores never fail

            self._made = Patience(self, self._answered, *self._how)
        return self._made
