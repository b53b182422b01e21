"""The benchmark runs where only Lamella and its kit are installed: it needs no test and none of the tests' tools."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def needs(start: Path, *others: Path) -> dict[str, str]:
    """What the package in folder `start` imports, lazily or not, followed through the packages in folders `others`.

    Top-level name of each import that leads out of these packages and the standard library -> a file that imports it.
    """
    packages = {folder.name: folder for folder in (start, *others)}
    found: dict[str, str] = {}
    waiting, seen = sorted(start.rglob("*.py")), set[Path]()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in imports(file):
            top = name.partition(".")[0]
            if top in packages:
                waiting += files(packages[top], name)
            elif top not in sys.stdlib_module_names:
                found[top] = str(file)
    return found


def imports(file: Path) -> Iterator[str]:
    """Every dotted name that a file imports; for `from a import b` that is `a.b`."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(package: Path, name: str) -> Iterator[Path]:
    """The files of a package that are run for the import of a dotted name, which may end with a name in a module."""
    yield package / "__init__.py"
    place = package
    for word in name.split(".")[1:]:
        place /= word
        yield from (file for file in (place.with_suffix(".py"), place / "__init__.py") if file.exists())


def test_the_bench_needs_lamella_and_its_kit_only() -> None:
    needed = needs(ROOT / "bench", ROOT / "kit/lamella_kit")
    assert set(needed) == {"lamella"}, needed


def test_a_need_is_found_through_the_kit(tmp_path: Path) -> None:
    texts = {
        "bench/__init__.py": "",
        "bench/a.py": "def f() -> None:\n    from kit.deep import faults\n",
        "kit/__init__.py": "",
        "kit/deep/__init__.py": "import os\n",
        "kit/deep/faults.py": "from tests.features import require\n",
        "kit/contract.py": "import pytest\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = needs(tmp_path / "bench", tmp_path / "kit")
    assert found == {"tests": str(tmp_path / "kit/deep/faults.py")}
