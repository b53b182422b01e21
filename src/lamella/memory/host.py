"""This host and the directory in which it remembers repositories. Losing it costs time and warnings, never data.

Layout below the state directory: `machine` (only where the system has no machine id); `repo/<repo id>/` with the
tables of one repository, and the same in `repo/<repo id>-<place>/` for a place that has a memory of its own;
`intervals/` (lamella.memory.intervals); `sources/<hash>.lock`; `qubes-imports.json`. Decision: docs/decisions/0039.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final, Generic, TypeVar

from lamella.base.errors import RepositoryError
from lamella.base.ids import RepoId, WriterId
from lamella.crypto.sign import public_of
from lamella.format.commit import writer_id
from lamella.memory import codec

Record = TypeVar("Record")
MOST_BYTES: Final = 1 << 28
"""No table is larger."""


def _unheard(text: str) -> None:
    """The listener where nobody listens. The result of a backup lists the texts anyway."""


@dataclass(slots=True)
class Notices:
    """Reports what is wrong with the memory of a host: to `listener` at once, each matter once in a process."""

    listener: Callable[[str], None] = _unheard
    told: dict[str, str] = field(default_factory=dict)
    """The texts, by matter."""

    def tell(self, matter: str, text: str) -> None:
        """Report a text, unless this matter was reported before."""
        if matter not in self.told:
            self.told[matter] = text
            self.listener(text)


@dataclass(frozen=True, slots=True)
class Host:
    """Where this host keeps what it remembers, and what it calls itself.

    `machine` is 16 hex digits naming the machine, `label` a human's name for it, `notices` hears what is wrong with
    the memory.
    """

    machine: str
    label: str
    state_dir: Path
    cache_dir: Path
    notices: Notices = field(default_factory=Notices, compare=False, repr=False)

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
        from lamella.memory.writing import held_file

        with held_file(path, wait_seconds, "another lamella is backing up the same source"):
            yield

    def memory(self, repo_id: RepoId, place: str = "") -> HostMemory:
        """The memory of one repository, or of one place of it that has a memory of its own."""
        return HostMemory(self, self.state_dir / "repo" / (repo_id.hex() + (f"-{place}" if place else "")))

    def memories(self) -> list[HostMemory]:
        """The memories of all repositories and places."""
        return [HostMemory(self, path) for path in sorted((self.state_dir / "repo").glob("*")) if path.is_dir()]


def machine_name(machine_id: str) -> str:
    """The 16 hex digits under which a machine id appears in repositories."""
    return hashlib.sha256(b"lamella machine\0" + machine_id.strip().encode("utf-8")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class WriterKey:
    """The key pair under which this host publishes commits to one repository; without a seed there is none.

    `enrolment` is the newest that the key got. An admin's stays when the host goes on with a writer's slot.
    """

    seed: Annotated[bytes, 32]
    machine: str
    enrolment: bytes = b""
    before: tuple[Annotated[bytes, 32], ...] = ()
    """The seeds under which this host published before: their keys say that the new writer goes on."""

    @property
    def public(self) -> bytes:
        """32-byte Ed25519 public key."""
        return public_of(self.seed)

    @property
    def id(self) -> WriterId:
        """The writer id that follows from it."""
        return writer_id(self.public)

    @property
    def seeds(self) -> tuple[bytes, ...]:
        """The seeds of this key and of those before it."""
        return (*self.before, self.seed) if self.seed else self.before


class HostMemory:
    """One directory of tables: those of a repository, of a place of its own, or of the whole host."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.host = host
        self.directory = directory

    @contextmanager
    def lock(self, wait_seconds: float = 60.0) -> Iterator[None]:
        """Held while this host appends to its chain. Raises Locked, RepositoryError."""
        from lamella.memory.writing import held_file

        with held_file(self.directory / "lock", wait_seconds, "another lamella of this host is publishing"):
            yield

    def replace(self, path: Path, content: bytes) -> None:
        """Write a file durably. Raises RepositoryError."""
        from lamella.memory.writing import replace_file

        replace_file(path, content)

    @contextmanager
    def may_fail(self) -> Iterator[None]:
        """Report an error of a write inside, and continue: the work does not need what is written.

        An older memory costs time, or notices less, but a full disk must not stand between anybody and a restore.
        """
        try:
            yield
        except RepositoryError as error:
            self.host.notices.tell("unsaved", f"what this host remembers is out of date: {error.message}")

    def writer_key(self) -> WriterKey | None:
        """This host's key for the repository; None if there is none yet, or if it was made on another machine.

        A state directory that was copied to another machine must not go on under the same id (FORMAT 8, fork).
        """
        key = self._writer.read()
        return key if key.seed and key.machine == self.host.machine else None

    def new_writer_key(self, before: tuple[bytes, ...] = ()) -> WriterKey:
        """Make and remember a new key, which goes on for those of `before` and those that were remembered.

        Call it with `lock` held. Raises RepositoryError.
        """
        key = WriterKey(os.urandom(32), self.host.machine)
        return self._writer.change(lambda old: replace(key, before=tuple(dict.fromkeys((*before, *old.seeds)))[-16:]))

    @property
    def writer_seeds(self) -> tuple[bytes, ...]:
        """The seeds of all keys that were used, on whichever machine."""
        return self._writer.read().seeds

    def creator(self) -> WriterKey:
        """This host's key, made now if there is none yet. Raises Locked, RepositoryError."""
        key = self.writer_key()
        if key is None:
            with self.lock():
                key = self.writer_key() or self.new_writer_key()
        return key

    def enrolled(self, key: WriterKey, enrolment: bytes) -> WriterKey:
        """Remember the enrolment of this key; call it with `lock` held. Raises RepositoryError."""
        return self._writer.change(lambda _: replace(key, enrolment=enrolment))

    @property
    def _writer(self) -> Table[WriterKey]:
        return Table(self, "writer.json", WriterKey, empty=lambda: WriterKey(b"", ""))


class Table(Generic[Record]):
    """A JSON file that holds one value of one type: the type's empty value where there is no file.

    One rule for damage: what does not fit the type is set aside as `<file>.damaged` and reported, and what is left of
    it goes on being used. A file that the system cannot read is left alone: it is reported, and not written over.
    """

    def __init__(
        self,
        memory: HostMemory,
        name: str,
        kind: type[Record],
        under: str = "",
        *,
        empty: Callable[[], Record] | None = None,
    ) -> None:
        """With `under` the value is this member of the file's JSON object; `empty` makes the value of no file."""
        self.memory = memory
        self.path = memory.directory / name
        self.kind = kind
        self.empty = empty or kind
        self.under = under

    def read(self) -> Record:
        """The remembered value. Never fails: a table that cannot be read is reported, and counts as empty."""
        try:
            record, _, fault = self.load()
        except OSError as error:
            self.report(f"cannot be read: {error.strerror}")
            return self.empty()
        if not fault:
            return record
        from lamella.memory.writing import set_aside

        with suppress(RepositoryError):
            return set_aside(self)
        self.report(f"is damaged, and cannot be set aside: {fault}")
        return record

    def change(self, update: Callable[[Record], Record]) -> Record:
        """Replace the value by what `update` makes of it, durably; returns the new one. Raises RepositoryError."""
        from lamella.memory.writing import changed  # what only reads does without

        return changed(self, update)

    def load(self) -> tuple[Record, bytes, str]:
        """The value, the content of the file, and what is wrong with it. Raises OSError."""
        content, faults = b"", codec.Faults()
        try:
            with self.path.open("rb") as file:
                # A read of so many bytes would reserve memory for them, however small the file is.
                content = file.read(min(os.fstat(file.fileno()).st_size, MOST_BYTES))
            return codec.parse(self.kind, content, self.under, faults), content, "; ".join(faults[:3])
        except (FileNotFoundError, NotADirectoryError):
            return self.empty(), content, ""
        except codec.Unfit as error:
            return self.empty(), content, str(error)

    def report(self, what: str) -> None:
        """Tell once what is wrong with the file."""
        self.memory.host.notices.tell(str(self.path), f"{self.path}, in which this host remembers, {what}")
