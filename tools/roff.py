"""Text as roff (groff_man(7)), and Markdown as far as this project's documents use it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_BULLET: Final = r"\(bu"
_SPACE: Final = r"\ "


def text(plain: str) -> str:
    """Text as roff: nothing in it is a request or an escape."""
    escaped = plain.rstrip("\n").replace("\\", r"\e").replace("-", r"\-").replace("%%", "%")
    return "\n".join(rf"\&{line}" if line.startswith((".", "'")) else line for line in escaped.split("\n"))


def terms(rows: dict[str, str]) -> list[str]:
    """A list of terms and what they mean."""
    return [line for term, meaning in rows.items() for line in (".TP", rf"\fB{text(term)}\fR", text(meaning))]


def literal(lines: list[str]) -> list[str]:
    """Lines as they are."""
    return [".PP", ".RS 4", ".nf", *map(text, lines), ".fi", ".RE"]


def markdown(document: str) -> Iterator[str]:
    """Headings, paragraphs, lists, tables and indented code of a document without its title."""
    for block in re.split(r"\n(?:[ \t]*\n)+", document.strip("\n")):
        lines = block.split("\n")
        first = lines[0]
        if first.startswith("# "):
            continue
        if first.startswith("#"):
            yield rf"{'.SH' if first.startswith('## ') else '.SS'} {_inline(first.lstrip('# '))}"
            lines = lines[1:]
        if all(line.startswith("    ") for line in lines):
            yield from literal([line[4:] for line in lines])
        elif lines and lines[0].startswith("|"):
            yield from _table(lines)
        elif lines:
            yield from _prose(lines)


def _prose(lines: list[str]) -> Iterator[str]:
    yield ".PP"
    for line in lines:
        if line.lstrip().startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            yield from (".br", _inline(": ".join(cells)))
            continue
        listed = re.match(r"\s*(\*|-|\d+\.)\s+(.*)", line)
        if listed:
            mark = text(listed[1]) if listed[1][0].isdigit() else _BULLET
            yield f'.IP "{mark}" 4'
            yield _inline(listed[2])
        else:
            yield _inline(line.strip())


def _table(lines: list[str]) -> Iterator[str]:
    """Each row as a term; the cells after the first are what it means."""
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in lines if "|" in line]
    for row in rows[2:]:
        term, meaning = _inline(row[0]), _inline("; ".join(cell for cell in row[1:] if cell))
        yield from (".TP", rf"\fB{term or _SPACE}\fR", meaning or _SPACE)


def _inline(line: str) -> str:
    plain = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", line).replace("`", "").replace("**", "").replace(r"\|", "|")
    return text(plain)
