"""Reading a volume's data in order, a few MiB at a time: what a restore writes and a verification compares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lamella.base.ids import ChunkId
from lamella.base.trust import Opened
from lamella.format.container import Kind
from lamella.format.node import Shape
from lamella.operations.shared.reading import RANGE
from lamella.operations.shared.selection import Selected
from lamella.packs.tree import Run, Tree
from lamella.repository.repository import Repository


class Piece(NamedTuple):
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

    def pieces(self, *, data_only: bool = False) -> Iterator[Piece | Run]:
        """The volume in order: DATA in pieces of at most one range, and runs that read as zero.

        With `data_only` without those runs; a piece then reaches across them.
        """
        per_piece = max(1, RANGE >> self.shape.chunk_log2)
        chunks: list[tuple[int, ChunkId]] = []
        for run in self._repo.tree_reader(self.domain_id).runs(self.tree):
            if isinstance(run.slot, bytes):
                chunks.append((run.first, run.slot))
                if len(chunks) < per_piece:
                    continue
            elif data_only:
                continue
            if chunks:
                yield Piece(tuple(chunks))
                chunks = []
            if not isinstance(run.slot, bytes):
                yield run
        if chunks:
            yield Piece(tuple(chunks))

    def fetch(self, piece: Piece) -> dict[ChunkId, Opened]:
        """The contents of a piece, each opened and its id recomputed. Raises IntegrityError if any cannot be had."""
        wanted = [(id_, self.shape.chunk_length(chunk)) for chunk, id_ in piece.chunks]
        return self._repo.contents.get_many(self.domain_id, Kind.CHUNK, wanted)

    def span(self, first: int, end: int) -> tuple[int, int]:
        """The bytes of chunks `[first, end)`."""
        return first << self.shape.chunk_log2, min(end << self.shape.chunk_log2, self.shape.size)
