"""How much of Lamella each command makes Python load: `python tools/load.py` prints it.

Two measures, for each of COMMANDS. What a real run loaded: the modules that were in memory when the command ended, on a
repository of one snapshot. And the closure: every module reachable from the command's own by imports that are not
inside a function, which is the least that any run loads. Code lines leave out blanks, comments and docstrings;
statements are those of the syntax tree, so that long lines hide nothing.
"""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lamella.stores.pipe.bundle import ARGV_WITH_LIBRARIES
from lamella_kit.fake_qubesd import FakeQubesd

SOURCE = Path(__file__).resolve().parents[1] / "src"
COMMANDS = {
    "list": ("lamella.cli.commands.list",),
    "restore": ("lamella.cli.commands.restore",),
    "backup": ("lamella.cli.commands.backup",),
    "qubes backup": ("lamella.cli.commands.qubes.backup",),
    "qubes restore": ("lamella.cli.commands.qubes.restore",),
    "qubes restore --paranoid": ("lamella.cli.commands.qubes.restore", "lamella.qubes.paranoid.disposable"),
}
"""Command -> the modules that its closure starts from, beside the command line's own."""

_SECONDS = 60
_NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip

# Run instead of the command: it ends as the command does, and leaves the names of the modules behind.
_OBSERVED = """
import atexit, sys
from pathlib import Path
def leave(path=sys.argv.pop(1)):
    names = [name for name in sys.modules if name.partition(".")[0] == "lamella"]
    Path(path).write_text(" ".join(names), "ascii")
atexit.register(leave)
from lamella.cli.main import entry
entry()
"""


@dataclass(frozen=True, order=True)
class Weight:
    """The size of one module, or of several together."""

    code_lines: int = 0
    statements: int = 0

    def __add__(self, other: Weight) -> Weight:
        return Weight(self.code_lines + other.code_lines, self.statements + other.statements)


@dataclass(frozen=True)
class Load:
    """What one command loads: names of modules, in a real run and by the closure of imports."""

    command: str
    run: frozenset[str]
    closure: frozenset[str]


# --- weighing --------------------------------------------------------------------------------------------------------


def weigh(text: str) -> Weight:
    """The weight of a module's source."""
    tree = ast.parse(text)
    strings = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in strings:
        lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    statements = sum(isinstance(node, ast.stmt) for node in ast.walk(tree))
    return Weight(len(lines), statements - len(strings))


@cache
def weight(module: str) -> Weight:
    """The weight of a module of Lamella, by its name."""
    return weigh(_file(module).read_text("utf-8"))


def total(modules: Iterable[str]) -> Weight:
    """The weight of several modules."""
    return sum(map(weight, modules), Weight())


def _file(module: str, source: Path = SOURCE) -> Path:
    place = source.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


# --- the closure of imports ------------------------------------------------------------------------------------------


def closure(*modules: str, source: Path = SOURCE) -> frozenset[str]:
    """These modules and all that their imports lead to, apart from imports inside functions and those for types."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += _imported(module, source)
    return frozenset(found)


@cache
def _imported(module: str, source: Path) -> frozenset[str]:
    names = set(_imports(ast.parse(_file(module, source).read_text("utf-8")).body))
    packages = {name.rpartition(".")[0] for name in (module, *names)}
    ours = (name for name in names | packages if name.partition(".")[0] == "lamella")
    return frozenset(name for name in ours if _file(name, source).exists())


def _imports(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The names that these statements import when a module runs; for `from a import b` both `a` and `a.b`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from _imports(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(ast.iter_child_nodes(node))


# --- real runs -------------------------------------------------------------------------------------------------------


def measure() -> list[Load]:
    """Run every command, and say what it loaded."""
    # On a disk: a restore into memory (tmpfs has no direct access before Linux 6.6) loads the other way as well.
    with tempfile.TemporaryDirectory(prefix="lamella-load-", dir="/var/tmp") as folder:
        return list(_measured(Path(folder)))


def _measured(folder: Path) -> Iterator[Load]:
    disk = folder / "disk.img"
    disk.write_bytes(os.urandom(1 << 20))
    (folder / "key").write_bytes(os.urandom(32))
    with _qubes(folder) as variables:
        words = {
            "list": [],
            "restore": ["disk", "--to", str(folder / "out.img")],
            "backup": [f"disk={disk}", "--source-driver", "file"],
            "qubes backup": ["work"],
            "qubes restore": ["work", "--overwrite", "-y"],
            "qubes restore --paranoid": ["work", "--overwrite", "-y"],
        }
        # The first run of each kind makes what the measured one finds, as on most days.
        for command in ("init", "backup", "qubes backup"):
            _run(folder, variables, [*command.split(), *words.get(command, [])])
        for command, own in COMMANDS.items():
            run = _run(folder, variables, [*command.split(), *words[command]])
            yield Load(command, run, closure("lamella.cli.main", *own))


@contextmanager
def _qubes(folder: Path) -> Iterator[Mapping[str, str]]:
    """A system with one qube; gives the variables that say where it is."""
    (folder / "pool").mkdir()
    (folder / "root").mkdir()
    with FakeQubesd(folder / "run", {"varlibqubes": folder / "pool"}, volume_size=1 << 20) as system:
        system.add("tpl", "TemplateVM", label="black")
        system.add("work", template="tpl", label="red")
        system.add("dvm", template="tpl", template_for_dispvms="True")
        client = folder / "qrexec-client"  # whatever is called runs as a process beside
        client.write_text(
            f"#!{sys.executable}\nimport os\nos.execv({sys.executable!r}, {list(ARGV_WITH_LIBRARIES)!r})\n"
        )
        client.chmod(0o755)
        yield {"LAMELLA_QUBESD_SOCKET": str(system.place), "LAMELLA_DOM0_ROOT": str(folder / "root")}


def _run(folder: Path, variables: Mapping[str, str], words: list[str]) -> frozenset[str]:
    """Run a command to its end, and return the modules of Lamella that were loaded then."""
    left = folder / "modules"
    env = {
        "PATH": f"{folder}:{os.environ.get('PATH', os.defpath)}",
        "HOME": str(folder),
        "PYTHONPATH": str(SOURCE),
        "LAMELLA_REPO": str(folder / "repository"),
        "LAMELLA_STATE_DIR": str(folder / "state"),
        "LAMELLA_CACHE_DIR": str(folder / "cache"),
        "LAMELLA_CONFIG": str(folder / "config"),
        **variables,
    }
    command = [sys.executable, "-c", _OBSERVED, str(left), "--keyfile", str(folder / "key"), *words]
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    if done.returncode:
        raise SystemExit(f"lamella {' '.join(words)}: {done.stderr.strip()}")
    return frozenset(left.read_text("ascii").split())


# --- showing ---------------------------------------------------------------------------------------------------------


def listed(modules: Iterable[str]) -> str:
    """The modules with their code lines, the heaviest first, a line each."""
    rows = sorted(((weight(module).code_lines, module) for module in modules), reverse=True)
    return "\n".join(f"{lines:6} {module}" for lines, module in rows)


def main() -> int:
    """Print the table, and with `--modules` the modules of every command."""
    print(f"{'command':25}{'modules':>8}{'code lines':>12}{'statements':>12}{'closure':>9}{'its code lines':>16}")
    for load in measure():
        run, still = total(load.run), total(load.closure)
        print(
            f"{load.command:25}{len(load.run):8}{run.code_lines:12}{run.statements:12}"
            f"{len(load.closure):9}{still.code_lines:16}"
        )
        if "--modules" in sys.argv[1:]:
            print(listed(load.run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
