"""Sealing what this host keeps for itself in its cache: nobody else reads it, and nothing else is taken for it."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lamella.base.errors import IntegrityError
from lamella.base.trust import Opened, Sealed
from lamella.crypto.derive import Keys, prf

_SALT = 32
_NONCE = bytes(12)  # each message has a key of its own


def seal_local(keys: Keys, purpose: str, about: bytes, content: bytes) -> Sealed:
    """Seal `content` for this purpose; it opens only together with what it is about."""
    # A salt that follows from all of it: no key seals two contents, whatever the random numbers.
    salt = prf(keys.local_key(purpose), b"salt" + about + content)
    return Sealed(salt + _cipher(keys, purpose, salt).encrypt(_NONCE, content, about))


def open_local(keys: Keys, purpose: str, about: bytes, sealed: bytes) -> Opened:
    """Authenticate and open. Raises IntegrityError."""
    try:
        return Opened(_cipher(keys, purpose, sealed[:_SALT]).decrypt(_NONCE, sealed[_SALT:], about))
    except InvalidTag as error:
        raise IntegrityError("what this host kept does not authenticate") from error


def _cipher(keys: Keys, purpose: str, salt: bytes) -> AESGCM:
    return AESGCM(prf(keys.local_key(purpose), b"key" + salt))
