"""The key slots of a repository: which of them count, and trying a secret on these (FORMAT 3).

Whoever can add objects can plant slots. Only those that the prune key signed count: no other one is tried, and how many
there are and what they are called changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lamella.base.errors import IntegrityError, KeyRefused, NoRepository, ObjectNotFound, StoreError, UnknownFormat
from lamella.crypto.derive import Keys
from lamella.crypto.slots import Secret, is_signed, unwrap
from lamella.format import keyslot, marker
from lamella.format.keyslot import KeySlot, SlotType
from lamella.stores.base import Entry, Store
from lamella.stores.versions import reinstate

_OLDER_TRIED = 4
"""Older markers that are tried: each may cost as many scrypt runs as the first."""
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Unlocked:
    """The keys, and the slot that gave them."""

    keys: Keys
    slot: KeySlot


@dataclass(slots=True)
class Slots:
    """The key slots that count, in order of name, and the other objects in keys/."""

    signed: list[KeySlot] = field(default_factory=list)
    ignored: int = 0
    examples: list[str] = field(default_factory=list)
    """The names of some that are ignored."""
    unreadable: StoreError | None = None
    """Why an object could not be read: it may be a slot that counts."""

    def ignore(self, name: str) -> None:
        """Take an object in that is no slot, or that no admin of this repository signed."""
        self.ignored += 1
        if len(self.examples) < _MOST_NAMED:
            self.examples.append(name)

    @property
    def remark(self) -> str:
        """What to say of those that are ignored, in one line; empty if there are none."""
        if not self.ignored:
            return ""
        more = ", ..." if self.ignored > len(self.examples) else ""
        what = "object" if self.ignored == 1 else "objects"
        return f"{self.ignored} {what} in keys/ that no admin signed, ignored: {', '.join(self.examples)}{more}"


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


def read_slots(store: Store, mark: marker.Marker) -> Slots:
    """The slots that count under this marker. Raises StoreError."""
    found = Slots()
    for entry in sorted(store.list(keyslot.PREFIX), key=lambda entry: entry.name):
        try:
            slot = _slot(store, entry, mark)
        except ObjectNotFound:
            continue  # removed meanwhile
        except StoreError as error:
            found.unreadable = found.unreadable or error
            continue
        if slot is None or len(found.signed) == keyslot.MAX_SLOTS:
            found.ignore(entry.name)
        else:
            found.signed.append(slot)
    return found


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
    opened, tried = _tried(mark, slots, secret)
    if opened is None:
        opened = _under_an_older_marker(store, mark, secret)
    if opened is not None:
        return opened
    if slots.unreadable is not None:
        raise slots.unreadable
    word = {SlotType.PASSPHRASE: "passphrase", SlotType.RECOVERY: "recovery key", SlotType.KEYFILE: "key file"}
    text = f"the {word[secret.type]} opens none of the {tried} slots it was tried on"
    rest = len(slots.signed) - tried
    text += f" ({rest} not tried)" if rest else ""
    text += f"; {slots.remark}" if slots.ignored else ""
    raise KeyRefused(text, obj=store.url, hint="or the marker was altered")


def _under_an_older_marker(store: Store, newest: marker.Marker, secret: Secret) -> Unlocked | None:
    found: list[Unlocked] = []
    left = _OLDER_TRIED

    def opens(content: bytes) -> bool:
        nonlocal left
        mark = _marker_in(content)
        if mark is None or mark == newest or left == 0:
            return False
        slots = read_slots(store, mark)
        left -= bool(slots.signed)
        opened = _tried(mark, slots, secret)[0]
        found.extend([opened] if opened is not None else [])
        return opened is not None

    reinstate(store, marker.NAME, opens)
    return found[0] if found else None


def _tried(mark: marker.Marker, slots: Slots, secret: Secret) -> tuple[Unlocked | None, int]:
    """What the secret opens, and how many slots it was tried on."""
    fitting = [slot for slot in slots.signed if slot.type == secret.type]
    limit = keyslot.MAX_PASSPHRASES if secret.type == SlotType.PASSPHRASE else keyslot.MAX_SLOTS
    for tried, slot in enumerate(fitting[:limit], 1):
        bundle = unwrap(mark, secret, slot)
        if bundle is not None:
            return Unlocked(Keys(mark, bundle), slot), tried
    return None, len(fitting[:limit])
