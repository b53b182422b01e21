"""This host's memory of its profiles: the last run, the last good run of each repository, the open troubles."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from lamella.memory.host import Host, HostMemory, Table


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of a run: `step` is the command, `repository` as the profile names it, `code` the exit code."""

    step: str
    repository: str
    code: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class ProfileRecord:
    """The record of one profile; all times in ms since 1970, 0 for never."""

    first_ms: int = 0
    """When this host first ran the profile or looked at it: a profile that never succeeded grows stale from then on."""
    ended_ms: int = 0
    began_ms: int = 0
    """When the run began that did not end yet: it goes on, or it was broken off. 0: the last one ended."""
    steps: tuple[StepRecord, ...] = ()
    """Of the last run that was not postponed."""
    good: dict[str, int] = field(default_factory=dict)
    """By repository: when the last run ended that saved every volume there."""
    volumes: tuple[str, ...] = ()
    """The volumes of the last backup that saved any."""
    troubles: dict[str, int] = field(default_factory=dict)
    """Troubles that were told and are not over, with the time since when."""
    messages: str = ""
    """The profile's hooks and notifications as JSON, for the day when its configuration cannot be read any more."""


def lock_of(host: Host, name: str) -> Path:
    """The file that a run of the profile holds a lock on."""
    return host.state_dir / "profiles" / f"{name}.lock"


def goes_on(host: Host, name: str) -> bool:
    """Whether the profile runs at this moment; its lock is taken for an instant. True if that cannot be told."""
    try:
        with lock_of(host, name).open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class Profiles:
    """The memory of all profiles of this host."""

    def __init__(self, host: Host) -> None:
        memory = HostMemory(host, host.state_dir)
        self._table = Table(memory, "profiles.json", dict[str, ProfileRecord], "profiles")

    def all(self) -> dict[str, ProfileRecord]:
        """Every profile that this host remembers, by name."""
        return self._table.read()

    def of(self, name: str) -> ProfileRecord:
        """The record of one profile."""
        return self.all().get(name, ProfileRecord())

    def change(self, name: str, update: Callable[[ProfileRecord], ProfileRecord]) -> ProfileRecord:
        """Replace one profile's record by what `update` makes of it. Raises RepositoryError."""
        return self._table.change(lambda stored: {**stored, name: update(stored.get(name, ProfileRecord()))})[name]

    def see(self, name: str, now: int, messages: str) -> ProfileRecord:
        """Remember that the profile exists, and how it tells people. Raises RepositoryError."""
        return self.change(name, lambda one: replace(one, first_ms=one.first_ms or now, messages=messages))
