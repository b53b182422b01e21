"""The key file of Proxmox Backup: JSON with a key, which a passphrase may protect."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lamella.base.errors import KeyRefused, LamellaError, UsageError
from lamella.imports.pbs.blob import PbsKey

MAX_KEY_FILE: Final = 64 << 10
_KEY: Final = 32
_MOST_MEMORY: Final = 1 << 30
_MOST_ROUNDS: Final = 10_000_000


def read_key(content: bytes, passphrase: Callable[[], bytes]) -> PbsKey:
    """The key in a file; `passphrase` is asked if it is protected.

    Raises UsageError for what is no key file, KeyRefused for a wrong passphrase, LamellaError without memory for it.
    """
    try:
        found = json.loads(content)
        data, kdf = base64.b64decode(found["data"], validate=True), found.get("kdf")
        fingerprint = found.get("fingerprint")
        key = data if kdf is None else _opened(data, kdf, passphrase)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError("not a key file of Proxmox Backup") from error
    if len(key) != _KEY:
        raise UsageError("not a key file of Proxmox Backup: the key in it has another length")
    made = PbsKey(key)
    if fingerprint is not None and str(fingerprint).replace(":", "") != made.fingerprint.hex():
        raise UsageError("the key file is damaged: its key has another fingerprint")
    return made


def _opened(data: bytes, kdf: Any, passphrase: Callable[[], bytes]) -> bytes:  # noqa: ANN401  (parsed JSON)
    derive = _derivation(kdf)
    try:
        return AESGCM(derive(passphrase())).decrypt(data[:16], data[32:] + data[16:32], b"")
    except InvalidTag as error:
        raise KeyRefused("the passphrase does not open the key file") from error


def _derivation(kdf: Any) -> Callable[[bytes], bytes]:  # noqa: ANN401
    """How a passphrase becomes a key. Raises ValueError, KeyError, TypeError for what the program never writes."""
    ((name, numbers),) = kdf.items()
    salt = base64.b64decode(numbers["salt"], validate=True)
    if name == "Scrypt":
        n, r, p = (int(numbers[one]) for one in "nrp")
        if n.bit_count() != 1 or not (1 <= r <= 64 and 1 <= p <= 64 and 128 * n * r <= _MOST_MEMORY):
            raise ValueError("numbers out of range")
        return lambda secret: _scrypt(secret, salt, n, r, p)
    rounds = int(numbers["iter"])
    if name != "PBKDF2" or not 1 <= rounds <= _MOST_ROUNDS:
        raise ValueError("numbers out of range")
    return lambda secret: hashlib.pbkdf2_hmac("sha256", secret, salt, rounds)


def _scrypt(secret: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    try:
        return hashlib.scrypt(secret, salt=salt, n=n, r=r, p=p, maxmem=128 * r * (n + p + 2) + (1 << 20), dklen=_KEY)
    except (MemoryError, ValueError) as error:
        raise LamellaError("not enough memory for the passphrase of the key file") from error
