"""The programs that are compared: Lamella by its command, zstd, borg and restic. Each repeat gets new repositories."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench.measure import BenchError, Sample, run

NAME = "disk"
PASSPHRASE = "bench"


class Peer(Protocol):
    """A backup program that makes the same journey as Lamella."""

    name: str

    def init(self) -> None:
        """Make a new, empty repository; an old one is removed."""

    def backup(self, image: Path) -> Sample:
        """Back the image up, comparing all of its data."""

    def restore(self, image: Path, target: Path) -> tuple[Sample, Path]:
        """Restore the latest state below `target`; returns the cost and the restored file."""

    def size(self) -> tuple[int, int]:
        """Bytes and objects of the repository."""


def tree_size(folder: Path) -> tuple[int, int]:
    """Bytes and number of the files below a folder."""
    sizes = [Path(place, name).lstat().st_size for place, _, names in os.walk(folder) for name in names]
    return sum(sizes), len(sizes)


def lamella_command() -> list[str]:
    """The installed command of this interpreter, else the package as a module."""
    beside = Path(sys.executable).with_name("lamella")
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "lamella"]


def module_path() -> dict[str, str]:
    """Makes `python -m lamella` and `python -m bench.plain` work from a checkout without an installation."""
    root = Path(__file__).resolve().parent.parent
    return {"PYTHONPATH": os.pathsep.join(str(root / below) for below in ("", "src", "kit"))}


@dataclass
class Lamella:
    """Lamella through its command line, unlocked by a key file, with state and cache of its own."""

    work: Path
    folder: str = "lamella"
    command: list[str] = field(default_factory=lamella_command)
    options: tuple[str, ...] = ()
    name: str = "lamella"

    @property
    def _base(self) -> Path:
        return self.work / self.folder

    @property
    def repository(self) -> Path:
        """Where the repository is."""
        return self._base / "repo"

    @property
    def env(self) -> dict[str, str]:
        """The variables of every run."""
        places = {f"LAMELLA_{name}": str(self._base / name.lower()) for name in ("STATE_DIR", "CACHE_DIR", "CONFIG")}
        env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self._base), **places}
        # Only where it is not installed: a longer search path would be part of every start.
        return env if len(self.command) == 1 else {**env, **module_path()}

    def call(self, *words: str | Path, opened: bool = True) -> Sample:
        """Run one command. Raises BenchError if it fails."""
        return run([*self.words(*words), "--json", "-q"] if opened else [*self.command, *words], self.env)

    def words(self, *words: str | Path) -> list[str]:
        """A command on the repository."""
        key = ("--repo", self.repository, "--keyfile", self._base / "key")
        return [str(word) for word in (*self.command, *words, *key)]

    def init(self) -> Sample:
        """Make a new repository with new state and cache."""
        shutil.rmtree(self._base, ignore_errors=True)
        self._base.mkdir()
        key = self._base / "key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(64))
        return self.call("init")

    def backup(self, image: Path) -> Sample:
        """Back the image up."""
        return self.call("backup", f"{NAME}={image}", *self.options)

    def restore(self, image: Path, target: Path) -> tuple[Sample, Path]:
        """Restore the latest snapshot as another machine does: its own state knows no checkpoint to begin with.

        Raises BenchError also if anything was taken from a checkpoint.
        """
        state = self._base / "restoring"
        shutil.rmtree(state, ignore_errors=True)
        env = {**self.env, "LAMELLA_STATE_DIR": str(state)}
        sample = run([*self.words("restore", NAME, "--to", target), "--json", "-q"], env)
        if kept := document(sample).get("kept"):
            raise BenchError(f"the restore began with the checkpoint of {kept}: it fetched only what differs")
        return sample, target

    def size(self) -> tuple[int, int]:
        """Bytes and objects of the repository."""
        return tree_size(self.repository)


def document(sample: Sample) -> dict[str, Any]:
    """What a command said with --json. Raises BenchError for anything else."""
    try:
        said = json.loads(sample.output)
    except ValueError as error:
        raise BenchError(f"not a JSON document: {sample.output[:200]!r}") from error
    if not isinstance(said, dict):
        raise BenchError("not a JSON object")
    return said


@dataclass
class Borg:
    """borg with chunks and compression as Lamella has them; the cache of file times is off, so all is compared."""

    work: Path
    name: str = "borg"

    @property
    def _env(self) -> dict[str, str]:
        base = self.work / "borg"
        env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(base), "BORG_BASE_DIR": str(base / "base")}
        return {**env, "BORG_PASSPHRASE": PASSPHRASE, "BORG_REPO": str(base / "repo"), "LANG": "C.UTF-8"}

    def init(self) -> None:
        """A new repository with borg's encryption in the repository."""
        base = self.work / "borg"
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir()
        run(["borg", "init", "--encryption=repokey-blake2"], self._env)

    def backup(self, image: Path) -> Sample:
        """One archive; fixed chunks of 128 KiB, zstd level 3."""
        options = ["--chunker-params", "fixed,131072", "--compression", "zstd,3", "--files-cache", "disabled"]
        return run(["borg", "create", *options, f"::{secrets.token_hex(4)}", image], self._env)

    def restore(self, image: Path, target: Path) -> tuple[Sample, Path]:
        """Extract the newest archive; borg writes into the current directory."""
        newest = run(["borg", "list", "--last", "1", "--short"], self._env).output.strip()
        target.mkdir()
        words = 'cd "$1" && exec borg extract --sparse "::$2"'
        return run(["sh", "-c", words, "sh", target, newest], self._env), target.joinpath(*image.parts[1:])

    def size(self) -> tuple[int, int]:
        """Bytes and objects of the repository."""
        return tree_size(self.work / "borg" / "repo")


@dataclass
class Restic:
    """restic as it is; told to read files again although their times are unchanged."""

    work: Path
    name: str = "restic"

    @property
    def _env(self) -> dict[str, str]:
        base = self.work / "restic"
        env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(base), "RESTIC_CACHE_DIR": str(base / "cache")}
        return {**env, "RESTIC_PASSWORD": PASSPHRASE, "RESTIC_REPOSITORY": str(base / "repo")}

    def init(self) -> None:
        """A new repository, in the format that compresses."""
        base = self.work / "restic"
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir()
        run(["restic", "init", "--repository-version", "2"], self._env)

    def backup(self, image: Path) -> Sample:
        """One snapshot."""
        return run(["restic", "backup", "--quiet", "--force", image], self._env)

    def restore(self, image: Path, target: Path) -> tuple[Sample, Path]:
        """Restore the latest snapshot."""
        words: list[str | Path] = ["restic", "restore", "latest", "--quiet", "--target", target]
        return run(words, self._env), target.joinpath(*image.parts[1:])

    def size(self) -> tuple[int, int]:
        """Bytes and objects of the repository."""
        return tree_size(self.work / "restic" / "repo")


def peers(work: Path) -> list[Peer]:
    """The other backup programs that are installed."""
    found: list[Peer] = [Borg(work), Restic(work)]
    return [peer for peer in found if shutil.which(peer.name)]
