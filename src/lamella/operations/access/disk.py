"""The disk behind a server of block devices: reading, and writing where clients may write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from lamella.operations.access.view import Part, Stretch


class Disk(Protocol):
    """Bytes at any offset. Thread-safe; `SnapshotView` is one. Ranges lie within the disk.

    Everything raises IntegrityError for damage, StoreError and OSError for what holds the bytes.
    """

    size: int
    """Bytes."""

    def parts(self, offset: int, length: int) -> Iterator[Part]:
        """The bytes of a range in parts, each at most 1 MiB."""

    def expect(self, offset: int, length: int) -> None:
        """The range will soon be read."""

    def extents(self, offset: int, length: int, most: int | None = None) -> list[Stretch]:
        """The stretches of the range; at most so many of the first ones."""


class ReadableDisk(Disk, Protocol):
    """A disk that others are laid over."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range at once."""


@runtime_checkable
class WritableDisk(Disk, Protocol):
    """A disk that can be written to. What a call returned from, all later reads see; `flush` makes it durable."""

    def write(self, offset: int, content: memoryview) -> None:
        """Put bytes there. Raises OSError with ENOSPC where there is no room for them."""

    def zero(self, offset: int, length: int, *, allocate: bool) -> None:
        """Make a range read as zeros; with `allocate` later writes to it find room."""

    def trim(self, offset: int, length: int) -> None:
        """The content of the range is not needed any more."""

    def flush(self) -> None:
        """Return when everything that was written survives a power cut."""
