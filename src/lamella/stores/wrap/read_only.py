"""A store that may only be read."""

from __future__ import annotations

from dataclasses import replace

from lamella.base.errors import StoreRefused
from lamella.base.trust import Clear, Sealed
from lamella.stores.base import Abilities, checked_name
from lamella.stores.wrap.wrapper import Wrapper


class ReadOnlyStore(Wrapper):
    """Everything but writing: `put` and `delete` raise StoreRefused without reaching the store inside."""

    @property
    def abilities(self) -> Abilities:
        """Those of the store inside, without `write` and `delete`."""
        return replace(self._inner.abilities, write=False, delete=False)

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Raise StoreRefused."""
        raise StoreRefused("the store was opened for reading only", obj=checked_name(name))

    def delete(self, name: str) -> None:
        """Raise StoreRefused, even when there is no such object."""
        raise StoreRefused("the store was opened for reading only", obj=checked_name(name))

    def sync(self) -> None:
        """Do nothing: there is nothing of ours to make durable."""
