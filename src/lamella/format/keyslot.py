"""Key slots `keys/<8 hex>`: fixed-size layout only; the cryptography is in lamella.crypto.slots (FORMAT 3)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.names import KEYS, SLOT_SIZE
from lamella.base.trust import Clear
from lamella.format.cursor import Cursor, u8

PREFIX = KEYS
SIZE = SLOT_SIZE
MAGIC = b"LMLSLOT\x01"
DOMAIN_KEY, DOMAIN_KEYS_END = b"LMLDOMK\x01", 128
"""How an exported domain key file begins, and where its keys end (FORMAT 3)."""
MAX_SLOTS, MAX_PASSPHRASES = 64, 16
MIN_LOG_N, MAX_LOG_N, MAX_P, SCRYPT_R = 15, 20, 4, 8


class SlotType(IntEnum):
    """What opens the slot."""

    PASSPHRASE = 1
    RECOVERY = 2
    KEYFILE = 3


class Role(IntEnum):
    """What the slot's holder may do: only an admin has the prune key. Both may enrol a writer."""

    ADMIN = 1
    WRITER = 2


@dataclass(frozen=True, slots=True)
class KeySlot:
    """One wrapped copy of the repository's keys, signed by the prune key."""

    type: SlotType
    role: Role
    salt: bytes
    wrapped: bytes
    mac: bytes
    signature: bytes
    log_n: int = 0
    p: int = 0

    @property
    def wrapping(self) -> bytes:
        """Everything the mac covers."""
        r = SCRYPT_R if self.type == SlotType.PASSPHRASE else 0
        fields = u8(self.type) + u8(self.role) + u8(self.log_n) + u8(r) + u8(self.p)
        return MAGIC + fields + bytes(3) + self.salt + self.wrapped

    def encode(self) -> Clear:
        """The 240 bytes of the object."""
        return Clear(self.wrapping + self.mac + self.signature)

    @property
    def name(self) -> str:
        """The object name, which follows from the bytes."""
        return PREFIX + hashlib.sha256(self.encode()).hexdigest()[:8]


def decode(content: bytes, name: str) -> KeySlot:
    """Read a slot, with every field in its accepted range. Raises IntegrityError, UnknownFormat."""
    if len(content) != SIZE:
        raise IntegrityError(f"a key slot has {len(content)} bytes instead of {SIZE}", obj=name)
    cursor = Cursor(content, name)
    if cursor.take(8) != MAGIC:
        raise UnknownFormat("not a key slot of this version", obj=name)
    type_, role, log_n, r, p = (cursor.uint(1) for _ in range(5))
    cursor.zeros(3)
    if type_ not in set(SlotType) or role not in set(Role):
        raise UnknownFormat("a key slot of unknown type or role", obj=name)
    if type_ == SlotType.PASSPHRASE:
        if not (MIN_LOG_N <= log_n <= MAX_LOG_N and r == SCRYPT_R and 1 <= p <= MAX_P):
            raise IntegrityError("a key slot asks for scrypt parameters outside the accepted range", obj=name)
    elif (log_n, r, p) != (0, 0, 0):
        raise IntegrityError("a key slot has parameters that its type does not use", obj=name)
    salt, wrapped, mac, signature = cursor.take(32), cursor.take(96), cursor.take(32), cursor.take(64)
    slot = KeySlot(SlotType(type_), Role(role), salt, wrapped, mac, signature, log_n, p)
    if slot.name != name:
        raise IntegrityError("a key slot does not match its name", obj=name)
    return slot
