"""Whole containers: building one from blobs, and opening heads, commits and catalogue blobs (FORMAT 5, 8)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from lamella.base.errors import IntegrityError
from lamella.base.ids import CATALOGUE, ChunkId, DomainId
from lamella.base.signed import Trailer, commit_message, trailer_fault
from lamella.base.trust import Opened, Sealed
from lamella.crypto.chunk_id import identifier
from lamella.crypto.derive import DomainKeys, Keys
from lamella.crypto.seal import PackOpener, PackSealer, new_salt
from lamella.crypto.sign import public_of, sign, verified
from lamella.format import commit, compression, container
from lamella.format.container import Blob, Header, Kind
from lamella.format.cursor import u8, u32
from lamella.stores.base import Store

SealedBlob = tuple[Kind, ChunkId, Sealed, int]
"""Kind, id, sealed bytes, content length."""


_verified = lru_cache(maxsize=256)(verified)
"""Of trailers: all commits of a writer carry the same enrolment."""


@dataclass(frozen=True, slots=True)
class PackHead:
    """The opened head of a container."""

    name: str
    domain_id: DomainId
    header: Header
    blobs: list[Blob]


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
    from lamella.format.encoder import Encoder  # readers compress nothing

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


def open_head(keys: Keys, name: str, head: bytes, bound: bytes = b"") -> PackHead:
    """Open the head of a container from its first bytes (header and directory must be inside).

    Raises IntegrityError.
    """
    header = container.decode_header(head[: container.HEADER_SIZE], name)
    domain_id = keys.domain_of(header.salt, header.hint)
    if domain_id is None:
        raise IntegrityError("a container that does not belong to this repository", obj=name)
    content = PackOpener(keys.domain(domain_id), header, name, bound).directory(head, header)
    return PackHead(name, domain_id, header, container.decode_directory(content, header, name))


def read_head(store: Store, keys: Keys, name: str, size: int) -> PackHead:
    """Fetch and open the head of the container `name` of `size` bytes; its kinds must fit its place.

    Raises IntegrityError.
    """
    if not container.HEADER_SIZE < size <= container.MAX_OBJECT:
        raise IntegrityError("a container of impossible size", obj=name)
    head = store.get(name, 0, min(size, container.FIRST_READ))
    header = container.decode_header(head[: container.HEADER_SIZE], name)
    wanted = container.HEADER_SIZE + header.directory_length
    if wanted > size:
        raise IntegrityError("a container shorter than its directory", obj=name)
    if wanted > len(head):
        head += store.get(name, len(head), wanted - len(head))
    opened = open_head(keys, name, head)
    if container.object_length(opened.blobs) != size:
        raise IntegrityError("a container of the wrong length", obj=name)
    allowed = {Kind.SEGMENT} if opened.domain_id == CATALOGUE else {Kind.CHUNK, Kind.LEAF, Kind.INNER, Kind.DOCUMENT}
    if any(blob.kind not in allowed for blob in opened.blobs):
        raise IntegrityError("a pack with a kind of blob that does not belong there", obj=name)
    return opened


def open_blob(domain: DomainKeys, header: Header, blob: Blob, sealed: bytes, name: str) -> Opened:
    """The content of a pack's blob: authenticated, decoded within bounds, its id recomputed (FORMAT 4).

    Raises IntegrityError.
    """
    return _content(PackOpener(domain, header, name), domain, blob, sealed, name)


def _content(opener: PackOpener, domain: DomainKeys, blob: Blob, sealed: bytes, name: str) -> Opened:
    body = opener.body(blob, sealed)
    content = compression.decode(body, blob.content_length, name)
    if identifier(domain, blob.kind)(content) != blob.id:
        raise IntegrityError("a blob whose content is not what its id says", obj=name)
    return content


def open_whole(keys: Keys, name: str, content: bytes, bound: bytes = b"") -> tuple[PackHead, list[Opened]]:
    """Open a complete container held in memory, padding included, and all its blobs. Raises IntegrityError."""
    head = open_head(keys, name, content, bound)
    container.check_padding(content, head.header, head.blobs, name)
    domain = keys.domain(head.domain_id)
    opener = PackOpener(domain, head.header, name, bound)
    opened = [
        _content(opener, domain, blob, content[blob.offset : blob.offset + blob.sealed_length], name)
        for blob in head.blobs
    ]
    return head, opened


def open_commit(keys: Keys, head: commit.Head, content: bytes) -> commit.Body:
    """Open a commit object: hash, trailer, container, body. Raises IntegrityError, UnknownFormat."""
    sealed, trailer = commit.split_trailer(content, head)
    fault = trailer_fault(keys.marker.signers, head.writer, head.seq, trailer, _verified)
    if fault:
        raise IntegrityError(fault, obj=head.name)
    opened, contents = open_whole(keys, head.name, sealed, commit.bound(head.writer, head.seq))
    if opened.domain_id != CATALOGUE or any(blob.kind != Kind.COMMIT for blob in opened.blobs):
        raise IntegrityError("a commit made of the wrong kinds", obj=head.name)
    return commit.decode_body(b"".join(contents), head)


def build_commit(keys: Keys, seed: bytes, enrolment: bytes, body: commit.Body) -> Sealed:
    """The commit object for a body, of the writer with this seed and enrolment."""
    contents = [(Kind.COMMIT, part) for part in commit.parts(body.encode())]
    sealed, _ = build_single(keys, CATALOGUE, contents, commit.bound(body.writer, body.seq))
    trailer = Trailer(public_of(seed), enrolment, hashlib.sha256(sealed).digest(), b"")
    signature = sign(seed, commit_message(keys.root, body.writer, body.seq, trailer))
    return Sealed(sealed + b"".join(trailer) + signature)
