"""The lines of keys in a TOML file: `tomllib` reads values and forgets where they stood (toml.io/en/v1.0.0)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

KeyPath = tuple[str, ...]

_BLANK: Final = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_BASIC: Final = r'"(?:[^"\\\n]|\\.)*"'
_LITERAL: Final = r"'[^'\n]*'"
_KEY: Final = re.compile(rf"{_BASIC}|{_LITERAL}|[A-Za-z0-9_-]+")
_DOT: Final = re.compile(r"[ \t]*\.[ \t]*")
# Up to two quotes may stand before the three that end a text of several lines.
_TEXT: Final = re.compile(
    rf"""\"""(?:[^\\]|\\.)*?\"{{3,5}}(?!")|'''.*?'{{3,5}}(?!')|{_BASIC}|{_LITERAL}""",
    re.DOTALL,
)
_PLAIN: Final = re.compile(r"[^,\]}#\n]+")
_INSIDE: Final = re.compile(rf"{_TEXT.pattern}|#[^\n]*|[\[\]]|[^\[\]#\"']+", re.DOTALL)


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line of each key, counted from 1: where it stands first, be it in a header or before an equals sign.

    Tables that only a longer name makes stand where that name does. Keys inside of lists are left out. `text` is
    what `tomllib` accepts, with ends of lines as Python reads them; in other texts anything may be found.
    """
    found: dict[KeyPath, int] = {}
    line, counted = 1, 0
    for path, offset in _Scan(text):
        line += text.count("\n", counted, offset)
        counted = offset
        for length in range(1, len(path) + 1):
            found.setdefault(path[:length], line)
    return found


def place(path: Path, text: str, dotted: str) -> str:
    """The file with this text, and the line of a key in it, as `FILE:LINE`; the file alone if there is no line."""
    line = line_of(text, dotted)
    return f"{path}:{line}" if line else str(path)


def line_of(text: str, dotted: str) -> int:
    """The line of a key or, if it stands nowhere, of the nearest table around it; 0 if there is none.

    `dotted` is written without quotes. A name that could mean two keys stands in no line.
    """
    lines: dict[str, set[int]] = {}
    try:
        for path, line in key_lines(text).items():
            lines.setdefault(".".join(path), set()).add(line)
    except ValueError:  # the file is another one than before
        return 0
    while dotted and dotted not in lines:
        dotted = dotted.rpartition(".")[0]
    return next(iter(lines[dotted])) if len(lines.get(dotted, ())) == 1 else 0


class _Scan:
    """Goes through a text once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def __iter__(self) -> Iterator[tuple[KeyPath, int]]:
        """Every key by its whole path, with its offset in characters, in the order of the text."""
        table: KeyPath = ()
        while self._blank() < len(self._text):
            began = self._at
            if self._take("["):
                self._take("[")
                table = self._key()
                yield table, began
                self._take("]")
                self._take("]")
            else:
                yield from self._pair(table)
            if self._at == began:
                return

    def _pair(self, table: KeyPath) -> Iterator[tuple[KeyPath, int]]:
        began, path = self._at, table + self._key()
        yield path, began
        self._take("=")
        self._blank()
        yield from self._value(path)

    def _value(self, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
        if self._text.startswith("[", self._at):
            self._list()
        elif self._take("{"):
            while not self._take("}") and self._at < len(self._text):
                began = self._at
                yield from self._pair(path)
                self._take(",")
                if self._at == began:
                    return
        elif not self._match(_TEXT):
            self._match(_PLAIN)

    def _list(self) -> None:
        """Pass a list, with all that is in it."""
        depth = 0
        while found := self._match(_INSIDE):
            depth += {"[": 1, "]": -1}.get(found, 0)
            if not depth:
                return

    def _key(self) -> KeyPath:
        parts: list[str] = []
        self._blank()
        while part := self._match(_KEY):
            parts.append(tomllib.loads(f"key = {part}")["key"] if part[0] in "\"'" else part)
            if not self._match(_DOT):
                break
        return tuple(parts)

    def _take(self, sign: str) -> bool:
        """Pass blanks and the sign, if it comes next."""
        at = self._blank()
        self._at += self._text.startswith(sign, at)
        return self._at > at

    def _blank(self) -> int:
        self._match(_BLANK)
        return self._at

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return found[0] if found else ""
