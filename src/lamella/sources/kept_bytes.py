"""Sources that can read the moments they kept."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable


class KeptBytes(Protocol):
    """A moment that was kept. `read_into` may be called from several threads."""

    @property
    def size(self) -> int:
        """Bytes of the volume at that moment."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`. Raises SourceError if it cannot be filled completely."""


@runtime_checkable
class Remembering(Protocol):
    """A source whose driver can read what it kept."""

    def kept_bytes(self, checkpoint: str) -> AbstractContextManager[KeptBytes]:
        """The bytes of a kept moment. Raises CheckpointLost unless it is exactly what was kept, SourceError."""
