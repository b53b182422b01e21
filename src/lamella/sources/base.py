"""The Source contract: one local volume, frozen, read, and asked what changed since a checkpoint.

A source knows byte ranges only: no repository, no keys. Drivers translate operating system errors into SourceError.
`lamella_kit.source_contract` is the contract as a test suite.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lamella.base.delta import Delta
    from lamella.base.extents import Extent

_OWNER = re.compile(r"[0-9a-f]{8}")


class Consistency(IntEnum):
    """The kind of moment that a frozen volume shows (FORMAT 6)."""

    UNKNOWN = 0
    """No moment at all: read while it could change."""
    LIVE = 1
    """One moment of a running system, as after a power cut."""
    QUIESCED = 2
    """One moment, with the writers asked to settle before."""
    HALTED = 3
    """Nobody had the volume open for writing."""
    COMMITTED = 4
    """The state of the last orderly shutdown."""
    CHANGED = 5
    """No moment at all: somebody was seen writing while it was read."""


class FrozenVolume(Protocol):
    """A read-only view of a volume at one moment. `read_into` may be called from several threads."""

    @property
    def size(self) -> int:
        """Bytes of the volume at the frozen moment."""

    @property
    def checkpoint(self) -> str:
        """This moment as text that its driver understands later; empty if the driver cannot keep moments."""

    def consistency(self) -> Consistency:
        """The consistency that was seen, asked after the last read.

        Raises SourceError if the volume changed its size or vanished while it was read.
        """

    def allocated(self) -> Iterator[Extent]:
        """Yield ascending ranges that may hold data; everything else reads as zero and is known unallocated."""

    def delta_since(self, base: str, grain: int) -> Delta:
        """Possible changes since the checkpoint `base`, on a grid of `grain` bytes (a power of two, 64 KiB to 4 MiB).

        May say too much, never too little; reads metadata only. Raises CheckpointLost if `base` is gone, foreign,
        reused, edited or not to be compared for any other reason: a driver never guesses.
        """

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`. Raises SourceError if it cannot be filled completely."""


class Source(Protocol):
    """One local volume."""

    @property
    def driver(self) -> str:
        """The driver's name as shown to users."""

    @property
    def tracks(self) -> bool:
        """Whether moments can be kept at all, so that a later run may read only what changed."""

    @property
    def identity(self) -> bytes:
        """The identity that makes this the same volume next time (design: volume identity); at most 8192 bytes."""

    @property
    def default_name(self) -> str:
        """The name the volume gets when the user gives none."""

    def freeze(self) -> AbstractContextManager[FrozenVolume]:
        """One read-only moment, undone on every exit path unless `keep` was called for it.

        Raises SourceError; SourceAtRisk before anything was changed if freezing would endanger the source, of the kind
        SpacePinned if moments that were kept take some of the space that is short.
        """

    def keep(self, checkpoint: str) -> None:
        """Let a frozen moment of this source outlive its context, so that the next delta can be taken from it."""

    def drop(self, checkpoint: str) -> None:
        """Remove a checkpoint; no error if it is gone, nothing happens if it is not ours. Raises SourceError."""

    def kept(self) -> list[str]:
        """Every moment of this source that this host kept and that is still there, leftovers of a kill included.

        Oldest first where moments take space (SpacePinned).
        """


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Limits of a thin pool in percent: no snapshot is made in a fuller pool."""

    data_percent: float = 90.0
    metadata_percent: float = 75.0


@dataclass(frozen=True, slots=True)
class Keeping:
    """The owner of the checkpoints, and their place if it is not the default."""

    owner: str
    """8 hexadecimal digits; empty means that nothing is kept."""
    directory: Path | None = None
    known_as: bytes = b""
    """The volume's identity where it is not its place: a qube's volume stays the same wherever it lies."""
    records: Path | None = None
    """A directory of this owner alone for what must be known again after a kill; None: nothing is written down."""
    limits: PoolLimits = field(default_factory=PoolLimits)
    backing_dirs: tuple[Path, ...] = ()
    """Where files may lie that a disk image needs, beside the image's own directory."""

    def __post_init__(self) -> None:
        if self.owner and not _OWNER.fullmatch(self.owner):
            raise ValueError(f"not an owner: {self.owner!r}")
