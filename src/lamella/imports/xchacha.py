"""XChaCha20 and XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03), made of ChaCha20, which `cryptography` has."""

from __future__ import annotations

import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

NONCE_SIZE: Final = 24
TAG_SIZE: Final = 16
_CONSTANTS: Final = struct.unpack("<4I", b"expand 32-byte k")


def _subkey(key: bytes, nonce: bytes) -> bytes:
    """HChaCha20: what the rounds make of the state, which a block of ChaCha20 is after the state was added."""
    block = struct.unpack("<16I", Cipher(ChaCha20(key, nonce), mode=None).encryptor().update(bytes(64)))
    added = (*_CONSTANTS, *struct.unpack("<4I", nonce))
    words = (*block[:4], *block[12:])
    return struct.pack("<8I", *((word - one) & 0xFFFFFFFF for word, one in zip(words, added, strict=True)))


def xchacha20(key: bytes, sealed: bytes) -> bytes:
    """Decrypt what follows the nonce of 24 bytes; whether it is authentic is for a hash to say.

    Raises ValueError if it is shorter than a nonce.
    """
    nonce = sealed[:NONCE_SIZE]
    if len(nonce) < NONCE_SIZE:
        raise ValueError("too short")
    # A counter of 32 bits from 0, and a nonce of 96 bits of which 32 are 0.
    cipher = ChaCha20(_subkey(key, nonce[:16]), bytes(8) + nonce[16:])
    return Cipher(cipher, mode=None).decryptor().update(memoryview(sealed)[NONCE_SIZE:])


def xchacha20_poly1305(key: bytes, sealed: bytes) -> bytes | None:
    """Decrypt what follows the nonce and the tag of 16 bytes; None if it is not authentic."""
    nonce, tag = sealed[:NONCE_SIZE], sealed[NONCE_SIZE : NONCE_SIZE + TAG_SIZE]
    if len(tag) < TAG_SIZE:
        return None
    try:
        opened = ChaCha20Poly1305(_subkey(key, nonce[:16]))
        return opened.decrypt(bytes(4) + nonce[16:], sealed[NONCE_SIZE + TAG_SIZE :] + tag, None)
    except InvalidTag:
        return None
