"""`[media.NAME]` of the configuration (docs/decisions/0089)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MediaSet:
    """One `[media.NAME]`: repositories that take turns, each on a medium of its own (docs/decisions/0089)."""

    repositories: tuple[str, ...]
    stale_after: int = 14 * 86_400_000
    """Milliseconds without a backup to any of them after which somebody is told."""

    @property
    def turn_ms(self) -> int:
        """So old the newest backup on one of them may be: each has its turn within that time."""
        return self.stale_after * len(self.repositories)
