"""What a driver is told about keeping moments: whose they are, where they go, and how full a place may be for one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

_OWNER = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How full a thin pool may be, in percent, for a snapshot to be made in it."""

    data_percent: float = 90.0
    metadata_percent: float = 75.0


@dataclass(frozen=True, slots=True)
class Keeping:
    """Whose checkpoints they are, and where they go if not where they would go by themselves."""

    owner: str
    """8 hexadecimal digits; empty means that nothing is kept."""
    directory: Path | None = None
    known_as: bytes = b""
    """The volume's identity where it is not its place: a qube's volume stays the same wherever it lies."""
    records: Path | None = None
    """A directory of this owner alone for what must be known again after a kill; None: nothing is written down."""
    limits: PoolLimits = field(default_factory=PoolLimits)

    def __post_init__(self) -> None:
        if self.owner and not _OWNER.fullmatch(self.owner):
            raise ValueError(f"not an owner: {self.owner!r}")
