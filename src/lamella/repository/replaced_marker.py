"""The genuine marker where another one was laid over it, in a store that keeps versions (docs/decisions/0015)."""

from __future__ import annotations

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.crypto.slots import Secret
from lamella.format import marker
from lamella.repository.slots import Unlocked, read_slots, try_slots
from lamella.stores.base import Store
from lamella.stores.versions import reinstate

_OLDER_TRIED = 4
"""Older markers with slots of their own that are tried: each may cost as many scrypt runs as the first."""


def _marker_in(content: bytes) -> marker.Marker | None:
    """The marker of these bytes, None if they are none."""
    try:
        return marker.decode(content)
    except (IntegrityError, UnknownFormat):
        return None


def older_marker(store: Store) -> marker.Marker | None:
    """The newest version of the marker that is one; `get` gives it from now on. None if there is none."""
    found = reinstate(store, marker.NAME, lambda content: _marker_in(content) is not None)
    return marker.decode(store.get(marker.NAME)) if found else None


def under_an_older_marker(store: Store, newest: marker.Marker, secret: Secret) -> Unlocked | None:
    """The keys that the secret opens under an older version of the marker with signed slots. Raises StoreError."""
    found: list[Unlocked] = []
    left = _OLDER_TRIED

    def opens(content: bytes) -> bool:
        nonlocal left
        mark = _marker_in(content)
        if mark is None or mark == newest or left == 0:
            return False
        slots = read_slots(store, mark)
        left -= bool(slots.signed)
        opened = try_slots(mark, slots, secret)[0]
        found.extend([opened] if opened is not None else [])
        return opened is not None

    reinstate(store, marker.NAME, opens)
    return found[0] if found else None
