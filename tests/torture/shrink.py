"""Shortening a history after which something is wrong, by leaving steps out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.torture.run import Complaint, Figures
from tests.torture.steps import History

MOST = 80
"""How many shorter histories are tried at most: each takes a second."""
Tell = Callable[[History, Figures], list[Complaint]]


def shrunk(history: History, complaint: Complaint, tell: Tell) -> tuple[History, Complaint]:
    """A history as short as could be found after which a step of the same kind goes wrong in the same way."""
    numbers = [step.number for step in history.steps]
    best = replace(history, steps=history.steps[: numbers.index(complaint.step.number) + 1])
    tries = iter(range(MOST))
    size = len(best.steps) // 2
    while size:
        start, better = 0, False
        while start < len(best.steps):
            if next(tries, None) is None:
                return best, complaint
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
