"""The exported key file of one domain (FORMAT 3): what a helper or an emergency needs to open that domain alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lamella.base.errors import IntegrityError
from lamella.base.ids import ChunkId, DomainId, VolumeId
from lamella.format.cursor import Cursor
from lamella.format.layout import CHUNK, HASH, ID, TEXT, U8, U64, many, padded, row

MAGIC = b"LMLDOMK\x01"


class ExportedTree(NamedTuple):
    """A volume's newest manifest, by which it can be restored without reading commits."""

    name: str
    volume_id: VolumeId
    root: ChunkId
    size: int
    chunk_log2: int


class ExportedKeys(NamedTuple):
    """The keys of a domain, bound to the repository by the marker's hash R."""

    id_alg: int
    r: bytes
    domain_id: DomainId
    enc: bytes
    id_key: bytes


def encode(keys: ExportedKeys, trees: Sequence[ExportedTree]) -> bytes:
    """The file."""
    return MAGIC + _KEYS.encode(keys) + _TREES.encode(tuple(trees))


def decode_keys(content: bytes) -> ExportedKeys:
    """The keys in a file without trees, as `encode` makes it. Raises IntegrityError."""
    keys, trees = decode(content)
    if trees:
        raise IntegrityError("domain key file: trees where there are none to be")
    return keys


def decode(content: bytes) -> tuple[ExportedKeys, tuple[ExportedTree, ...]]:
    """Keys and trees of a file, as `encode` makes it. Raises IntegrityError."""
    cursor = Cursor(content, "domain key file")
    if cursor.take(len(MAGIC)) != MAGIC:
        cursor.fail("no domain key magic")
    keys, trees = _KEYS.decode(cursor), _TREES.decode(cursor)
    cursor.end()
    return keys, trees


_KEYS = row(ExportedKeys, padded(U8, 7), HASH, ID, HASH, HASH)
_TREES = many(4, row(ExportedTree, TEXT, ID, CHUNK, U64, U8))
