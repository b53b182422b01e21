"""Progress of long work, as values; whoever runs the work decides what to show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one stage of the work has come. Sizes in bytes; `total_bytes` 0 means unknown."""

    stage: str
    """What is being done: "backup", "restore", "compare", "verify"."""
    volume: str
    done_bytes: int
    total_bytes: int
    stored_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Warned:
    """Something the user should know although the work goes on."""

    message: str
    obj: str = ""


Event = Progress | Warned


class Reporter(Protocol):
    """Receives events; must return quickly and not raise."""

    def __call__(self, event: Event) -> None: ...


def silent(event: Event) -> None:
    """A reporter that shows nothing."""
