"""The command as an account that is not root, in a home of its own: what may be read is then a real question."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.cli.program import ROOT, Lamella
from tests.features import require

NOBODY = 65534
GROUP = 4321
"""A group without a name, of which the account is a member."""


@dataclass
class Stranger:
    """A repository in the home of an account: used by the account and by root."""

    home: Path
    lamella: Lamella

    @property
    def repository(self) -> Path:
        return self.home / "repository"

    @property
    def as_root(self) -> Lamella:
        """The command as root, with the same key."""
        places = {"HOME": "/root"}
        places |= {f"LAMELLA_{word}_DIR": str(self.home.parent / f"root-{word.lower()}") for word in ("STATE", "CACHE")}
        return replace(self.lamella, user=None, env={**self.lamella.env, **places})

    def owned(self, image: Path) -> Path:
        """A copy of the image that the account may read."""
        copy = self.home / "own.img"
        shutil.copyfile(image, copy)
        os.chown(copy, NOBODY, NOBODY)
        return copy


@contextmanager
def stranger_at_home() -> Iterator[Stranger]:
    """A new home below /tmp, which the account can reach."""
    require("root", os.geteuid() == 0, "only root can become somebody else")
    top = Path(tempfile.mkdtemp(prefix="lamella-home-"))
    top.chmod(0o755)
    try:
        home = top / "home"
        home.mkdir()
        home.chmod(0o755)
        key = home / "key"
        key.write_bytes(os.urandom(32))
        os.chown(home, NOBODY, NOBODY)
        os.chown(key, NOBODY, NOBODY)
        key.chmod(0o600)
        places = {"HOME": str(home), "LAMELLA_REPO": str(home / "repository"), "LAMELLA_CONFIG": str(home / "config")}
        places |= {f"LAMELLA_{word}_DIR": str(home / word.lower()) for word in ("STATE", "CACHE")}
        places["PYTHONPATH"] = f"{ROOT / 'src'}:{sysconfig.get_path('purelib')}"
        with _reachable_python(top / "python") as python:
            yield Stranger(home, Lamella(places, ["--keyfile", str(key)], [str(python), "-m", "lamella"], NOBODY))
    finally:
        shutil.rmtree(top)


@contextmanager
def _reachable_python(place: Path) -> Iterator[Path]:
    """The interpreter below a path that everybody may enter: it may be installed in the home of root."""
    place.mkdir()
    shown = subprocess.run(
        ["mount", "--bind", sys.base_prefix, str(place)], capture_output=True, text=True, check=False
    )
    require("mount", shown.returncode == 0, f"the interpreter cannot be shown elsewhere: {shown.stderr}")
    try:
        yield place / "bin" / f"python3.{sys.version_info.minor}"
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()
