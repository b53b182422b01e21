"""Secrets, and the keys they unwrap from slots (FORMAT 3); `new_slots` makes slots."""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from dataclasses import dataclass

from lamella.base.errors import KeyRefused, LamellaError, UsageError
from lamella.base.signed import slot_message
from lamella.crypto.derive import Bundle, hkdf, prf
from lamella.crypto.sign import public_of, verified
from lamella.format.keyslot import DOMAIN_KEY, DOMAIN_KEYS_END, SCRYPT_R, KeySlot, Role, SlotType
from lamella.format.marker import Marker

MIN_KEY_FILE, MAX_KEY_FILE = 32, 1 << 20


@dataclass(frozen=True, slots=True)
class Secret:
    """Something that opens slots of one type: a passphrase as UTF-8, 32 recovery bytes, or a key file's content."""

    type: SlotType
    value: bytes

    def kek(self, root: bytes, slot: KeySlot) -> bytes:
        """The key that it gives for one slot. Raises LamellaError where the machine has no memory for it."""
        if slot.type != SlotType.PASSPHRASE:
            # What a domain key file says of trees changes with each backup.
            value = self.value[:DOMAIN_KEYS_END] if is_domain_key(self) else self.value
            return hkdf(value, slot.salt, b"lamella/1 kek\0" + root + slot.wrapping[:16])
        n = 1 << slot.log_n
        limit = 128 * SCRYPT_R * (n + slot.p + 2) + (1 << 20)
        try:
            return hashlib.scrypt(self.value, salt=slot.salt, n=n, r=SCRYPT_R, p=slot.p, maxmem=limit, dklen=32)
        except (MemoryError, ValueError) as error:
            hint = "free some memory; a recovery key or a key file needs none of it"
            text = f"not enough memory: a passphrase needs {limit >> 20} MiB"
            raise LamellaError(text, hint=hint) from error


def is_domain_key(secret: Secret) -> bool:
    """Whether a secret is the exported key file of a domain."""
    return secret.type == SlotType.KEYFILE and secret.value.startswith(DOMAIN_KEY)


def passphrase(text: str) -> Secret:
    """A passphrase, normalised so that it is the same on every keyboard. Raises UsageError when empty or not text."""
    if not text:
        raise UsageError("the passphrase is empty")
    try:
        value = unicodedata.normalize("NFC", text).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError("the passphrase is not valid UTF-8") from error
    return Secret(SlotType.PASSPHRASE, value)


def key_file(content: bytes) -> Secret:
    """A key file of 32 bytes to 1 MiB. Raises UsageError outside."""
    if not MIN_KEY_FILE <= len(content) <= MAX_KEY_FILE:
        raise UsageError(f"a key file has {MIN_KEY_FILE} bytes to 1 MiB, this one has {len(content)}")
    return Secret(SlotType.KEYFILE, content)


def is_signed(marker: Marker, slot: KeySlot) -> bool:
    """Whether an admin of this repository made the slot: no other one is ever tried (FORMAT 3)."""
    return verified(marker.prune_public, slot.signature, slot_message(marker.root, slot.encode()))


def unwrap(marker: Marker, secret: Secret, slot: KeySlot) -> Bundle | None:
    """The content of the slot if `secret` opens it, None if it does not.

    Raises KeyRefused for a slot that opens but contradicts the marker.
    """
    if slot.type != secret.type:
        return None
    kek = secret.kek(marker.root, slot)
    if not hmac.compare_digest(prf(hkdf(kek, marker.root, b"mac"), slot.wrapping), slot.mac):
        return None
    mask = hkdf(kek, marker.root, b"wrap", 96)
    bundle = bytes(a ^ b for a, b in zip(slot.wrapped, mask, strict=True))
    data_root, prune, enrol = bundle[:32], bundle[32:64], bundle[64:]
    if slot.role == Role.WRITER and any(prune):
        raise KeyRefused("a key slot that opens but contradicts its role", obj=slot.name)
    seed = prune if slot.role == Role.ADMIN else None
    if public_of(enrol) != marker.enrol_public or (seed is not None and public_of(seed) != marker.prune_public):
        raise KeyRefused("a key slot that opens but does not belong to this marker", obj=slot.name)
    return Bundle(data_root, enrol, seed)
