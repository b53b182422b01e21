"""The package for dom0: what it requires, what is in it, and that it runs from where it lies.

Installing it on Fedora cannot be tried here; what rpm itself says of the package can.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.features import require

ROOT = Path(__file__).resolve().parents[2]


def output(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for program in ("rpmbuild", "rpm2cpio", "cpio"):
        require("rpmbuild", shutil.which(program) is not None, f"{program} is not installed")
    require("rpmbuild", (ROOT / ".git").exists(), "the package is made from a git checkout")
    place = tmp_path_factory.mktemp("rpm")
    output(ROOT / "packaging/rpm/build.sh", place)
    (found,) = place.glob("lamella-*.noarch.rpm")
    return found


def test_it_requires_what_is_listed_and_nothing_else(package: Path) -> None:
    rows = (ROOT / "packaging/rpm/requires.tsv").read_text("utf-8").splitlines()
    listed = {row.split("\t")[0] for row in rows if row and not row.startswith("#")} - {"requirement"}
    required = {line for line in output("rpm", "-qpR", package).splitlines() if not line.startswith("rpmlib(")}
    assert required == listed


def test_every_listed_version_names_its_page() -> None:
    rows = (ROOT / "packaging/rpm/requires.tsv").read_text("utf-8").splitlines()
    cells = [row.split("\t") for row in rows if row and not row.startswith("#")][1:]
    assert all(len(row) == 4 and all(row) for row in cells)


def test_it_runs_from_where_it_lies(package: Path, tmp_path: Path) -> None:
    with subprocess.Popen(["rpm2cpio", str(package)], stdout=subprocess.PIPE) as unpacked:
        subprocess.run(["cpio", "-idm", "--quiet"], stdin=unpacked.stdout, cwd=tmp_path, check=True)
    home = tmp_path / "usr/share/lamella"
    # dom0's interpreter runs the packaged command; here it is this one, with the package's directory put first.
    program = (tmp_path / "usr/bin/lamella").read_text().replace("/usr/share/lamella", str(home))
    (tmp_path / "run.py").write_text(program)
    (tmp_path / "key").write_bytes(os.urandom(32))
    (tmp_path / "disk.img").write_bytes(os.urandom(100_000))
    options = ["--keyfile", str(tmp_path / "key"), "-r", str(tmp_path / "repository")]
    command = [sys.executable, "-I", str(tmp_path / "run.py"), *options]
    version = output(sys.executable, "-I", tmp_path / "run.py", "--version")
    assert version.split()[1] in package.name
    output(*command, "init", "-q", cwd=tmp_path)
    output(*command, "backup", tmp_path / "disk.img", cwd=tmp_path)
    output(*command, "restore", "disk", "--to", tmp_path / "out.img", cwd=tmp_path)
    assert (tmp_path / "out.img").read_bytes() == (tmp_path / "disk.img").read_bytes()
    output(*command, "report", "--html", tmp_path / "report.html", cwd=tmp_path)
    served = subprocess.run([*map(str, command), "ui"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert served.returncode == 2 and "this package of Lamella has no page" in served.stderr, "dom0 serves nothing"
    for page in ("man1/lamella-qubes.1", "man5/lamella-format.5", "man7/lamella-emergency.7"):
        assert (tmp_path / "usr/share/man" / page).exists()
