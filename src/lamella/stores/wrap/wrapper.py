"""A store around a store that changes nothing: what every other wrapper begins with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar

from lamella.base.trust import Clear, Sealed
from lamella.stores.base import Abilities, Entry, Store
from lamella.stores.versions import Judge, Replaceable, reinstate

if TYPE_CHECKING:
    from lamella.stores.held import Held

T = TypeVar("T")


class Wrapper:
    """Hands every call on to the store inside. Subclasses override what they change."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    def _through(self, call: Callable[[], T]) -> T:
        """Make a call to the store inside that may be repeated: all but `list`, `lock` and `close`."""
        return call()

    @property
    def url(self) -> str:
        """Where the store inside is."""
        return self._inner.url

    @property
    def abilities(self) -> Abilities:
        """Those of the store inside."""
        return self._inner.abilities

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store an object, all or nothing."""
        self._through(lambda: self._inner.put(name, content))

    def put_durable(self, name: str, content: Sealed | Clear) -> None:
        """Store an object, durable on return. In two steps: a wrapper that changes `put` need not know of this."""
        self.put(name, content)
        self.sync()

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly the bytes asked for."""
        return self._through(lambda: self._inner.get(name, offset, length))

    def stat(self, name: str) -> int:
        """Return the object's size in bytes."""
        return self._through(lambda: self._inner.stat(name))

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`."""
        return self._inner.list(prefix)

    def delete(self, name: str) -> None:
        """Remove an object; no error if there is none."""
        self._through(lambda: self._inner.delete(name))

    def sync(self) -> None:
        """Return when every earlier put and delete is durable."""
        self._through(self._inner.sync)

    def lock(self, *, exclusive: bool, wait_seconds: float = 0.0) -> AbstractContextManager[Held | None]:
        """Hold the lock of the store inside."""
        return self._inner.lock(exclusive=exclusive, wait_seconds=wait_seconds)

    def close(self) -> None:
        """Close the store inside."""
        self._inner.close()

    def reinstate(self, name: str, is_genuine: Judge) -> bool:
        """Have the store inside look for a genuine version; False if it keeps none (lamella.stores.versions)."""
        return self._through(lambda: reinstate(self._inner, name, is_genuine))

    @property
    def replaceable(self) -> Replaceable | None:
        """The store inside all wrappers if it can try what a thief would, else None."""
        inner = self._inner.replaceable if isinstance(self._inner, Wrapper) else self._inner
        return inner if isinstance(inner, Replaceable) else None
