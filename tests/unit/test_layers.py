"""The direction of imports: the contract of pyproject.toml, held against the tree and against trees that break it."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESCUE, UNPACK = ROOT / "src" / "lamella" / "rescue.py", ROOT / "src" / "lamella" / "unpack.py"


def checked(root: Path) -> subprocess.CompletedProcess[str]:
    """Run the import contract on the tree at `root`."""
    program = Path(sys.executable).with_name("lint-imports")
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"}
    return subprocess.run(
        [str(program), "--no-cache", "--config", str(root / "pyproject.toml")],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def foreign_imports(module: Path) -> Iterator[str]:
    """Yield every import of `module` that does not come from the standard library."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f".{node.module or ''}" if node.level else node.module or ""]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] not in sys.stdlib_module_names)


UPWARD = [
    ("lamella.sources.base", "lamella.repository"),
    ("lamella.sources.base", "lamella.stores.base"),
    ("lamella.stores.base", "lamella.repository"),
    ("lamella.format", "lamella.crypto"),
    ("lamella.operations", "lamella.cli"),
    ("lamella.operations", "lamella.rescue"),
    ("lamella", "lamella.rescue"),
    ("lamella.rescue", "lamella.base.ids"),
    ("lamella.base.errors", "lamella.base.events"),
    ("lamella.operations.repair.heal", "lamella.operations.verify.verify"),
    ("lamella.operations.shared.reading", "lamella.operations.writing.session"),
    ("lamella.cli.main", "lamella.operations.prune.lockless"),
]


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """What the contract says of a copy of the source with every wrong import of UPWARD, and a module without a layer.

    All of them at once: each is still named on a line of its own, and the graph of the source is built once.
    """
    tree = tmp_path_factory.mktemp("spoiled")
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    for module, imported in UPWARD:
        place = tree / "src" / Path(*module.split("."))
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        with file.open("a") as out:
            out.write(f"\nimport {imported}\n")
    (tree / "src" / "lamella" / "stray.py").touch()
    return checked(tree)


def test_imports_point_downward() -> None:
    result = checked(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("module", "imported"), UPWARD)
def test_upward_import_is_found(spoiled: subprocess.CompletedProcess[str], module: str, imported: str) -> None:
    assert spoiled.returncode == 1
    assert f"{module} -> {imported} (l." in spoiled.stdout


def test_module_without_a_layer_is_found(spoiled: subprocess.CompletedProcess[str]) -> None:
    assert spoiled.returncode == 1
    assert "lamella.stray" in spoiled.stdout


def test_rescue_stands_alone() -> None:
    assert list(foreign_imports(RESCUE)) == []
    assert list(foreign_imports(UNPACK)) == []


def test_foreign_import_is_found(tmp_path: Path) -> None:
    module = tmp_path / "rescue.py"
    module.write_text(
        "import os, zlib\nfrom hashlib import sha256\n"
        "import lamella.base.ids\nfrom . import ids\nfrom cryptography import x509\n"
        "def late() -> None:\n    import zstandard\n"
    )
    assert list(foreign_imports(module)) == ["lamella.base.ids", ".", "cryptography", "zstandard"]
