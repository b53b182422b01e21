"""HTML in which every value is escaped: text and markup are two types, and only templates of this program make markup.

Names come from repositories: whoever can write there chooses them. Templates quote every attribute; a place (`{}`) is
never the name of a tag or of an attribute, nor a style or a script; addresses are made by `address` alone.
"""

from __future__ import annotations

import html as escaping
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from urllib.parse import quote

from lamella.cli.shown import shown


@dataclass(frozen=True, slots=True)
class Html:
    """Markup."""

    text: str

    def __add__(self, other: Html) -> Html:
        return Html(self.text + other.text)


Value = Html | str | float | Iterable[Html]
EMPTY = Html("")


def html(template: str, *values: Value) -> Html:
    """The template with a value in each `{}`: markup as it is, several pieces of markup in a row, all else escaped.

    Raises ValueError unless there are as many places as values.
    """
    pieces = template.split("{}")
    made = [pieces[0]]
    for value, piece in zip(values, pieces[1:], strict=True):
        made += (_text(value), piece)
    return Html("".join(made))


def _text(value: Value) -> str:
    if isinstance(value, Html):
        return value.text
    if isinstance(value, str | int | float):
        return escaping.escape(shown(str(value)), quote=True)
    return "".join(one.text for one in value)


def address(*parts: str | int) -> str:
    """The address of a page of this server, each part quoted: none of them can lead elsewhere."""
    return "/" + "/".join(quote(str(part), safe="", errors="surrogateescape") for part in parts)


@cache
def resource(name: str) -> str:
    """A file of this package, such as the style sheet."""
    return (files("lamella.cli.pages") / name).read_text("utf-8")
