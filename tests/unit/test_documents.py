"""The documents: the size of README, links and paths that lead somewhere, and commands that the program understands."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from lamella.base.errors import UsageError
from lamella.cli.arguments import COMMANDS, CommandParser, build, parse
from lamella.public import HOME_OF

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "lamella"
README = ROOT / "README.md"

README_LINES = 120
README_COLUMNS = 100
README_WORDS = 900

DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "changes" / "README.md"]
GUIDES = [README, *sorted((ROOT / "docs" / "guide").glob("*.md"))]

FOLDERS = ("src", "tests", "docs", "bench", "tools", "packaging", "changes", "kit")
# What documents name and what lies outside of the checkout: files of a repository, features of qubes, credentials.
ELSEWHERE = {"restore.py", "copy.py", "lamella.continues", "lamella.passphrase"}

_FENCE = re.compile(r"^(`{3,}).*?^\1`*$", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^(`{3,}).*?^\1`*$|^ {4}[^\n]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]*[\w*]")
_MODULE = re.compile(r"(?<![\w./-])(?:[\w]+/)*\w+\.py\b")
_DOTTED = re.compile(r"`(lamella(?:\.[a-z_]\w*)+)`")
_SPAN = re.compile(r"`(lamella [^`]+)`")


# --- README ----------------------------------------------------------------------------------------------------------


def too_much(text: str) -> Iterator[str]:
    """Yield each limit that README exceeds."""
    lines, words = text.splitlines(), len(text.split())
    if len(lines) > README_LINES:
        yield f"{len(lines)} lines, ceiling {README_LINES}"
    if words > README_WORDS:
        yield f"{words} words, ceiling {README_WORDS}"
    for number, line in enumerate(lines, 1):
        if len(line) > README_COLUMNS:
            yield f"line {number} has {len(line)} columns, ceiling {README_COLUMNS}"


def test_readme_is_short() -> None:
    assert list(too_much(README.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\n" * (README_LINES + 1), "121 lines, ceiling 120"),
        ("word " * 18 + "\n", ""),
        (("word " * 10 + "\n") * 91, "910 words, ceiling 900"),
        ("a\n" + "x" * 101, "line 2 has 101 columns, ceiling 100"),
    ],
)
def test_long_readme_is_found(text: str, said: str) -> None:
    assert list(too_much(text)) == [said] * bool(said)


# --- links and paths -------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The names under which the headings of a document can be linked to."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def dead_links(document: Path, text: str) -> Iterator[str]:
    """Yield each relative link of a document that leads to no file, or to no heading of it."""
    for target in _LINK.findall(_FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, heading = target.partition("#")
        file = (document.parent / place) if place else document
        if not file.exists():
            yield f"{document.name}: {target} leads nowhere"
        elif heading and heading not in anchors(text if file == document else file.read_text("utf-8")):
            yield f"{document.name}: {target} names no heading"


@cache
def _file_names() -> frozenset[str]:
    return frozenset(path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def lost_paths(document: Path, text: str) -> Iterator[str]:
    """Yield each path or module that a document names and that is not in the checkout."""
    for path in _PATH.findall(text):
        if not any(ROOT.glob(path)) and not any(ROOT.glob(f"{path}*")):
            yield f"{document.name}: {path} is not there"
    known = _file_names()
    for module in _MODULE.findall(_BLOCK.sub("", text)):
        here = (ROOT / module, SOURCE / module, SOURCE / "operations" / module)
        if not (any(path.exists() for path in here) if "/" in module else module in known | ELSEWHERE):
            yield f"{document.name}: {module} is not there"
    for name in set(_DOTTED.findall(text)) - ELSEWHERE - {f"lamella.{one}" for one in HOME_OF}:
        inside = SOURCE.joinpath(*name.split(".")[1:])
        if not (inside.is_dir() or inside.with_suffix(".py").exists() or inside.parent.with_suffix(".py").exists()):
            yield f"{document.name}: {name} is not there"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text("utf-8")
    assert [*dead_links(document, text), *lost_paths(document, text)] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[here](docs/FORMAT.md), [there](https://example.org/x)", ""),
        ("[gone](docs/GONE.md)", "README.md: docs/GONE.md leads nowhere"),
        ("[head](docs/FORMAT.md#1-objects)", ""),
        ("[head](docs/FORMAT.md#1-subjects)", "README.md: docs/FORMAT.md#1-subjects names no heading"),
        ("# A `b` c?\n[up](#a-b-c)", ""),
        ("[up](#a-b-c)", "README.md: #a-b-c names no heading"),
        ("`tests/unit/test_documents.py`, `docs/decisions/0036`, `tests/golden`", ""),
        ("see tests/unit/test_gone.py", "README.md: tests/unit/test_gone.py is not there"),
        ("`docs/decisions/9999`", "README.md: docs/decisions/9999 is not there"),
        ("`stores/base.py` and `rescue.py`", ""),
        ("`stores/gone.py`", "README.md: stores/gone.py is not there"),
        ("`gone.py`", "README.md: gone.py is not there"),
        ("`lamella.stores.url`, `lamella.stores`", ""),
        ("`lamella.open`, `lamella.verify`", ""),
        ("`lamella.stores.gone.nothing`", "README.md: lamella.stores.gone.nothing is not there"),
    ],
)
def test_dead_links_and_lost_paths_are_found(text: str, said: str) -> None:
    found = [*dead_links(README, text), *lost_paths(README, text)]
    assert found[:1] == [said] * bool(said)


# --- commands --------------------------------------------------------------------------------------------------------


def commands_in(text: str) -> Iterator[str]:
    """Yield the command lines in the blocks of a document: what follows `$`, `sudo` or the margin."""
    fenced = "\n".join(block.group() for block in _FENCE.finditer(text))
    indented = "\n".join(line[4:] for line in _FENCE.sub("", text).splitlines() if line.startswith("    "))
    for line in re.sub(r"\\\n\s*", " ", f"{fenced}\n{indented}").splitlines():
        found = re.match(r"\s*(?:\$ )?(?:sudo )?lamella (.+)", line)
        if found:
            yield found.group(1)


def misunderstood(text: str) -> Iterator[str]:
    """Yield each command line of a document that the program refuses, and each option in its text that is unknown."""
    for line in commands_in(text):
        try:
            parse(shlex.split(line, comments=True))
        except UsageError as error:
            yield f"lamella {line.split('  ')[0].rstrip()}: {error.message}"
    for span in _SPAN.findall(" ".join(_FENCE.sub("", text).split())):
        yield from _unknown_words(span)


def _unknown_words(span: str) -> Iterator[str]:
    words = span.split()[1:]
    named = [word for word in words if not word.startswith("-")]
    if named and named[0].islower() and named[0].isalpha() and named[0] not in COMMANDS:
        yield f"{span}: there is no command {named[0]}"
        return
    known = _options(*named[:2])
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in known:
            yield f"{span}: there is no option {word}"


@cache
def _options(command: str = "", action: str = "") -> set[str]:
    """The options of a command, those of every command included."""
    parser: CommandParser = build()
    for name in (command, action):
        for entry in parser._actions:
            if isinstance(entry.choices, dict) and name in entry.choices:
                parser = entry.choices[name]
                parser.fill()
    return {option for entry in parser._actions for option in entry.option_strings}


@pytest.mark.parametrize("document", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_understood(document: Path) -> None:
    assert list(misunderstood(document.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("    lamella list          # all\n    sudo lamella qubes list\n", ""),
        ("    lamella backup a \\\n        --reread 1G\n", ""),
        ("    lamella list --colour\n", "lamella list --colour: unrecognized arguments: --colour"),
        ("```\n$ lamella restore disk\n```\n", "lamella restore disk: the following arguments are required: --to"),
        ("    lamella burn disk\n", "lamella burn disk: there is no command burn"),
        ("see `lamella doctor --fix`, `lamella -r REPO list`, `lamella key export-domain --to FILE`", ""),
        ("see `lamella doctor --mend`", "lamella doctor --mend: there is no option --mend"),
        ("see `lamella burn`", "lamella burn: there is no command burn"),
    ],
)
def test_misunderstood_commands_are_found(text: str, said: str) -> None:
    found = list(misunderstood(text))
    assert len(found) == bool(said)
    assert all(line.startswith(said) for line in found)


def test_guides_hold_commands() -> None:
    assert sum(len(list(commands_in(path.read_text("utf-8")))) for path in GUIDES) > 60


# --- hints of the program --------------------------------------------------------------------------------------------

_HINT = re.compile(r"(?:: |`)(lamella [a-z]+(?: (?:--?[a-z-]+|[a-z]+(?= --)))*)")
_SAYS_LAMELLA = re.compile(r"lamella(?:\s|[\"'])")
_IMPORTS = re.compile(r"^\s*(?:from lamella import|import lamella$)", re.MULTILINE)
MOVED = {"check --repair", "copy --mirror"}


def wrong_hints(source: str) -> Iterator[str]:
    """Yield each command in the strings and docstrings of a module that the program does not know, or knows no more."""
    if not _SAYS_LAMELLA.search(_IMPORTS.sub("", source)):
        return  # parsing a module costs more than a look
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for found in _HINT.finditer(node.value):
                yield from _unknown_words(found.group(1))
                yield from (f"{found.group(1)} is a command of its own" for old in MOVED if old in found.group(1))


@pytest.mark.parametrize("module", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_hints_name_commands_that_exist(module: Path) -> None:
    assert list(wrong_hints(module.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("x = 'mend with: lamella repair'", 0),
        ("x = f'run: lamella check --give-up {name}'", 0),
        ("x = 'mend with: lamella check --repair'", 1),
        ("x = 'mend with: lamella mend'", 1),
        ("x = 'mend with: lamella' ' mend'", 1),
        ("x = f'mend with: lamella {word} ' 'or: lamella mend'", 1),
        ("x = 'look with: lamella verify --deeply'", 1),
        ('"""`lamella copy --mirror` wrote there."""', 1),
        ("x = 'a newer version of lamella wrote here'", 0),
    ],
)
def test_wrong_hints_are_found(text: str, count: int) -> None:
    assert len(list(wrong_hints(text))) == count
