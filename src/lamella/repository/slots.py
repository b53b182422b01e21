"""The key slots of a repository: which of them count, and trying a secret on these (FORMAT 3).

Whoever can add objects can plant slots. Only those that the prune key signed count: no other one is tried, and how many
there are and what they are called changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from lamella.base.errors import IntegrityError, NoRepository, ObjectNotFound, StoreError, UnknownFormat
from lamella.crypto.derive import Keys
from lamella.crypto.slots import Secret, is_domain_key, is_signed, unwrap
from lamella.format import keyslot, marker
from lamella.format.keyslot import KeySlot, SlotType
from lamella.stores.base import Entry, Store
from lamella.stores.versions import Versioned, reinstate


class Unlocked(NamedTuple):
    """The keys, and the slot that gave them."""

    keys: Keys
    slot: KeySlot


class Slots(NamedTuple):
    """The key slots that count, in order of name, and the names of the other objects in keys/.

    `unreadable` is why others could not be read: they may be slots that count.
    """

    signed: list[KeySlot]
    ignored: list[str]
    unreadable: list[StoreError]


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
        from lamella.repository.replaced_marker import older_marker  # rarely needed

        if (older := older_marker(store)) is None:
            raise
        return older


def read_slots(store: Store, mark: marker.Marker) -> Slots:
    """The slots that count under this marker. Raises StoreError."""
    slots = Slots([], [], [])
    for entry in sorted(store.list(keyslot.PREFIX), key=lambda entry: entry.name):
        try:
            slot = _slot(store, entry, mark)
        except StoreError as error:
            slots.unreadable.append(error)
            continue
        if slot is None or len(slots.signed) == keyslot.MAX_SLOTS:
            slots.ignored.append(entry.name)
        else:
            slots.signed.append(slot)
    return slots


def _slot(store: Store, entry: Entry, mark: marker.Marker) -> KeySlot | None:
    """The signed slot under a name; an older version of it where the store has one and the newest is none."""

    def signed(content: bytes) -> KeySlot | None:
        try:
            slot = keyslot.decode(content, entry.name)
        except (IntegrityError, UnknownFormat):
            return None
        return slot if is_signed(mark, slot) else None

    found = signed(store.get(entry.name)) if entry.size == keyslot.SIZE else None
    if found is None and reinstate(store, entry.name, lambda content: signed(content) is not None):
        found = signed(store.get(entry.name))
    return found


def unlock(store: Store, secret: Secret) -> Unlocked:
    """Open the repository's keys with a secret. Raises KeyRefused, NoRepository, IntegrityError, StoreError.

    Where the store keeps versions and another marker was laid over the one that the slots belong to, that is found.
    """
    mark = read_marker(store)
    slots = read_slots(store, mark)
    opened, tried = try_slots(mark, slots, secret)
    if opened is None and isinstance(store, Versioned):
        from lamella.repository.replaced_marker import under_an_older_marker  # rarely needed

        opened = under_an_older_marker(store, mark, secret)
    if opened is not None:
        return opened
    if slots.unreadable:
        raise slots.unreadable[0]
    from lamella.repository.refused import refused  # only for the one whose secret opens nothing

    raise refused(store.url, secret, slots, tried)


def try_slots(mark: marker.Marker, slots: Slots, secret: Secret) -> tuple[Unlocked | None, int]:
    """The keys that the secret opens, None without any; and the number of slots it was tried on."""
    most = keyslot.MAX_PASSPHRASES if secret.type == SlotType.PASSPHRASE else keyslot.MAX_SLOTS
    fitting = [slot for slot in slots.signed if slot.type == secret.type][:most]
    for slot in fitting:
        bundle = unwrap(mark, secret, slot)
        if bundle is not None:
            keys = Keys(mark, bundle)
            if is_domain_key(secret):
                from lamella.repository.lent import lend  # a store of one qube's files

                lend(keys, secret)
            return Unlocked(keys, slot), len(fitting)
    return None, len(fitting)
