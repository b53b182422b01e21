"""Markers that another one was laid over, where the store keeps versions of objects."""

from __future__ import annotations

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.crypto.slots import Secret
from lamella.format import marker
from lamella.format.keyslot import KeySlot
from lamella.repository.slots import Unlocked, tried_slots
from lamella.stores.base import Store
from lamella.stores.versions import reinstate

_OLDER_TRIED = 4
"""Older markers that are tried: each may cost as many scrypt runs as the first."""


def _marker_in(content: bytes) -> marker.Marker | None:
    try:
        return marker.decode(content)
    except (IntegrityError, UnknownFormat):
        return None


def is_marker(content: bytes) -> bool:
    """Whether these bytes are a marker."""
    return _marker_in(content) is not None


def opened_under_another(store: Store, newest: marker.Marker, slots: list[KeySlot], secret: Secret) -> Unlocked | None:
    """What the secret opens with an older marker, which the store then gives from now on. Raises StoreError."""
    found: list[Unlocked] = []
    left = _OLDER_TRIED

    def opens(content: bytes) -> bool:
        nonlocal left
        mark = _marker_in(content)
        if mark is None or mark == newest or left == 0:
            return False
        left -= 1
        opened = tried_slots(mark, slots, secret)[0]
        found.extend([opened] if opened is not None else [])
        return opened is not None

    reinstate(store, marker.NAME, opens)
    return found[0] if found else None
