"""The two keys of an encrypted wyng archive, and the hash by which its chunks are known (format 3, archive.salt)."""

from __future__ import annotations

import hashlib
import hmac
from threading import Lock
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lamella.base.errors import LamellaError, SourceError
from lamella.imports.xchacha import xchacha20, xchacha20_poly1305

CIPHERS: Final = {b"00": "off", b"30": "old", b"32": "ct", b"34": "msr", b"35": "dgr"}
"""By the two characters of the header; how nonces were chosen does not matter to a reader."""
_SLOT: Final = 80
_SALT: Final = slice(10, 74)
SALT_FILE: Final = 4 * _SLOT + 104
_N, _R, _MEMORY = 1 << 19, 8, 640 << 20


class WyngKeys:
    """What opens an encrypted archive. The second key is derived when the first chunk is read: it costs as much again.

    Raises SourceError for salts that are cut off, LamellaError where the machine has no memory for it.
    """

    def __init__(self, passphrase: bytes, cipher: str, salts: bytes) -> None:
        if len(salts) < 4 * _SLOT:
            raise SourceError("the file archive.salt of the archive is cut off", obj="archive.salt")
        self._passphrase = passphrase
        self._salts = [salts[_SLOT * slot :][_SALT] for slot in range(4)]
        self._salt_size = 32 if cipher == "old" else 64
        self.hashes = cipher != "old"
        """Whether the hashes of chunks have a key, too."""
        self._metadata = self._key(1)
        self._lock = Lock()
        self._data: tuple[bytes, bytes] | None = None

    def _key(self, slot: int) -> bytes:
        return _scrypt(self._passphrase, self._salts[slot][: self._salt_size])

    def _for_chunks(self) -> tuple[bytes, bytes]:
        with self._lock:
            if self._data is None:
                key = self._key(0)
                both = HKDF(SHA512(), 128, self._salts[3], b"Wyng-Manifest-Hash0").derive(key)
                self._data = key, both[64:]
        return self._data

    def open_metadata(self, sealed: bytes) -> bytes | None:
        """A file that is authentic by itself; None if it is not."""
        return xchacha20_poly1305(self._metadata, sealed)

    def open_chunk(self, sealed: bytes) -> bytes:
        """A chunk, which its hash must authenticate before it is looked at. Raises ValueError."""
        return xchacha20(self._for_chunks()[0], sealed)

    def chunk_hash(self, content: bytes) -> bytes:
        """The keyed hash of a compressed chunk."""
        return hmac.digest(self._for_chunks()[1], content, "sha256")


def _scrypt(passphrase: bytes, salt: bytes) -> bytes:
    try:
        return hashlib.scrypt(passphrase, salt=salt, n=_N, r=_R, p=1, maxmem=_MEMORY, dklen=32)
    except (MemoryError, ValueError) as error:
        raise LamellaError("not enough memory: the passphrase of the archive needs 512 MiB") from error
