"""The bytes of a snapshot, read in small parts by an operation that needs a few of them."""

from __future__ import annotations

from lamella.base.trust import Opened
from lamella.format.container import Kind
from lamella.history.catalogue import Snapshot
from lamella.repository.repository import Repository

_KEPT = 8
"""Chunks that are kept, the ones decoded last."""


class SnapshotBytes:
    """Reads one snapshot in one thread."""

    def __init__(self, repo: Repository, snapshot: Snapshot) -> None:
        self._contents = repo.contents
        self._domain_id = snapshot.added.domain_id
        self._tree = repo.tree(snapshot)
        self._nodes = repo.tree_reader(self._domain_id)
        self._chunks: dict[int, Opened | bytes] = {}
        self.size = self._tree.shape.size
        """Bytes of the volume."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes `[offset, offset + length)`; fewer where the volume ends. Raises IntegrityError, StoreError."""
        log2, end = self._tree.shape.chunk_log2, min(offset + length, self.size)
        parts = []
        for chunk in range(offset >> log2, -(-end >> log2)):
            first = chunk << log2
            parts.append(self._chunk(chunk)[max(offset - first, 0) : end - first])
        return b"".join(parts)

    def _chunk(self, chunk: int) -> Opened | bytes:
        if chunk not in self._chunks:
            while len(self._chunks) >= _KEPT:
                del self._chunks[next(iter(self._chunks))]
            length = self._tree.shape.chunk_length(chunk)
            slot = next(iter(self._nodes.runs(self._tree, chunk, chunk + 1))).slot
            content = self._contents.get(self._domain_id, Kind.CHUNK, slot, length) if isinstance(slot, bytes) else None
            self._chunks[chunk] = bytes(length) if content is None else content
        return self._chunks[chunk]
