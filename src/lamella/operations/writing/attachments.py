"""Attachments of a volume's tree: a note that names the tree, and documents (FORMAT 6)."""

from __future__ import annotations

from lamella.base.ids import ChunkId
from lamella.format import document
from lamella.format.container import Kind
from lamella.format.node import Shape
from lamella.format.records import Document
from lamella.history.catalogue import Snapshot
from lamella.packs.packer import Packer


def put_tree_note(
    packer: Packer, base: Snapshot | None, shape: Shape, root: ChunkId, time_ms: int, volume: str
) -> None:
    """Put the note of a tree, unless the base has the same tree."""
    if base is None or (base.added.root, base.added.size) != (root, shape.size):
        note = document.TreeNote(shape.volume_id, root, shape.size, time_ms, shape.chunk_log2, volume)
        packer.store_node(Kind.DOCUMENT, note.encode())


def put_document(packer: Packer, name: str, content: bytes) -> Document:
    """Put a document; returns its record."""
    parts = tuple(packer.store_node(Kind.DOCUMENT, part) for part in document.parts(content))
    return Document(name, len(content), parts)
