"""One word, one thing: no two classes of Lamella have the same name."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "lamella"


LOOKS_LIKE_A_CLASS = re.compile(r"^[ \t]*class[ \t]+(\w+)", re.MULTILINE)


def class_names(files: Iterable[Path]) -> Counter[str]:
    """How often each class name occurs in these files, nested classes included."""
    trees = [ast.parse(path.read_text("utf-8")) for path in files]
    return Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def ambiguous(source: Path) -> dict[str, int]:
    """The class names that occur more than once, and how often.

    rescue.py reads the same format on its own and uses its words for the same ideas: it is not counted. Only files in
    which something looks like a class whose name occurs again are parsed.
    """
    files = [path for path in source.rglob("*.py") if path.name != "rescue.py"]
    names = {path: LOOKS_LIKE_A_CLASS.findall(path.read_text("utf-8")) for path in files}
    often = {name for name, count in Counter(name for found in names.values() for name in found).items() if count > 1}
    found = class_names(path for path in files if often.intersection(names[path]))
    return {name: count for name, count in found.items() if count > 1}


def test_no_class_name_is_taken_twice() -> None:
    assert ambiguous(SOURCE) == {}


def test_a_name_taken_twice_is_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one.py").write_text("class Place: ...\nclass _Own: ...\nclass Single: ...\n")
    (tmp_path / "two.py").write_text("class Outer:\n    class Place: ...\nclass _Own: ...\n")
    (tmp_path / "rescue.py").write_text("class _Own: ...\n")
    assert ambiguous(tmp_path) == {"Place": 2, "_Own": 2}
