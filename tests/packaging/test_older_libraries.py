"""The oldest libraries that packages allow do the whole work, as the newest do: what Debian 12 has stands for dom0's.

cryptography 38 refuses, for one, what newer versions take: buffers that are no bytes objects.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.features import require

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"
_VERSIONS = "import cryptography, zstandard, sys; print(cryptography.__version__, zstandard.__version__)"
SUITES = ("test_main_job", "test_export", "test_mirror")


@pytest.fixture(scope="module")
def versions() -> str:
    """Of the system's interpreter; it has none of this environment's packages."""
    done = subprocess.run([PYTHON, "-I", "-c", _VERSIONS], capture_output=True, text=True, timeout=60, check=False)
    require("older-libraries", done.returncode == 0, f"{PYTHON} has no cryptography or no zstandard")
    return done.stdout.strip()


@pytest.mark.parametrize("suite", SUITES)
def test_the_whole_work_is_done(versions: str, suite: str) -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/cli/{suite}.py"]
    environment = {**os.environ, "LAMELLA_TEST_PYTHON": PYTHON}
    with tempfile.TemporaryDirectory() as place:  # a short name: the suites make sockets below it
        words.append(f"--basetemp={place}/run")
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (versions, done.stdout[-3000:])
    assert "passed" in done.stdout
