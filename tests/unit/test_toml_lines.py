"""The line of a wrong key: the fear is that it names another line, or that a text full of signs leads it astray."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.cli.toml_lines import KeyPath, key_lines, line_of

_ROOT = Path(__file__).parents[2]
_MIXED = """\
# [not.a.table]
top = "a # no comment"    # a = 1

[repositories.usb]        # the first table
url = '''
[inside.a.text]
key = 1
'''
'quoted' . "k\\u00e9y" = { a = 1, "b.c" = [ { deep = 1 }, "}" ], d.e = \"""x""\""" }
many = [
  "one",  # ] = 5
  [ 'two' ],
] # end
  [ "dotted.name" . x ]
a.b = 2020-01-01 10:00:00
a.c = \"""\\
  \\""\" = \"""
"" = 0
[[list]]
one = 1
[[list]]
one = 2
"""


def every_key(value: object, above: KeyPath = ()) -> Iterator[KeyPath]:
    """The paths of all keys as `tomllib` reads them; those inside of lists are left out."""
    for key, one in value.items() if isinstance(value, dict) else ():
        yield (*above, key)
        yield from every_key(one, (*above, key))


def test_a_mixed_text() -> None:
    found = key_lines(_MIXED)
    assert found == {
        ("top",): 2,
        ("repositories",): 4,
        ("repositories", "usb"): 4,
        ("repositories", "usb", "url"): 5,
        **{("repositories", "usb", "quoted", *more): 9 for more in ((), ("kéy",), ("kéy", "a"), ("kéy", "b.c"))},
        **{("repositories", "usb", "quoted", "kéy", "d", *more): 9 for more in ((), ("e",))},
        ("repositories", "usb", "many"): 10,
        ("dotted.name",): 14,
        ("dotted.name", "x"): 14,
        ("dotted.name", "x", "a"): 15,
        ("dotted.name", "x", "a", "b"): 15,
        ("dotted.name", "x", "a", "c"): 16,
        ("dotted.name", "x", ""): 18,
        ("list",): 19,
        ("list", "one"): 20,
    }
    assert set(every_key(tomllib.loads(_MIXED))) == found.keys() - {("list", "one")}


def test_the_nearest_table_stands_for_what_is_missing() -> None:
    text = "a.b = 1\n[t.u]\nx = 1\n['t.v']\n[t.v]\n"
    assert [line_of(text, key) for key in ("a.b", "t.u.y.z", "t.u.x", "none", "t.v")] == [1, 2, 3, 0, 0]


_WORDS = st.one_of(
    st.sampled_from(["a", "b", "c-1", "a.b", "", 'q"', "'", "[x]", "# no", "é", "=\\"]), st.text(max_size=5)
)
_SCALARS = st.one_of(
    st.integers(-9, 9).map(str),
    st.sampled_from(
        ["true", "1.5e3", "1979-05-27 07:32:00", "'it # is = [x'", "''''''", '"""\n] = "" x"""', "'''\n'\n'''"]
    ),
    st.text(max_size=12).map(json.dumps),
)


def written_key(key: str) -> str:
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else json.dumps(key).replace("\x7f", "\\u007f")


class Writer:
    """Writes a document out of what is drawn, and keeps the line of every key as it goes."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self.text = ""
        self.lines: dict[KeyPath, int] = {}

    def add(self, text: str) -> None:
        self.text += text.replace("\x7f", "\\u007f")

    def key(self, above: KeyPath, *, new: str) -> KeyPath:
        """Write a key of one to three parts, the last of which is new at that place."""
        parts = [*self._data.draw(st.lists(_WORDS, max_size=2)), new]
        self.add(self._data.draw(st.sampled_from([".", " . "])).join(map(written_key, parts)))
        for length in range(1, len(parts) + 1):
            self.lines.setdefault((*above, *parts[:length]), self.text.count("\n") + 1)
        return (*above, *parts)

    def value(self, path: KeyPath, depth: int) -> None:
        kind = self._data.draw(st.sampled_from(["scalar", "scalar", "list", "table"][: 4 if depth else 2]))
        if kind == "table":
            self.add("{ ")
            for number in range(self._data.draw(st.integers(0, 2))):
                self.add(", " if number else "")
                self.pair(path, f"in{number}", depth - 1)
            self.add(" }")
        elif kind == "list":
            inside = self._data.draw(st.lists(_SCALARS, max_size=3))
            self.add("[\n  [ { x = ']' }, ], # ]\n" + "".join(f"  {one},\n" for one in inside) + "]")
        else:
            self.add(self._data.draw(_SCALARS))

    def pair(self, above: KeyPath, new: str, depth: int) -> None:
        path = self.key(above, new=new)
        self.add(self._data.draw(st.sampled_from(["=", " = ", "\t=\t"])))
        self.value(path, depth)

    def document(self) -> None:
        table: KeyPath = ()
        for number in range(self._data.draw(st.integers(0, 8))):
            self.add(self._data.draw(st.sampled_from(["", "\n", "  ", "# [x] a = 1\n"])))
            if self._data.draw(st.booleans()):
                self.pair(table, f"k{number}", 2)
            else:
                self.add("[")
                table = self.key((), new=f"t{number}")
                self.add(" ]")
            self.add(self._data.draw(st.sampled_from(["\n", " # 'x\n"])))


@given(st.data())
def test_every_key_has_its_line(data: st.DataObject) -> None:
    writer = Writer(data)
    writer.document()
    try:
        values: dict[str, Any] = tomllib.loads(writer.text)
    except tomllib.TOMLDecodeError:
        return  # a name that is a table here and a value there
    assert key_lines(writer.text) == writer.lines
    assert writer.lines.keys() == set(every_key(values))


@given(st.one_of(st.text("[]{}=\"'\\.,#a\n ", max_size=40), st.text(max_size=40)))
def test_any_text_comes_to_an_end(text: str) -> None:
    """A file may change between two readings: no text hangs the scan, and one that TOML takes is read as TOML does."""
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        values = None
    try:
        found = key_lines(text)
    except tomllib.TOMLDecodeError:
        assert values is None
        return
    if values is not None and "[[" not in text:
        assert found.keys() == set(every_key(values))


@pytest.mark.parametrize("path", sorted(_ROOT.glob("*.toml")), ids=lambda path: path.name)
def test_files_that_people_wrote(path: Path) -> None:
    text = path.read_text("utf-8")
    lines = text.splitlines()
    found = key_lines(text)
    assert set(every_key(tomllib.loads(text))) <= found.keys()
    assert all(key[-1] in lines[line - 1] for key, line in found.items())
