"""Sealing blobs into a container and opening them (FORMAT 4, 5).

A `PackSealer` belongs to one salt. Two different bodies under one key and nonce would give away the XOR of both:
a caller reserves a (kind, id) before it seals it, and for a second one that raises.
"""

from __future__ import annotations

import hashlib
import os
import time
from itertools import count
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from lamella.base.errors import IntegrityError
from lamella.base.ids import ChunkId
from lamella.base.trust import Opened, Sealed
from lamella.crypto.derive import DomainKeys, prf
from lamella.format.container import HEADER_SIZE, Blob, Header, Kind
from lamella.format.cursor import u8, u32, u64

AES_256_GCM, CHACHA20_POLY1305 = 1, 2
_CIPHERS: dict[int, type[AESGCM] | type[ChaCha20Poly1305]] = {
    AES_256_GCM: AESGCM,
    CHACHA20_POLY1305: ChaCha20Poly1305,
}
_NONCE = bytes(12)
_salts_made = count()


def _boot_id() -> bytes:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        return b""


def new_salt() -> bytes:
    """A salt no other container has: 32 bytes, fresh even when a machine image was restored (FORMAT 4)."""
    moment = u64(time.clock_gettime_ns(time.CLOCK_REALTIME)) + u64(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    place = _boot_id() + u32(os.getpid()) + u64(next(_salts_made))
    return hashlib.blake2b(moment + place, key=os.urandom(32), digest_size=32).digest()


class _Cipher:
    """Keys and additional data of one container."""

    __slots__ = ("_aad", "_aead", "_key")

    def __init__(self, keys: DomainKeys, header: Header, bound: bytes) -> None:
        self._aead = _CIPHERS[header.aead]
        self._key = prf(keys.enc, b"pack" + u8(header.aead) + header.salt)
        self._aad = header.bound_part + keys.root + keys.domain_id + bound

    def seal(self, kind: Kind, id_: bytes, body: bytes) -> Sealed:
        return Sealed(self._aead(prf(self._key, u8(kind) + id_)).encrypt(_NONCE, body, self._aad))

    def open(self, kind: Kind, id_: bytes, sealed: bytes, name: str) -> Opened:
        try:
            return Opened(self._aead(prf(self._key, u8(kind) + id_)).decrypt(_NONCE, sealed, self._aad))
        except InvalidTag as error:
            raise IntegrityError("an object that does not authenticate", obj=name) from error

    def directory_id(self, content: bytes) -> bytes:
        return prf(self._key, b"dir" + content)[:24]


class PackSealer:
    """Seals the blobs of one container. Not thread-safe for `reserve`: its owner holds a lock there.

    `bound` ends the additional data: who opens the container must say the same (a commit's writer and number).
    """

    def __init__(self, keys: DomainKeys, salt: bytes, aead: int = AES_256_GCM, bound: bytes = b"") -> None:
        self._cipher = _Cipher(keys, Header(aead, 0, salt, bytes(24)), bound)
        self._reserved: set[tuple[Kind, ChunkId]] = set()
        self.aead = aead
        self.salt = salt

    def reserve(self, kind: Kind, id_: ChunkId) -> None:
        """Claim the right to seal (kind, id) under this salt. Raises RuntimeError if it was claimed before."""
        if (kind, id_) in self._reserved:
            raise RuntimeError(f"{kind.name.lower()} {id_.hex()} would be sealed twice under one salt")
        self._reserved.add((kind, id_))

    def seal(self, kind: Kind, id_: ChunkId, body: bytes) -> Sealed:
        """Seal a body whose (kind, id) this caller reserved."""
        return self._cipher.seal(kind, id_, body)

    def seal_directory(self, content: bytes) -> Sealed:
        """The directory with its id in front. The container is finished by this."""
        id_ = self._cipher.directory_id(content)
        body = u8(0) + u32(len(content)) + content
        return Sealed(id_ + self._cipher.seal(Kind.DIRECTORY, id_, body))


class PackOpener:
    """Opens the directory and blobs of one container, made with the same `bound`."""

    __slots__ = ("_cipher", "_name")

    def __init__(self, keys: DomainKeys, header: Header, name: str, bound: bytes = b"") -> None:
        self._cipher = _Cipher(keys, header, bound)
        self._name = name

    def directory(self, head: bytes, header: Header) -> Opened:
        """The content of the directory that follows the header in `head`. Raises IntegrityError."""
        stored = head[HEADER_SIZE : HEADER_SIZE + header.directory_length]
        if len(stored) != header.directory_length:
            raise IntegrityError("an object that ends within its directory", obj=self._name)
        body = self._cipher.open(Kind.DIRECTORY, stored[:24], stored[24:], self._name)
        content = Opened(body[5:])
        if body[:5] != u8(0) + u32(len(content)) or self._cipher.directory_id(content) != stored[:24]:
            raise IntegrityError("an object whose directory is not in the right form", obj=self._name)
        return content

    def body(self, blob: Blob, sealed: bytes) -> Opened:
        """The body of a blob, authenticated but not decoded. Raises IntegrityError."""
        return self._cipher.open(blob.kind, blob.id, sealed, self._name)
