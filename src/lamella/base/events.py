"""Progress of long work, as values; whoever runs the work decides what to show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of one stage of the work. Sizes in bytes; `total_bytes` 0 means unknown.

    A stage of several volumes tells of each at its beginning, with nothing done, so that the sum is known from then on.
    """

    stage: str
    """The stage: "backup", "restore", "compare", "verify", "packs"."""
    volume: str
    done_bytes: int
    total_bytes: int
    stored_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Warned:
    """Something the user should know although the work continues."""

    message: str
    obj: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """A stage has ended for one of `count` volumes. `result` is the operation's own value."""

    count: int
    result: Any


Event = Progress | Warned | Finished


class Reporter(Protocol):
    """Receives events; must return quickly and not raise."""

    def __call__(self, event: Event) -> None: ...


def silent(event: Event) -> None:
    """A reporter that shows nothing."""
