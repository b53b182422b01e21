"""The powers of a store's credential over existing objects: tried on an object of our own.

The probe has one fixed name, so that where nothing may be deleted one small object is left, however often it is tried.
"""

from __future__ import annotations

from lamella.base.errors import LamellaError, ObjectNotFound, StoreRefused
from lamella.base.names import PROBE
from lamella.base.trust import Clear
from lamella.stores.base import Store
from lamella.stores.versions import Replaceable, reinstate
from lamella.stores.wrap.wrapper import Wrapper

_CONTENTS = (b"A probe of lamella doctor; it may be deleted.\n", b"A probe of lamella doctor, replaced.\n")

Finding = tuple[str, bool, str]
"""The name of a check, whether it is in order, and what was seen."""


def probe(store: Store) -> list[Finding]:
    """Try to replace and delete an object: through the store as Lamella does, and as a thief of its credential would.

    An append-only store (no `delete` among its abilities) must refuse both. Leaves nothing, or the probe where it
    cannot be deleted.
    """
    try:
        here, other = _placed(store)
        findings = [_through(store, other)]
        thief = _thief(store)
        if thief is not None:
            findings.append(_as_thief(store, thief, here, other))
        elif store.abilities.delete:
            store.delete(PROBE)
        else:
            findings.append(_deleting(store))
    except LamellaError as error:
        return [("immutable names", False, f"could not be tried: {error.message}")]
    return findings


def _placed(store: Store) -> tuple[bytes, bytes]:
    """Put the probe, or find the one of an earlier time; its content and another one."""
    try:
        found = store.get(PROBE)
    except ObjectNotFound:
        store.put(PROBE, Clear(_CONTENTS[0]))
        return _CONTENTS
    return found, _CONTENTS[found == _CONTENTS[0]]


def _through(store: Store, other: bytes) -> Finding:
    try:
        store.put(PROBE, Clear(other))
    except StoreRefused:
        return "immutable names", True, "an object cannot be replaced through this store"
    return "immutable names", False, "an existing object was replaced: this destination loses data"


def _deleting(store: Store) -> Finding:
    try:
        store.delete(PROBE)
    except StoreRefused:
        return "append-only", True, "the destination refuses to delete and to replace"
    return "append-only", False, "an object was deleted although the destination is meant to be append-only"


def _thief(store: Store) -> Replaceable | None:
    inner = store.replaceable if isinstance(store, Wrapper) else store
    return inner if isinstance(inner, Replaceable) else None


def _as_thief(store: Store, thief: Replaceable, here: bytes, other: bytes) -> Finding:
    replaced = thief.try_replacing(PROBE, other)
    kept = replaced and reinstate(store, PROBE, lambda content: content == here)
    gone = thief.try_erasing(PROBE)
    can = [word for word, done in (("replace", replaced and not kept), ("delete", gone)) if done]
    if can:
        text = f"this credential can {' and '.join(can)} objects: whoever steals it can destroy what is stored"
        return "append-only", not store.abilities.immutable, text
    if kept:
        return "append-only", True, "a replaced object stays behind as a version that this credential cannot delete"
    return "append-only", True, "this credential can neither replace nor delete an object"
