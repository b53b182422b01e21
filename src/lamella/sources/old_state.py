"""What a restore does to what is at its target."""

from __future__ import annotations

from enum import Enum


class OldState(Enum):
    """What becomes of what is at the target."""

    NONE = 0
    """Nothing is there."""
    REPLACED = 1
    """It stays until the restored volume has been compared, and is replaced then."""
    LOST = 2
    """It is overwritten where it lies."""
