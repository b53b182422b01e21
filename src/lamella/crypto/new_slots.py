"""Making a repository's keys and key slots (FORMAT 2, 3)."""

from __future__ import annotations

import os
from dataclasses import replace

from lamella.base.errors import UsageError
from lamella.base.ids import RepoId
from lamella.base.signed import slot_message
from lamella.crypto.derive import Bundle, hkdf, prf
from lamella.crypto.sign import public_of, sign
from lamella.crypto.slots import Secret
from lamella.format.keyslot import MAX_LOG_N, MIN_LOG_N, KeySlot, Role, SlotType
from lamella.format.marker import Marker

DEFAULT_LOG_N = 18
MIN_WRITTEN_LOG_N = 17


def new_keys(id_alg: int) -> tuple[Marker, Bundle]:
    """The marker and the keys of a repository that is to be made."""
    prune, enrol = os.urandom(32), os.urandom(32)
    mark = Marker(RepoId(os.urandom(16)), public_of(prune), public_of(enrol), id_alg)
    return mark, Bundle(os.urandom(32), enrol, prune)


def wrap(marker: Marker, secret: Secret, bundle: Bundle, *, admin: bool, log_n: int = DEFAULT_LOG_N) -> KeySlot:
    """A new slot for `secret`, an admin's or a writer's. Raises UsageError without the prune key: it signs slots."""
    if bundle.prune_seed is None:
        raise UsageError("only an admin's secret can make key slots")
    role = Role.ADMIN if admin else Role.WRITER
    by_passphrase = secret.type == SlotType.PASSPHRASE
    if by_passphrase and not MIN_LOG_N <= log_n <= MAX_LOG_N:
        raise UsageError(f"the key derivation cost is {MIN_LOG_N} to {MAX_LOG_N}, not {log_n}")
    log_n, p = (log_n, 1) if by_passphrase else (0, 0)
    slot = KeySlot(secret.type, role, os.urandom(32), bytes(96), bytes(32), bytes(64), log_n, p)
    kek = secret.kek(marker.root, slot)
    content = bundle.data_root + (bundle.prune_seed if admin else bytes(32)) + bundle.enrol_seed
    mask = hkdf(kek, marker.root, b"wrap", 96)
    slot = replace(slot, wrapped=bytes(a ^ b for a, b in zip(content, mask, strict=True)))
    slot = replace(slot, mac=prf(hkdf(kek, marker.root, b"mac"), slot.wrapping))
    return replace(slot, signature=sign(bundle.prune_seed, slot_message(marker.root, slot.encode())))
