"""What can be said of an object without any key: its bytes beside its name, and what the marker says of signatures."""

from __future__ import annotations

import hashlib

from lamella.base.errors import IntegrityError, ObjectCold, ObjectNotFound, StoreError, UnknownFormat
from lamella.base.names import SLOT_SIZE, Part, hash_in, part_of
from lamella.base.signed import TRAILER_SIZE, trailer_fault
from lamella.crypto.sign import verified
from lamella.crypto.slots import is_signed
from lamella.format import keyslot, marker
from lamella.format.commit import parse_name, split_trailer
from lamella.format.container import MAX_OBJECT
from lamella.operations.shared.findings import DAMAGE, NOTE, Finding
from lamella.packs.reach import require_alive
from lamella.stores.base import Entry, Store

_MAX_TEXT = 16 * 1024 * 1024
_MAX_BYTES = {
    Part.PACK: MAX_OBJECT,
    Part.SEGMENT: MAX_OBJECT,
    Part.COMMIT: MAX_OBJECT + TRAILER_SIZE,
    Part.KEY: SLOT_SIZE,
}


def check(store: Store, entry: Entry, mark: marker.Marker) -> bytes | Finding:
    """The bytes of an object if they are what its name says, else what is wrong with them.

    Raises ObjectNotFound if it is gone, ObjectCold if it must be thawed first, StoreError if the store is out of reach.
    """
    name, part = entry.name, part_of(entry.name)
    if entry.size > (_MAX_TEXT if part is None else _MAX_BYTES.get(part, _MAX_TEXT)):
        return Finding("mirror", DAMAGE, name, "an object of a size that its name does not allow")
    try:
        content = store.get(name)
    except (ObjectNotFound, ObjectCold):
        raise
    except StoreError as error:
        require_alive(store, error)
        return Finding("mirror", DAMAGE, name, f"cannot be read: {error.message}")
    named = hash_in(name)
    if named is not None and not hashlib.sha256(content).digest().startswith(named):
        return Finding("mirror", DAMAGE, name, "its bytes are not what its name says; not copied")
    fault = _fault(name, part, content, mark)
    return Finding("mirror", NOTE, name, f"{fault}; not copied") if fault else content


def _fault(name: str, part: Part | None, content: bytes, mark: marker.Marker) -> str:
    """Why an object whose bytes fit its name counts for nothing, as the marker tells; empty if it may count.

    Anybody who can add objects can add such a one: it is no damage. Texts need a key to be judged.
    """
    try:
        if part == Part.KEY:
            return "" if is_signed(mark, keyslot.decode(content, name)) else "a key slot that no admin signed"
        head = parse_name(name)
        if head is not None:
            _, trailer = split_trailer(content, head)
            return trailer_fault(mark.signers, head.writer, head.seq, trailer, verified)
    except (IntegrityError, UnknownFormat) as error:
        return error.message
    return ""
