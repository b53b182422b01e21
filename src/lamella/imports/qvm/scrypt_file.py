"""Files of scrypt(1), format 0: a header that proves the passphrase, AES-256-CTR, and an HMAC at the end.

Nothing is decrypted before all of the file was authenticated.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable, Iterator
from typing import Final

from lamella.base.errors import KeyRefused, LamellaError, SourceError

HEAD_BYTES: Final = 96
TAIL_BYTES: Final = 32
_MAGIC: Final = b"scrypt\0"
_PARAMETERS: Final = struct.Struct(">BII")
_SUM_AT, _MAC_AT = 48, 64
_MOST_LOG2: Final = 22
_MOST_MEMORY: Final = 4 << 30
_MOST_WORK: Final = 1 << 27
"""N * r * p: some minutes of one processor."""
_PIECE: Final = 1 << 20

Key = Callable[[bytes, int, int, int], bytes]
"""64 bytes of scrypt for a salt and N, r, p."""


def scrypt_key(passphrase: bytes) -> Key:
    """The keys of a passphrase. Raises LamellaError where there is no memory for them."""

    def key(salt: bytes, n: int, r: int, p: int) -> bytes:
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

        try:
            return Scrypt(salt=salt, length=64, n=n, r=r, p=p).derive(passphrase)
        except MemoryError as error:
            raise LamellaError(f"opening this backup takes {128 * n * r >> 20} MiB of memory") from error

    return key


def decrypted(content: bytes, key: Key, name: str) -> Iterator[memoryview]:
    """The plaintext in pieces. Raises KeyRefused, SourceError; all of it before the first piece."""
    log2, r, p = _parameters(content, name)
    derived = key(content[16:48], 1 << log2, r, p)
    proof = hmac.digest(derived[32:], content[:_MAC_AT], "sha256")
    if not hmac.compare_digest(proof, content[_MAC_AT:HEAD_BYTES]):
        raise KeyRefused("the passphrase is wrong", obj=name)
    mac = hmac.new(derived[32:], memoryview(content)[:-TAIL_BYTES], "sha256")
    if not hmac.compare_digest(mac.digest(), content[-TAIL_BYTES:]):
        raise SourceError(f"{name} is damaged, or was changed", obj=name)
    return _plaintext(content, derived[:32])


def _plaintext(content: bytes, key: bytes) -> Iterator[memoryview]:
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import CTR

    cipher, view = Cipher(AES(key), CTR(bytes(16))).decryptor(), memoryview(content)
    for start in range(HEAD_BYTES, len(content) - TAIL_BYTES, _PIECE):
        yield memoryview(cipher.update(view[start : min(start + _PIECE, len(content) - TAIL_BYTES)]))


def _parameters(content: bytes, name: str) -> tuple[int, int, int]:
    """log2 N, r and p, if this is such a file. Raises SourceError."""
    if len(content) < HEAD_BYTES + TAIL_BYTES or content[:7] != _MAGIC:
        raise SourceError(f"{name} is no file of scrypt", obj=name)
    if hashlib.sha256(content[:_SUM_AT]).digest()[:16] != content[_SUM_AT:_MAC_AT]:
        raise SourceError(f"the header of {name} is damaged", obj=name)
    log2, r, p = _PARAMETERS.unpack_from(content, 7)
    if not 1 <= log2 <= _MOST_LOG2 or not r or not p or r * p >= 1 << 30:
        raise SourceError(f"{name} asks for scrypt with parameters that cannot be", obj=name)
    if 128 * r << log2 > _MOST_MEMORY or r * p << log2 > _MOST_WORK:
        raise SourceError(f"{name} asks for more memory or time than any backup needs", obj=name)
    return log2, r, p
