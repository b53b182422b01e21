"""Amounts as options of a few commands take them, and show them: budgets of bytes, shares, ages."""

from __future__ import annotations

import argparse

from lamella.cli.values import number, size


def budget(text: str) -> int:
    """A size; a small number needs a unit, for nobody means 20 bytes by `20`. Raises ArgumentTypeError."""
    found = size(text)
    if found < 1 << 20 and not text.strip()[-1].isalpha():
        raise argparse.ArgumentTypeError(f"{text.strip()!r} means bytes; write for example 20G")
    return found


def percent(text: str) -> float:
    """A share from above 0 to 100. Raises ArgumentTypeError."""
    share = number(text.removesuffix("%"))
    if not 0 < share <= 100:
        raise argparse.ArgumentTypeError(f"not a percentage: {text!r}; write more than 0 and at most 100")
    return share


def age(text: str) -> int:
    """A length of time in whole hours or more (`12h`, `14d`, `2w`), in milliseconds. Raises ArgumentTypeError."""
    units = {"h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
    count, unit = text[:-1], units.get(text[-1:])
    if unit is None or not count.isdecimal() or len(count) > 6:
        raise argparse.ArgumentTypeError(f"not a length of time: {text!r}; write for example 12h, 14d or 2w")
    return int(count) * unit


def shown_age(seconds: int) -> str:
    """The age of something, for people: `now`, `5 min`, `3 h`, `2 d`."""
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return "now"


def shown_ago(age_ms: int) -> str:
    """When something was, for people: `just now`, `5 min ago`."""
    age = shown_age(age_ms // 1000)
    return "just now" if age == "now" else f"{age} ago"
