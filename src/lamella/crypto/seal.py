"""Sealing blobs into a container (FORMAT 4, 5). `unseal` opens them.

A `PackSealer` belongs to one salt. Two different bodies under one key and nonce would give away the XOR of both:
a caller reserves a (kind, id) before it seals it, and for a second one that raises.
"""

from __future__ import annotations

import hashlib
import os
import time
from itertools import count
from pathlib import Path

from lamella.base.ids import ChunkId
from lamella.base.trust import Sealed
from lamella.crypto.derive import DomainKeys
from lamella.crypto.unseal import AES_256_GCM, Cipher
from lamella.format.container import Header, Kind
from lamella.format.cursor import u8, u32, u64

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


class PackSealer:
    """Seals the blobs of one container. Not thread-safe for `reserve`: its owner holds a lock there.

    `bound` ends the additional data: who opens the container must say the same (a commit's writer and number).
    """

    def __init__(self, keys: DomainKeys, salt: bytes, aead: int = AES_256_GCM, bound: bytes = b"") -> None:
        self._cipher = Cipher(keys, Header(aead, 0, salt, bytes(24)), bound)
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
