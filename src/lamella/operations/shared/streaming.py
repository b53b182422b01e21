"""The content of a snapshot of a volume: its data in order, the ids of its chunks, its documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lamella.base.errors import NothingMatched
from lamella.base.ids import ChunkId
from lamella.base.trust import Opened
from lamella.crypto.chunk_id import Identify, identifier
from lamella.format.container import Kind
from lamella.format.node import Shape
from lamella.operations.shared.ranges import RANGE
from lamella.operations.shared.selection import Selected
from lamella.packs.tree import SlotRun, Tree
from lamella.repository.repository import Repository


class ChunkBatch(NamedTuple):
    """DATA chunks near each other, fetched together: numbers and ids."""

    chunks: tuple[tuple[int, ChunkId], ...]


class VolumeStream:
    """One snapshot of a volume. `fetch` may be called from several threads."""

    def __init__(self, repo: Repository, selected: Selected) -> None:
        self._repo = repo
        self.domain_id = selected.snapshot.added.domain_id
        self.tree: Tree = repo.tree(selected.snapshot)

    @property
    def shape(self) -> Shape:
        """The volume's size and grid."""
        return self.tree.shape

    def runs(self) -> Iterator[SlotRun]:
        """The volume's manifest in order."""
        return self._repo.tree_reader(self.domain_id).runs(self.tree)

    def pieces(self, *, data_only: bool = False) -> Iterator[ChunkBatch | SlotRun]:
        """The volume in order: DATA in pieces of at most one range, and runs that read as zero.

        With `data_only` without those runs; a piece then reaches across them.
        """
        per_piece = max(1, RANGE >> self.shape.chunk_log2)
        chunks: list[tuple[int, ChunkId]] = []
        for run in self.runs():
            if isinstance(run.slot, bytes):
                chunks.append((run.first, run.slot))
                if len(chunks) < per_piece:
                    continue
            elif data_only:
                continue
            if chunks:
                yield ChunkBatch(tuple(chunks))
                chunks = []
            if not isinstance(run.slot, bytes):
                yield run
        if chunks:
            yield ChunkBatch(tuple(chunks))

    def decode(self, chunks: Sequence[tuple[int, ChunkId]]) -> Iterator[tuple[ChunkId, Opened]]:
        """The contents of chunks, authentic, their ids not recomputed. Raises IntegrityError if any cannot be had."""
        return self._repo.contents.each(self.domain_id, Kind.CHUNK, self._wanted(chunks), identified=False)

    def fetch(self, piece: ChunkBatch) -> dict[ChunkId, Opened]:
        """The contents of a piece, each opened and its id recomputed. Raises IntegrityError if any cannot be had."""
        return self._repo.contents.get_many(self.domain_id, Kind.CHUNK, self._wanted(piece.chunks))

    def _wanted(self, chunks: Sequence[tuple[int, ChunkId]]) -> list[tuple[ChunkId, int | None]]:
        return [(id_, self.shape.chunk_length(chunk)) for chunk, id_ in chunks]

    def span(self, first: int, end: int) -> tuple[int, int]:
        """The bytes of chunks `[first, end)`."""
        return first << self.shape.chunk_log2, min(end << self.shape.chunk_log2, self.shape.size)


def identify_chunk(repo: Repository, selected: Selected) -> Identify:
    """The id function for the chunks of a snapshot."""
    return identifier(repo.keys.domain(selected.snapshot.added.domain_id), Kind.CHUNK)


def read_document(repo: Repository, selected: Selected, name: str) -> bytes:
    """A document of a snapshot. Raises NothingMatched, IntegrityError."""
    from lamella.format import document  # most snapshots are read for their volumes

    added = selected.snapshot.added
    found = next((row for row in added.documents if row.name == name), None)
    if found is None:
        names = ", ".join(row.name for row in added.documents) or "none"
        raise NothingMatched(f"{selected.text} has no document {name}", obj=name, hint=f"documents: {names}")
    repo.refresh_map()
    get = repo.contents.get
    lengths = document.part_lengths(found.size)
    parts = zip(found.parts, lengths, strict=True)
    return b"".join(document.part_of(get(added.domain_id, Kind.DOCUMENT, part, length), name) for part, length in parts)
