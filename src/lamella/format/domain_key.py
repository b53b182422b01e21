"""The exported key file of one domain (FORMAT 3): what a helper or an emergency needs to open that domain alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lamella.base.ids import ChunkId, DomainId, VolumeId
from lamella.format.cursor import text, u8, u32, u64

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
    rows = [text(tree.name) + tree.volume_id + tree.root + u64(tree.size) + u8(tree.chunk_log2) for tree in trees]
    head = MAGIC + u8(keys.id_alg) + bytes(7) + keys.r + keys.domain_id + keys.enc + keys.id_key
    return b"".join((head, u32(len(rows)), *rows))
