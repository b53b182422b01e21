"""Keyed ids of contents (FORMAT 4)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from lamella.base.ids import ChunkId
from lamella.crypto.derive import DomainKeys
from lamella.format.container import Kind
from lamella.format.cursor import u8
from lamella.format.marker import BLAKE2B

Content = bytes | bytearray | memoryview
Identify = Callable[[Content], ChunkId]


def identifier(keys: DomainKeys, kind: Kind) -> Identify:
    """A function from content to id for one domain and kind. It may be called from several threads."""
    prefix = b"lml1" + u8(kind)
    if keys.id_alg == BLAKE2B:

        def blake(content: Content) -> ChunkId:
            digest = hashlib.blake2b(content, digest_size=24, key=keys.id_key, person=prefix + bytes(11)).digest()
            return ChunkId(digest)

        return blake
    # Copying a started HMAC saves the key schedule and the copy of the content behind its prefix.
    started = hmac.new(keys.id_key, prefix, "sha256")

    def hmac_sha256(content: Content) -> ChunkId:
        state = started.copy()
        state.update(content)
        return ChunkId(state.digest()[:24])

    return hmac_sha256
