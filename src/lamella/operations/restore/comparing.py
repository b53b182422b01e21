"""Looking whether a target holds a piece of a volume already, without changing it."""

from __future__ import annotations

from contextlib import suppress

from lamella.base.errors import SourceError
from lamella.operations.restore.filling import Filling, adjoining
from lamella.operations.shared.streaming import ChunkBatch
from lamella.packs.tree import SlotRun


class Comparison(Filling):
    """A filling that is asked first."""

    def right_bytes(self, piece: ChunkBatch | SlotRun) -> int | None:
        """The bytes of DATA of a piece that the target holds, None if it holds anything else, or cannot be read."""
        if isinstance(piece, SlotRun):
            with suppress(SourceError):
                return 0 if self._not_zero(*self._stream.span(piece.first, piece.end)) is None else None
            return None
        right = all(len(self._right(run)) == len(run) for run in adjoining(piece.chunks))
        return self._bytes(piece.chunks) if right else None
