"""Tables that fit a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import zip_longest

_LEAST = 12
"""Columns that a folded cell gets, however narrow the terminal is."""
_WANTED = 16
"""Columns that the last cell keeps while another one can be folded."""


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
    """The rows of a table, cells spread over as many rows as they need to fit `columns`.

    The last cell is folded first, and cut where it has no blanks; then the widest of the others, at blanks alone.
    """
    if not rows or len(rows[0]) < 2:
        return [list(row) for row in rows]
    widths = _widths(rows, columns or terminal_columns())
    found: list[list[str]] = []
    for row in rows:
        pieces = [_pieces(cell, width) for cell, width in zip(row, widths, strict=True)]
        found += [list(line) for line in zip_longest(*pieces, fillvalue="")]
    return found


def _widths(rows: Sequence[Sequence[str]], columns: int) -> list[int]:
    cells = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in cells]
    words = [max(len(word) for cell in column for word in cell.split(" ")) for column in cells]
    least = [max(_LEAST, word) for word in words]
    last, excess = len(widths) - 1, sum(widths) + 2 * (len(widths) - 1) - columns
    while excess > 0:
        others = [number for number in range(last) if widths[number] > least[number]]
        if widths[last] > (_WANTED if others else _LEAST):
            number = last
        elif others:
            number = max(others, key=widths.__getitem__)
        else:
            break
        widths[number] -= 1
        excess -= 1
    return widths


def _pieces(text: str, room: int) -> list[str]:
    """The text in pieces of at most `room` characters, cut at blanks where there are any."""
    pieces = []
    while len(text) > room:
        blank = text.rfind(" ", 1, room + 1)
        end = room if blank < 0 else blank
        pieces.append(text[:end])
        text = text[end:].removeprefix(" ")
    return [*pieces, text]
