"""What sources have in common that cannot keep moments: every backup of them reads and compares everything."""

from __future__ import annotations

from lamella.delta import Delta
from lamella.errors import CheckpointLost


class Untracked:
    """The keeping side of a source that keeps nothing."""

    def keep(self, checkpoint: str) -> None:
        """Nothing to keep."""

    def drop(self, checkpoint: str) -> None:
        """Nothing to drop."""

    def kept(self) -> list[str]:
        """Nothing is ever kept."""
        return []


class UntrackedMoment:
    """The comparing side of a frozen volume whose driver keeps nothing."""

    @property
    def checkpoint(self) -> str:
        """No moment that could be named."""
        return ""

    def delta_since(self, base: str, grain: int) -> Delta:
        """Always CheckpointLost."""
        raise CheckpointLost("this driver keeps no record of changes")
