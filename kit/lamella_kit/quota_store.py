"""A store with room for so many bytes and no more, to see what a full destination does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager

from lamella.base.errors import ObjectNotFound, StoreFull
from lamella.base.trust import Clear, Sealed
from lamella.stores.base import Abilities, Entry, Store
from lamella.stores.held import Held


class QuotaStore:
    """The store inside, which takes `limit_bytes` of objects in all; may be changed while in use, to make room."""

    def __init__(self, inner: Store, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._inner = inner
        self._mutex = threading.Lock()
        self._used_bytes: int | None = None

    @property
    def url(self) -> str:
        """Where the store inside is."""
        return self._inner.url

    @property
    def abilities(self) -> Abilities:
        """Those of the store inside."""
        return self._inner.abilities

    def used_bytes(self) -> int:
        """Return the size of all objects together."""
        with self._mutex:
            return self._counted_bytes()

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store an object. Raises StoreFull when a new object would exceed the limit; nothing of it remains."""
        # One put at a time: two must not both find the last free byte.
        with self._mutex:
            more = 0 if self._has(name) else len(content)
            if more and self._counted_bytes() + more > self.limit_bytes:
                raise StoreFull("no space left: the quota is used up", obj=name)
            used, self._used_bytes = self._counted_bytes(), None  # unknown again, should the put fail half-way
            self._inner.put(name, content)
            self._used_bytes = used + more

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly the bytes asked for."""
        return self._inner.get(name, offset, length)

    def stat(self, name: str) -> int:
        """Return the object's size in bytes."""
        return self._inner.stat(name)

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`."""
        return self._inner.list(prefix)

    def delete(self, name: str) -> None:
        """Remove an object; its bytes are free again."""
        with self._mutex:
            self._used_bytes = None
            self._inner.delete(name)

    def sync(self) -> None:
        """Return when every earlier put and delete is durable."""
        self._inner.sync()

    def lock(self, *, exclusive: bool, wait_seconds: float = 0.0) -> AbstractContextManager[Held | None]:
        """Hold the lock of the store inside."""
        return self._inner.lock(exclusive=exclusive, wait_seconds=wait_seconds)

    def close(self) -> None:
        """Close the store inside."""
        self._inner.close()

    def _counted_bytes(self) -> int:
        # Counted once and kept: a listing for every put would make long runs quadratic.
        if self._used_bytes is None:
            self._used_bytes = sum(entry.size for entry in self._inner.list(""))
        return self._used_bytes

    def _has(self, name: str) -> bool:
        try:
            self._inner.stat(name)
        except ObjectNotFound:
            return False
        return True
