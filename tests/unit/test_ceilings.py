"""The rules of size, names and homes, held against the source and against files that break them."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "lamella"

MODULE_LINES = 600
STAND_ALONE = {"rescue.py": 2285, "unpack.py": 260}
"""Programs that work without the rest of Lamella, and their ceilings."""

EMPTY_WORDS = {"helper", "util", "manager", "common", "misc", "handler"}
_EMPTY_WORD = re.compile("|".join(sorted(EMPTY_WORDS)), re.IGNORECASE)
UNFINISHED = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX)\b")

# Everything a file may use of what pyproject.toml bans; paths are relative to the package.
TERMINAL = {
    "sys.exit", "sys.argv", "sys.stdin", "sys.stdout", "sys.stderr", "getpass",
    "os.environ", "os.environb", "os.getenv", "os.getenvb",
    "exit", "quit", "input", "SystemExit",
}  # fmt: skip
HOMES = {
    "api/host.py": {"os.environ"},  # Host.here() is the host of the command
    "cli/": TERMINAL,
    "run/spawn.py": {"subprocess", "os.environ"},
    "run/background.py": {"os.fork", "sys.stdout", "sys.stderr"},
    "base/clock.py": {"time.time", "time.time_ns", "datetime.datetime.now"},
    "run/pipeline.py": {"concurrent.futures"},
    "run/beside.py": {"threading.Thread", "concurrent.futures"},
}
BUILTINS = {"exit", "quit", "input", "SystemExit"}
_BUILTIN = re.compile("|".join(sorted(BUILTINS)))


def python_files(*folders: Path) -> list[Path]:
    """Return every Python file below the folders that exist."""
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def too_long(source: Path) -> Iterator[str]:
    """Yield each module with more lines than its ceiling."""
    for path in python_files(source):
        ceiling = STAND_ALONE.get(path.relative_to(source).as_posix(), MODULE_LINES)
        lines = len(path.read_text().splitlines())
        if lines > ceiling:
            yield f"{path}: {lines} lines, ceiling {ceiling}"


def _words(name: str) -> set[str]:
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return {part.lower().removesuffix("s") for part in parts}


def _nodes(path: Path, words: re.Pattern[str]) -> Iterator[ast.AST]:
    """The nodes of a module in which a name has one of the words; parsing a module costs more than a look for them."""
    text = path.read_text()
    if words.search(text):
        yield from ast.walk(ast.parse(text))


def empty_names(source: Path) -> Iterator[str]:
    """Yield modules, classes and functions whose name says nothing about what they are."""
    for path in [*python_files(source), *(path for path in source.rglob("*") if path.is_dir())]:
        if _words(path.stem) & EMPTY_WORDS:
            yield str(path)
    for path in python_files(source):
        for node in _nodes(path, _EMPTY_WORD):
            named = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            if isinstance(node, named) and _words(node.name) & EMPTY_WORDS:
                yield f"{path}:{node.lineno}: {node.name}"


def unfinished(*folders: Path) -> Iterator[str]:
    """Yield each line that promises work instead of doing it."""
    for path in python_files(*folders):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if UNFINISHED.search(line):
                yield f"{path}:{number}: {line.strip()}"


def homeless(source: Path) -> Iterator[str]:
    """Yield each banned name used outside its home, whether or not a `noqa` hides it."""
    for path, line, name in [*_banned_by_ruff(source), *_banned_builtins(source)]:
        place = path.relative_to(source).as_posix()
        allowed = next((names for home, names in HOMES.items() if place.startswith(home)), set[str]())
        if place not in STAND_ALONE and name not in allowed:
            yield f"{place}:{line}: {name}"


def _banned_by_ruff(source: Path) -> Iterator[tuple[Path, int, str]]:
    command = [
        sys.executable, "-m", "ruff", "check", "--no-cache", "--exit-zero", "--ignore-noqa", "--output-format", "json",
        "--config", str(ROOT / "pyproject.toml"), "--config", "lint.per-file-ignores = {}", "--select", "TID251",
        str(source),
    ]  # fmt: skip
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    for finding in json.loads(found.stdout):
        name = finding["message"].split("`")[1]
        yield Path(finding["filename"]), finding["location"]["row"], name


def _banned_builtins(source: Path) -> Iterator[tuple[Path, int, str]]:
    for path in python_files(source):
        for node in _nodes(path, _BUILTIN):
            name = node.func if isinstance(node, ast.Call) else node.exc if isinstance(node, ast.Raise) else None
            if isinstance(name, ast.Name) and name.id in BUILTINS:
                yield path, name.lineno, name.id


def test_modules_are_short() -> None:
    assert list(too_long(SOURCE)) == []


def test_names_say_something() -> None:
    assert list(empty_names(SOURCE)) == []


def test_nothing_is_promised() -> None:
    assert list(unfinished(SOURCE, *(ROOT / name for name in ("kit", "tests", "tools", "bench")))) == []


def test_names_stay_in_their_homes() -> None:
    assert list(homeless(SOURCE)) == []


@pytest.mark.parametrize(("name", "lines", "count"), [("a.py", 600, 0), ("a.py", 601, 1), ("rescue.py", 2286, 1)])
def test_long_module_is_found(tmp_path: Path, name: str, lines: int, count: int) -> None:
    (tmp_path / name).write_text("x = 1\n" * lines)
    assert len(list(too_long(tmp_path))) == count


def test_empty_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "utils").mkdir()
    file = tmp_path / "utils" / "a.py"
    file.write_text("class KeyManager: ...\n\ndef on_error_handler(): ...\n\ndef reused(): ...\n")
    assert len(list(empty_names(tmp_path))) == 3


def test_promise_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1  # " + "TO" + "DO later\n")
    assert len(list(unfinished(tmp_path))) == 1


@pytest.mark.parametrize(
    ("place", "text", "count"),
    [
        ("stores/a.py", "import subprocess  # noqa: TID251\n", 1),
        ("run/spawn.py", "import subprocess\n", 0),
        ("run/spawn.py", "import time\nnow = time.time()\n", 1),
        ("cli/a.py", "import os\nx = os.environ\nraise SystemExit(1)\n", 0),
        ("cli/a.py", "import concurrent.futures\n", 1),
        ("run/beside.py", "from threading import Lock, Thread\n", 0),
        ("run/pipeline.py", "from threading import Lock, Thread\n", 1),
        ("operations/a.py", "import threading\nx = threading.Lock()\ny = threading.Thread()\n", 1),
        ("operations/a.py", "def f() -> None:\n    raise SystemExit(1)\n", 1),
        ("operations/a.py", "def f() -> None:\n    raise SystemExit\n", 1),
        ("operations/a.py", "answer = input()\n", 1),
        ("operations/a.py", "def f(input: bytes) -> bytes:\n    return input\n", 0),
    ],
)
def test_banned_name_is_found(tmp_path: Path, place: str, text: str, count: int) -> None:
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    assert len(list(homeless(tmp_path))) == count
