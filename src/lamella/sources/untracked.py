"""What sources have in common that cannot keep moments: every backup of them reads and compares everything."""

from __future__ import annotations

from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost


class Untracked:
    """The keeping side of a source that keeps nothing."""

    @property
    def tracks(self) -> bool:
        """No moment is ever kept."""
        return False

    def keep(self, checkpoint: str) -> None:
        """Nothing to keep."""

    def drop(self, checkpoint: str) -> None:
        """Nothing to drop."""

    def kept(self) -> list[str]:
        """Nothing is ever kept."""
        return []


class UntrackedMoment:
    """The comparing side of a frozen volume that cannot be kept; `why_untracked` says why, for whoever asks for a
    delta.
    """

    why_untracked = "this driver keeps no record of changes"

    @property
    def checkpoint(self) -> str:
        """No moment that could be named."""
        return ""

    def delta_since(self, base: str, grain: int) -> Delta:
        """Always CheckpointLost."""
        raise CheckpointLost(self.why_untracked)
