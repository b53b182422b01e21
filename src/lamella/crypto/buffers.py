"""The types of buffers that the installed version of cryptography decrypts."""

from __future__ import annotations

from functools import cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


@cache
def opens_views() -> bool:
    """Whether it decrypts what is no bytes object without a copy: 38, which Debian 12 has, refuses that."""
    try:
        AESGCM(bytes(16)).decrypt(bytes(12), memoryview(bytes(16)), None)
    except InvalidTag:
        return True
    except TypeError:
        return False
    return True
