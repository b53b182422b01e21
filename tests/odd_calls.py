"""System calls that fail as they do on odd file systems, in the program under test: a preloaded library of ours."""

from __future__ import annotations

import errno
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.features import require

_SOURCE = Path(__file__).with_suffix(".c")


@cache
def _library() -> Path:
    require("gcc", shutil.which("gcc") is not None, "no compiler for the library that is preloaded")
    made = Path(tempfile.mkdtemp(prefix="lamella-odd-")) / "odd.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(made), str(_SOURCE)], check=True, timeout=60)
    return made


@dataclass
class OddCalls:
    """Rules for a program; `struck` says what they hit, so that no test passes because nothing failed."""

    log: Path
    rules: list[str] = field(default_factory=list)

    def fail(self, call: str, name: str, below: Path, times: int = 0) -> OddCalls:
        """Have `call` fail with the error `name` (such as EINVAL) for paths that begin with `below`; 0 times: always.

        Calls: fsync, fsync-dir, flock, fchmod, fchown, fsetxattr, link, read, write. `open-wide` does not fail: files
        that are made there can be read by everybody.
        """
        self.rules.append(f"{call} {getattr(errno, name)} {below} {times}")
        return self

    def note(self, call: str, below: Path) -> OddCalls:
        """Have `call` pass, and appear in `struck`."""
        self.rules.append(f"{call} 0 {below} 0")
        return self

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the program."""
        return {"LD_PRELOAD": str(_library()), "ODD_CALLS": ";".join(self.rules), "ODD_LOG": str(self.log)}

    @property
    def struck(self) -> list[str]:
        """The calls that failed so far, a line each: call, number of the error, path."""
        return self.log.read_text().splitlines() if self.log.exists() else []
