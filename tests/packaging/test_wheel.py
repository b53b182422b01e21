"""The wheel holds Lamella and nothing that only tests need."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools import man

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    place = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (found,) = place.glob("lamella-*.whl")
    return zipfile.Path(found)


def test_it_holds_one_package(wheel: zipfile.Path) -> None:
    names = {path.name for path in wheel.iterdir()}
    assert {name for name in names if not name.endswith((".dist-info", ".data"))} == {"lamella"}


def test_it_carries_every_manual_page_and_a_description(wheel: zipfile.Path) -> None:
    names = wheel.root.namelist()
    pages = {name.partition(".data/data/share/man/")[2] for name in names} - {""}
    assert {page for page in pages if not page.endswith("/")} == set(man.pages())
    (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
    text = wheel.root.read(metadata).decode("utf-8")
    assert "Description-Content-Type: text/markdown" in text
    assert (ROOT / "README.md").read_text("utf-8") in text.replace("\r\n", "\n")
    assert "Project-URL: " in text


def test_it_holds_every_module_of_the_source(wheel: zipfile.Path) -> None:
    packed = {name for name in wheel.root.namelist() if name.endswith(".py")}
    assert packed == {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}


def test_nothing_in_it_is_for_tests(wheel: zipfile.Path) -> None:
    names = [name for name in wheel.root.namelist() if name.endswith((".py", ".pyi"))]
    assert not [name for name in names if b"pytest" in wheel.joinpath(name).read_bytes()]
