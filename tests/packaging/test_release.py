"""The notes of a release: every fragment is as changes/README.md says, and a release gathers them all."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What the tool reads and writes, in a directory of its own."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/release.py", tmp_path / "tools")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "changes", tmp_path / "changes")
    return tmp_path


def run(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(tree / "tools/release.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_notes_hold_every_fragment_of_this_tree() -> None:
    done = run(ROOT, "notes")
    assert done.returncode == 0, done.stderr
    paths = sorted((ROOT / "changes/unreleased").glob("*.md"))
    titles = [path.read_text("utf-8").partition("\n")[0].partition(": ")[2].strip() for path in paths]
    assert titles
    assert not [title for title in titles if f"{title[0].upper()}{title[1:]}.**" not in done.stdout]


def test_a_release_moves_the_fragments_and_names_the_version(tree: Path) -> None:
    names = {path.name for path in (tree / "changes/unreleased").glob("*.md")}
    assert run(tree, "make", "0.2.0").returncode == 0
    assert not list((tree / "changes/unreleased").glob("*.md"))
    assert {path.name for path in (tree / "changes/0.2.0").iterdir()} == names
    assert '\nversion = "0.2.0"\n' in (tree / "pyproject.toml").read_text("utf-8")
    (tree / "changes/unreleased/next.md").write_text("Fix: the next one\n\nText.\n")
    assert run(tree, "make", "0.2.1").returncode == 0
    log = (tree / "CHANGELOG.md").read_text("utf-8")
    assert log.startswith("# Changes\n\n## 0.2.1 (")
    assert log.index("## 0.2.1") < log.index("- **The next one.**\n  Text.") < log.index("## 0.2.0")


@pytest.mark.parametrize("version", ["1", "1.2", "v1.2.3", "1.2.3-rc", ""])
def test_a_version_that_is_none(tree: Path, version: str) -> None:
    done = run(tree, "make", version)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert list((tree / "changes/unreleased").glob("*.md"))


@pytest.mark.parametrize("text", ["no kind\n", "Whatever: happened\n", "Fix:\n", "Fix: \n"])
def test_a_fragment_that_is_none(tree: Path, text: str) -> None:
    (tree / "changes/unreleased/bad.md").write_text(text)
    done = run(tree, "make", "0.2.0")
    assert done.returncode == 1
    assert "bad.md" in done.stderr
    assert not (tree / "CHANGELOG.md").exists()
    (tree / "changes/unreleased/bad.md").unlink()
    assert run(tree, "make", "0.2.0").returncode == 0
    assert run(tree, "make", "0.2.0").returncode == 1
