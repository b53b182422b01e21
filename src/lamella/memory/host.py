"""This host's own memory about repositories: writer key, pins, confirmations. Losing it costs time, never data.

Layout below the state directory: `machine` (only where the system has no machine id) and `repo/<repo id>/` with
`writer.json`, `pins.json`, `confirmed.json`, `ledger.json`, `unfinished.json`, `places.json`, `lock`; the same in
`repo/<repo id>-<place>/` for a place that is gone on with apart from the others; `sources/<hash>.lock`. Files are
written beside and renamed, so a crash leaves the old state.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamella.base.errors import Locked, RepositoryError
from lamella.base.ids import RepoId, WriterId
from lamella.crypto.sign import public_of
from lamella.format.commit import writer_id


@dataclass(frozen=True, slots=True)
class Host:
    """Where this host keeps what it remembers, and what it calls itself.

    `machine` is 16 hex digits naming the machine, `label` a human's name for it.
    """

    machine: str
    label: str
    state_dir: Path
    cache_dir: Path

    @property
    def owner(self) -> str:
        """8 hex digits by which this host knows its own checkpoints, also after losing its state."""
        who = f"{self.machine}\0{os.getuid()}\0{self.state_dir.absolute()}"
        return hashlib.sha256(b"lamella owner\0" + os.fsencode(who)).hexdigest()[:8]

    @property
    def source_records(self) -> Path:
        """Where drivers write down what must be known again after a kill, beside the locks of sources."""
        return self.state_dir / "sources"

    @contextmanager
    def source_lock(self, identity: bytes, wait_seconds: float) -> Iterator[None]:
        """Held while a source is backed up or its moments are changed, whatever the repository. Raises Locked.

        So nobody removes a moment that another process of this host is reading.
        """
        path = self.source_records / f"{hashlib.sha256(identity).hexdigest()[:32]}.lock"
        with held_file(path, wait_seconds, "another lamella is backing up the same source"):
            yield

    def memory(self, repo_id: RepoId, place: str = "") -> HostMemory:
        """What this host remembers about one repository, or about one place of it that has a memory of its own."""
        return HostMemory(self, self.state_dir / "repo" / (repo_id.hex() + (f"-{place}" if place else "")))


def machine_name(machine_id: str) -> str:
    """The 16 hex digits under which a machine id appears in repositories."""
    return hashlib.sha256(b"lamella machine\0" + machine_id.strip().encode("utf-8")).hexdigest()[:16]


def private_directory(path: Path) -> Path:
    """Create a directory only its owner can enter. Raises RepositoryError."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise RepositoryError(f"cannot create {path}: {error.strerror}", obj=str(path)) from error
    return path


def write_durably(path: Path, content: bytes) -> None:
    """Replace a private file in one step: after a crash there is the old content or the new. Raises RepositoryError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise RepositoryError(f"cannot write {path}: {error.strerror}", obj=str(path)) from error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def held_file(path: Path, wait_seconds: float, busy: str) -> Iterator[None]:
    """Hold an exclusive flock on `path` (created when missing).

    Raises Locked with the text `busy`, RepositoryError if the file cannot be made.
    """
    private_directory(path.parent)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RepositoryError(f"cannot create {path}: {error.strerror}", obj=str(path)) from error
    try:
        _flock(descriptor, wait_seconds, busy)
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int, wait_seconds: float, busy: str) -> None:
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Locked(busy, hint="try again later, or wait with --lock-wait SECONDS") from None
            time.sleep(0.05)


@dataclass(frozen=True, slots=True)
class WriterKey:
    """The key pair under which this host publishes commits to one repository."""

    seed: bytes
    machine: str

    @property
    def public(self) -> bytes:
        """32-byte Ed25519 public key."""
        return public_of(self.seed)

    @property
    def id(self) -> WriterId:
        """The writer id that follows from it."""
        return writer_id(self.public)


class HostMemory:
    """The files of one repository in the state directory."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.host = host
        self.directory = directory

    def read(self, name: str) -> dict[str, Any]:
        """The content of a JSON file, empty if it is missing or unreadable: lost memory is harmless by design."""
        try:
            content = json.loads((self.directory / name).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Replace a JSON file, durably. Raises RepositoryError."""
        private_directory(self.directory)
        write_durably(self.directory / name, json.dumps(content, indent=1, sort_keys=True).encode("utf-8"))

    @contextmanager
    def lock(self, wait_seconds: float = 60.0) -> Iterator[None]:
        """Held while this host appends to its chain or changes its memory. Raises Locked."""
        with held_file(self.directory / "lock", wait_seconds, "another lamella of this host is publishing"):
            yield

    def writer_key(self) -> WriterKey | None:
        """This host's key for the repository; None if there is none yet, or if it was made on another machine.

        A state directory that was copied to another machine must not go on under the same id (FORMAT 8, fork).
        """
        stored = self.read("writer.json")
        try:
            key = WriterKey(bytes.fromhex(stored["seed"]), str(stored["machine"]))
        except (KeyError, TypeError, ValueError):
            return None
        return key if key.machine == self.host.machine and len(key.seed) == 32 else None

    def new_writer_key(self) -> WriterKey:
        """Make and remember a new key; call it with `lock` held."""
        key = WriterKey(os.urandom(32), self.host.machine)
        self.write("writer.json", {"seed": key.seed.hex(), "machine": key.machine})
        return key
