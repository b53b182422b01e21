"""Recovery keys as people write them (FORMAT 3). Loaded where one is made, shown or typed."""

from __future__ import annotations

import base64
import hashlib
import os

from lamella.base.errors import KeyRefused
from lamella.crypto.slots import Secret
from lamella.format.keyslot import SlotType


def _checksum(key: bytes) -> bytes:
    """What the written form of a recovery key carries to find typing mistakes."""
    return hashlib.sha256(b"lamella recovery" + key).digest()[:3]


def recovery_key(text: str) -> Secret:
    """Read a recovery key as a person typed it. Raises KeyRefused when its checksum does not fit."""
    plain = "".join(text.split()).replace("-", "").upper().translate(str.maketrans("018", "OIB"))
    try:
        raw = base64.b32decode(plain)
    except ValueError as error:
        raise KeyRefused("not a recovery key: it has 56 letters and digits") from error
    if len(raw) != 35 or raw[32:] != _checksum(raw[:32]):
        raise KeyRefused("the recovery key has a typing mistake: its checksum does not fit")
    return Secret(SlotType.RECOVERY, raw[:32])


def new_recovery_key() -> Secret:
    """A fresh random recovery key."""
    return Secret(SlotType.RECOVERY, os.urandom(32))


def recovery_text(secret: Secret) -> str:
    """A recovery key as 14 groups of 4 characters."""
    text = base64.b32encode(secret.value + _checksum(secret.value)).decode("ascii")
    return "-".join(text[start : start + 4] for start in range(0, len(text), 4))
