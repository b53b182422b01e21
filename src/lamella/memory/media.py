"""This host's memory of media that take turns: when each was here, and when it got its last whole backup."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lamella.memory.host import Host, HostMemory, Table


@dataclass(frozen=True, slots=True)
class MediumRecord:
    """The record of one medium; times in ms since 1970, 0 for never."""

    seen_ms: int = 0
    saved_ms: int = 0
    """When the last backup ended that saved every volume there."""


class MediaMemory:
    """The memory of all media of this host, by the id of the repository on them: 32 hexadecimal digits."""

    def __init__(self, host: Host) -> None:
        self._memory = HostMemory(host, host.state_dir)
        self._table = Table(self._memory, "media.json", dict[str, MediumRecord], "media")

    def of(self, repo_id: str) -> MediumRecord:
        """The record of one medium."""
        return self._table.read().get(repo_id, MediumRecord())

    def saved(self, repo_id: str, now: int) -> None:
        """A backup to this medium is whole. What cannot be remembered is reported: no work depends on it."""
        self._change(repo_id, lambda _: MediumRecord(now, now))

    def seen(self, repo_id: str, now: int) -> None:
        """The medium is here."""
        self._change(repo_id, lambda before: replace(before, seen_ms=now))

    def _change(self, repo_id: str, changed: Callable[[MediumRecord], MediumRecord]) -> None:
        """What was there is read under the same lock: a backup may just have ended."""
        with self._memory.may_fail():
            self._table.change(lambda stored: {**stored, repo_id: changed(stored.get(repo_id, MediumRecord()))})
