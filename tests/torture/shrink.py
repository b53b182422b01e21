"""Shortening a history after which something is wrong, by leaving steps out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from tests.torture.run import Complaint, Figures
from tests.torture.steps import History

SECONDS = 60
"""How long a search for a shorter history takes at most."""


Tell = Callable[[History, Figures], list[Complaint]]


def shrunk(history: History, complaint: Complaint, tell: Tell, seconds: float = SECONDS) -> tuple[History, Complaint]:
    """A history as short as could be found after which a step of the same kind goes wrong in the same way."""
    ends = time.monotonic() + seconds
    numbers = [step.number for step in history.steps]
    best = replace(history, steps=history.steps[: numbers.index(complaint.step.number) + 1])
    size = len(best.steps) // 2
    while size and time.monotonic() < ends:
        start, better = 0, False
        while start < len(best.steps) and time.monotonic() < ends:
            shorter = replace(best, steps=best.steps[:start] + best.steps[start + size :])
            found = [one for one in tell(shorter, Figures()) if _alike(one, complaint)]
            if found:
                best, complaint, better = shorter, found[0], True
            else:
                start += size
        size = size if better and size == 1 else size // 2
    return best, complaint


def _alike(one: Complaint, other: Complaint) -> bool:
    """The same kind of step, and the same words but for names and numbers."""
    return one.step.word == other.step.word and _words(one.text) == _words(other.text)


def _words(text: str) -> list[str]:
    return [word for word in text.rpartition("): ")[2].split() if word.isalpha()]
