"""The key slots of a repository: trying them, adding and removing them (FORMAT 3)."""

from __future__ import annotations

from dataclasses import dataclass

from lamella.base.errors import IntegrityError, KeyRefused, NoRepository, ObjectNotFound, StoreError, UnknownFormat
from lamella.crypto.derive import Keys
from lamella.crypto.slots import Secret, unwrap
from lamella.format import keyslot, marker
from lamella.format.keyslot import KeySlot, SlotType
from lamella.stores.base import Entry, Store
from lamella.stores.versions import reinstate

_MAX_TRIED = 8
_OLDER_TRIED = 4
"""Older markers that are tried: each may cost as many scrypt runs as the first."""
_MAX_WORK = (1 << 22) * 8


@dataclass(frozen=True, slots=True)
class Unlocked:
    """The keys, and the slot that gave them."""

    keys: Keys
    data_root: bytes
    slot: KeySlot


def read_marker(store: Store) -> marker.Marker:
    """The repository's marker. Raises NoRepository, IntegrityError, UnknownFormat."""
    try:
        size = store.stat(marker.NAME)
        content = store.get(marker.NAME, 0, min(size, marker.SIZE + 1))
    except ObjectNotFound:
        hint = f"make one with: lamella init -r {store.url}"
        raise NoRepository(f"there is no repository at {store.url}", obj=store.url, hint=hint) from None
    try:
        return marker.decode(content)
    except (IntegrityError, UnknownFormat):
        if not reinstate(store, marker.NAME, lambda content: _marker_in(content) is not None):
            raise
        return marker.decode(store.get(marker.NAME))


def _marker_in(content: bytes) -> marker.Marker | None:
    try:
        return marker.decode(content)
    except (IntegrityError, UnknownFormat):
        return None


def read_slots(store: Store) -> tuple[list[KeySlot], list[tuple[str, str]]]:
    """All well-formed slots in order of name, and (name, reason) of the objects in keys/ that are none."""
    slots: list[KeySlot] = []
    bad: list[tuple[str, str]] = []
    entries = sorted(store.list(keyslot.PREFIX), key=lambda entry: entry.name)
    for entry in entries[: keyslot.MAX_SLOTS]:
        try:
            slots.append(_slot(store, entry))
        except (IntegrityError, UnknownFormat, StoreError) as error:
            bad.append((entry.name, error.message))
    bad += [(entry.name, "more slots than are read") for entry in entries[keyslot.MAX_SLOTS :]]
    return slots, bad


def _slot(store: Store, entry: Entry) -> KeySlot:
    """One slot; an older version of it where the store has one and the newest is none."""

    def decoded(content: bytes) -> KeySlot:
        return keyslot.decode(content, entry.name)

    def is_slot(content: bytes) -> bool:
        try:
            return bool(decoded(content))
        except (IntegrityError, UnknownFormat):
            return False

    try:
        if entry.size != keyslot.SIZE:
            raise IntegrityError(f"a key slot has {entry.size} bytes instead of {keyslot.SIZE}", obj=entry.name)
        return decoded(store.get(entry.name))
    except (IntegrityError, UnknownFormat):
        if not reinstate(store, entry.name, is_slot):
            raise
        return decoded(store.get(entry.name))


def unlock(store: Store, secret: Secret) -> Unlocked:
    """Open the repository's keys with a secret. Raises KeyRefused, NoRepository, IntegrityError, StoreError.

    Where the store keeps versions and another marker was laid over the one that the slots belong to, that is found.
    """
    mark = read_marker(store)
    slots, bad = read_slots(store)
    opened, tried, skipped = _tried(mark, slots, secret)
    if opened is None:
        opened = _under_an_older_marker(store, mark, slots, secret)
    if opened is not None:
        return opened
    word = {SlotType.PASSPHRASE: "passphrase", SlotType.RECOVERY: "recovery key", SlotType.KEYFILE: "key file"}
    text = f"the {word[secret.type]} opens none of the {tried} slots it was tried on"
    rest = skipped + len(bad)
    raise KeyRefused(f"{text} ({rest} not tried)" if rest else text, obj=store.url, hint="or the marker was altered")


def _under_an_older_marker(
    store: Store, newest: marker.Marker, slots: list[KeySlot], secret: Secret
) -> Unlocked | None:
    found: list[Unlocked] = []
    left = _OLDER_TRIED

    def opens(content: bytes) -> bool:
        nonlocal left
        mark = _marker_in(content)
        if mark is None or mark == newest or left == 0:
            return False
        left -= 1
        opened = _tried(mark, slots, secret)[0]
        found.extend([opened] if opened is not None else [])
        return opened is not None

    reinstate(store, marker.NAME, opens)
    return found[0] if found else None


def _tried(mark: marker.Marker, slots: list[KeySlot], secret: Secret) -> tuple[Unlocked | None, int, int]:
    """What the secret opens, and how many slots it was tried and not tried on."""
    tried = skipped = work = 0
    for slot in slots:
        if slot.type != secret.type:
            skipped += 1
            continue
        work += (1 << slot.log_n) * 8 * slot.p if slot.type == SlotType.PASSPHRASE else 0
        if slot.type == SlotType.PASSPHRASE and (tried >= _MAX_TRIED or work > _MAX_WORK):
            skipped += 1
            continue
        tried += 1
        bundle = unwrap(mark, secret, slot)
        if bundle is not None:
            data_root, seed = bundle
            return Unlocked(Keys(mark, data_root, seed), data_root, slot), tried, skipped
    return None, tried, skipped
