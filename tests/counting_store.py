"""A store that counts what is asked of the one inside."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

from lamella.base.trust import Clear, Sealed
from lamella.stores.base import Entry, Store
from lamella.stores.wrap.wrapper import Wrapper


class CountingStore(Wrapper):
    """`calls` has one entry a call: method and name or prefix."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.calls: list[tuple[str, str]] = []
        self._mutex = threading.Lock()

    def count(self, method: str = "", prefix: str = "") -> int:
        """Calls so far, of one method or all, of names that begin so."""
        return sum(1 for one, name in self.calls if one.startswith(method) and name.startswith(prefix))

    def by_kind(self) -> Counter[str]:
        """Calls by method and first part of the name."""
        return Counter(f"{method} {name.split('/')[0]}" for method, name in self.calls)

    def put(self, name: str, content: Sealed | Clear) -> None:
        self._note("put", name)
        super().put(name, content)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self._note("get", name)
        return super().get(name, offset, length)

    def stat(self, name: str) -> int:
        self._note("stat", name)
        return super().stat(name)

    def list(self, prefix: str) -> Iterator[Entry]:
        self._note("list", prefix)
        return super().list(prefix)

    def delete(self, name: str) -> None:
        self._note("delete", name)
        super().delete(name)

    def _note(self, method: str, name: str) -> None:
        with self._mutex:
            self.calls.append((method, name))
