"""Building containers: from sealed blobs, from a few contents, and commits (FORMAT 5, 8). `containers` opens them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from lamella.base.errors import RepositoryError
from lamella.base.ids import CATALOGUE, ChunkId, DomainId
from lamella.base.signed import Trailer, commit_message
from lamella.base.trust import Sealed
from lamella.crypto.chunk_id import identifier
from lamella.crypto.derive import Keys
from lamella.crypto.seal import PackSealer, new_salt
from lamella.crypto.sign import public_of, sign
from lamella.format import commit, compression, container
from lamella.format.container import Header, Kind
from lamella.format.cursor import u8, u32
from lamella.format.encoder import Encoder
from lamella.format.records import MAX_RECORDS

SealedBlob = tuple[Kind, ChunkId, Sealed, int]
"""Kind, id, sealed bytes, content length."""


def raw_body(content: bytes) -> bytes:
    """A body that is not compressed."""
    return u8(compression.Codec.RAW) + u32(len(content)) + content


def build(keys: Keys, domain_id: DomainId, sealer: PackSealer, blobs: Sequence[SealedBlob]) -> tuple[Sealed, Header]:
    """Put a container together from blobs sealed by `sealer`."""
    content = container.encode_directory([(kind, id_, len(sealed), rlen) for kind, id_, sealed, rlen in blobs])
    directory = sealer.seal_directory(content)
    header = Header(sealer.aead, len(directory), sealer.salt, keys.hint(domain_id, sealer.salt))
    pieces: list[bytes] = [header.encode(), directory]
    position = container.HEADER_SIZE + len(directory)
    for _, _, sealed, _ in blobs:
        padding = -position % 16
        pieces += (bytes(padding), sealed)
        position += padding + len(sealed)
    return Sealed(b"".join(pieces)), header


def build_single(
    keys: Keys, domain_id: DomainId, contents: Sequence[tuple[Kind, bytes]], bound: bytes = b""
) -> tuple[Sealed, list[ChunkId]]:
    """A container of a few contents under a fresh salt, and their ids. Equal contents are stored once.

    They are compressed with zlib: every reader has it, and what is in the catalogue is not much.
    """
    domain = keys.domain(domain_id)
    encoder = Encoder("portable")
    sealer = PackSealer(domain, new_salt(), bound=bound)
    blobs: list[SealedBlob] = []
    ids: list[ChunkId] = []
    for kind, content in contents:
        id_ = identifier(domain, kind)(content)
        if id_ not in ids:
            sealer.reserve(kind, id_)
            blobs.append((kind, id_, sealer.seal(kind, id_, encoder.encode(content)), len(content)))
        ids.append(id_)
    return build(keys, domain_id, sealer, blobs)[0], ids


def build_commit(keys: Keys, seed: bytes, enrolment: bytes, body: commit.Body) -> Sealed:
    """The commit object for a body, of the writer with this seed and enrolment.

    Raises RepositoryError for more than readers take.
    """
    encoded = body.encode()
    if len(encoded) > container.MAX_OBJECT or len(body.records) > MAX_RECORDS:
        raise RepositoryError("this is too much for one commit", obj=commit.Head(body.writer, body.seq, b"").name)
    contents = [(Kind.COMMIT, part) for part in commit.parts(encoded)]
    sealed, _ = build_single(keys, CATALOGUE, contents, commit.bound(body.writer, body.seq))
    trailer = Trailer(public_of(seed), enrolment, hashlib.sha256(sealed).digest(), b"")
    signature = sign(seed, commit_message(keys.root, body.writer, body.seq, trailer))
    return Sealed(sealed + b"".join(trailer) + signature)
