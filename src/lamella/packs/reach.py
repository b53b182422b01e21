"""Telling an unreadable object from a store that is out of reach, and from one that was replaced."""

from __future__ import annotations

import hashlib

from lamella.base.errors import LamellaError, StoreError, StoreUnavailable
from lamella.format import marker
from lamella.stores.base import Store
from lamella.stores.versions import reinstate


def require_alive(store: Store, error: LamellaError) -> None:
    """Raise `error` if it says that the store as a whole is out of reach; return if only one object is.

    One unreadable object is damage, to be reported and worked around; a store that is gone is not.
    """
    if isinstance(error, StoreUnavailable):
        try:
            store.stat(marker.NAME)
        except StoreError:
            raise error from None


def reinstated(store: Store, name: str) -> bool:
    """Whether the store found an older version of an object whose bytes hash to its name, and gives that one now.

    For packs, commits and segments, whose names end in the SHA-256 of their bytes. Raises StoreError.
    """
    sha256 = name[-64:]
    return reinstate(store, name, lambda content: hashlib.sha256(content).hexdigest() == sha256)
