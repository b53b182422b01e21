"""Moving a bad object out of the way of the right bytes: to `quarantine/` (FORMAT 1)."""

from __future__ import annotations

import hashlib

from lamella.base.errors import StoreError
from lamella.base.names import QUARANTINE
from lamella.base.trust import Clear
from lamella.stores.base import Store


def may_set_aside(store: Store) -> bool:
    """Whether objects can be moved aside there: only where a lock proves that nobody is reading or writing."""
    abilities = store.abilities
    return abilities.exclusive_lock and abilities.delete and abilities.write and not abilities.immutable


def set_aside(store: Store, name: str) -> str:
    """Move an object to `quarantine/<SHA-256 of its bytes>/<name>`; returns that name.

    An object's name cannot be given other bytes: what is bad must leave its name before the right bytes can have it.

    The store's exclusive lock is held. The copy is durable and was read back before the name goes; killed in between,
    both are there, and doing it again ends the same way. Raises StoreError; then the object is where it was.
    """
    content = store.get(name)
    aside = f"{QUARANTINE}{hashlib.sha256(content).hexdigest()}/{name}"
    store.put(aside, Clear(content))
    store.sync()
    if store.get(aside) != content:
        raise StoreError("the copy moved aside does not read back", obj=aside)
    store.delete(name)
    store.sync()
    return aside
