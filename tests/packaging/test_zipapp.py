"""The program as one file: the main job with the system's own Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.features import require

ROOT = Path(__file__).resolve().parents[2]


def test_one_file_does_the_main_job(tmp_path: Path) -> None:
    require("git", (ROOT / ".git").exists() and shutil.which("git") is not None, "it is made from a git checkout")
    subprocess.run([ROOT / "packaging/zipapp/build.sh", tmp_path], cwd=ROOT, check=True, timeout=120)
    program = tmp_path / "lamella.pyz"
    assert os.access(program, os.X_OK)
    (tmp_path / "key").write_bytes(os.urandom(32))
    (tmp_path / "disk.img").write_bytes(os.urandom(100_000))

    def run(*words: str) -> str:
        # Isolated, and without the project's own source: what runs is what is in the file. The directory of this
        # environment's packages is handed over, for cryptography and zstd.
        packages = next(path for path in sys.path if path.endswith("site-packages"))
        start = f"import sys, runpy; sys.path[:0] = [{str(program)!r}]; sys.path.append({packages!r})"
        run_it = (
            f"{start}; sys.argv = ['lamella', *sys.argv[1:]]; runpy.run_path({str(program)!r}, run_name='__main__')"
        )
        command = [sys.executable, "-I", "-S", "-c", run_it, "--keyfile", "key", "-r", "repository", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("init", "-q")
    run("backup", "disk.img")
    run("restore", "disk", "--to", "out.img")
    assert (tmp_path / "out.img").read_bytes() == (tmp_path / "disk.img").read_bytes()
    run("report", "--html", "report.html")  # the style sheet lies in the file, too
    assert "--paper:" in (tmp_path / "report.html").read_text()
    # The emergency reader lies in the repository, read out of the file.
    assert (tmp_path / "repository/restore.py").read_bytes() == (ROOT / "src/lamella/rescue.py").read_bytes()
