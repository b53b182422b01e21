"""Telling an unreadable object from a store that is out of reach."""

from __future__ import annotations

from lamella.errors import LamellaError, StoreError, StoreUnavailable
from lamella.format import marker
from lamella.stores.base import Store


def require_alive(store: Store, error: LamellaError) -> None:
    """Raise `error` if it says that the store as a whole is out of reach; return if only one object is.

    One unreadable object is damage, to be reported and worked around; a store that is gone is not.
    """
    if isinstance(error, StoreUnavailable):
        try:
            store.stat(marker.NAME)
        except StoreError:
            raise error from None
