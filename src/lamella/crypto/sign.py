"""Ed25519 (RFC 8032) for commits, enrolments, key slots and deletion records."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def public_of(seed: bytes) -> bytes:
    """The 32-byte public key of a 32-byte seed."""
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    if hasattr(public, "public_bytes_raw"):
        return public.public_bytes_raw()
    # cryptography before 40; importing all of its serialization costs every start some milliseconds
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return public.public_bytes(Encoding.Raw, PublicFormat.Raw)


def sign(seed: bytes, message: bytes) -> bytes:
    """The 64-byte signature of `message`."""
    return Ed25519PrivateKey.from_private_bytes(seed).sign(message)


def verified(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is that of `message` by the holder of `public`; False for malformed keys too."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
