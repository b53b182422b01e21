"""Making key slots and recovery keys (FORMAT 3)."""

from __future__ import annotations

import base64
import os

from lamella.base.errors import UsageError
from lamella.crypto.derive import hkdf, prf
from lamella.crypto.slots import Secret, checksum, slot_kek
from lamella.format.keyslot import MAX_LOG_N, MIN_LOG_N, KeySlot, Role, SlotType
from lamella.format.marker import Marker

DEFAULT_LOG_N = 18
MIN_WRITTEN_LOG_N = 17


def new_recovery_key() -> Secret:
    """A fresh random recovery key."""
    return Secret(SlotType.RECOVERY, os.urandom(32))


def recovery_text(secret: Secret) -> str:
    """A recovery key as 14 groups of 4 characters."""
    text = base64.b32encode(secret.value + checksum(secret.value)).decode("ascii")
    return "-".join(text[start : start + 4] for start in range(0, len(text), 4))


def wrap(
    marker: Marker, secret: Secret, data_root: bytes, prune_seed: bytes | None, log_n: int = DEFAULT_LOG_N
) -> KeySlot:
    """A new slot for `secret`; an admin slot if `prune_seed` is given, else a writer slot."""
    role = Role.WRITER if prune_seed is None else Role.ADMIN
    by_passphrase = secret.type == SlotType.PASSPHRASE
    if by_passphrase and not MIN_LOG_N <= log_n <= MAX_LOG_N:
        raise UsageError(f"the key derivation cost is {MIN_LOG_N} to {MAX_LOG_N}, not {log_n}")
    log_n, p = (log_n, 1) if by_passphrase else (0, 0)
    empty = KeySlot(secret.type, role, os.urandom(32), bytes(96), bytes(32), log_n, p)
    kek = slot_kek(secret, marker.root, empty)
    bundle = data_root + (prune_seed or bytes(32)) + bytes(32)
    mask = hkdf(kek, marker.root, b"wrap", 96)
    wrapped = bytes(a ^ b for a, b in zip(bundle, mask, strict=True))
    unsigned = KeySlot(secret.type, role, empty.salt, wrapped, bytes(32), log_n, p)
    mac = prf(hkdf(kek, marker.root, b"mac"), unsigned.signed_part)
    return KeySlot(secret.type, role, empty.salt, wrapped, mac, log_n, p)
