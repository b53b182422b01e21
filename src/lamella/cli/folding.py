"""Tables that fit a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_LEAST = 12
"""Columns that the last cell gets, however narrow the terminal is."""


def terminal_columns() -> int:
    """The width of the terminal that standard output is; COLUMNS overrides it."""
    wanted = os.environ.get("COLUMNS", "")
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def folded(rows: Sequence[Sequence[str]], columns: int | None = None) -> list[list[str]]:
    """The rows of a table, the last cell of each spread over as many rows as it needs to fit `columns`."""
    if not rows or len(rows[0]) < 2:
        return [list(row) for row in rows]
    others = [max(len(row[number]) for row in rows) for number in range(len(rows[0]) - 1)]
    room = max(_LEAST, (columns or terminal_columns()) - sum(others) - 2 * len(others))
    found: list[list[str]] = []
    for *cells, last in rows:
        first, *more = _pieces(last, room)
        found.append([*cells, first])
        found += [[*[""] * len(cells), piece] for piece in more]
    return found


def _pieces(text: str, room: int) -> list[str]:
    """The text in pieces of at most `room` characters, cut at blanks where there are any."""
    pieces = []
    while len(text) > room:
        blank = text.rfind(" ", 1, room + 1)
        end = room if blank < 0 else blank
        pieces.append(text[:end])
        text = text[end:].removeprefix(" ")
    return [*pieces, text]
