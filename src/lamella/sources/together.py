"""Disks of one virtual machine that are held still at the same moment, however many sources there are of them."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar
from weakref import WeakSet

from lamella.base.durable import make_private
from lamella.base.errors import SourceError

_LOCK_SECONDS: Final = 2.0
"""The guardian of a killed backup frees the machine in less."""
_LOOK_SECONDS: Final = 0.05


@contextmanager
def alone(lock: Path, machine: str, seconds: float = _LOCK_SECONDS) -> Iterator[None]:
    """No other process of this owner works with a machine. Raises SourceError if one still does after so long."""
    make_private(lock.parent)
    fd, until = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), time.monotonic() + seconds
    try:
        while not _locked(fd):
            if time.monotonic() >= until:
                raise SourceError(f"another lamella is backing up {machine}", obj=machine)
            time.sleep(_LOOK_SECONDS)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class OneDisk(Protocol):
    """A source that is one disk of a machine."""

    disk: str
    """The disk's name."""


Moment = TypeVar("Moment")
Connection = TypeVar("Connection")


class Together(ABC, Generic[Moment, Connection]):
    """A virtual machine. All its disks that this process has open take part in each moment."""

    def __init__(self) -> None:
        self.opened: WeakSet[OneDisk] = WeakSet()
        """The sources of its disks; a source adds itself."""
        self._lock = threading.RLock()
        self._connection: Connection | None = None
        self._users = 0
        self._moment: Moment | None = None
        self._readers = 0
        self._failed: tuple[set[str], SourceError] | None = None
        self._held = ExitStack()

    @abstractmethod
    def _connect(self) -> Connection:
        """Connect. Raises SourceError."""

    @abstractmethod
    def _disconnect(self, connection: Connection) -> None:
        """Hang up."""

    @abstractmethod
    def _begin(self, names: set[str], connection: Connection, held: ExitStack) -> Moment:
        """Hold disks still until `held` is closed. Raises SourceError."""

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """A connection for as long as anybody needs it. Raises SourceError."""
        with self._lock:
            if self._connection is None:
                self._connection = self._connect()
            connection = self._connection
            self._users += 1
        try:
            yield connection
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._connection = None
                    self._disconnect(connection)

    @contextmanager
    def moment(self, name: str) -> Iterator[Moment]:
        """The moment of a disk and of all others that are open. Raises SourceError."""
        moment = self._joined(name)
        try:
            yield moment
        finally:
            self._left()

    def _joined(self, name: str) -> Moment:
        with self._lock:
            if self._moment is None:
                if self._failed is not None and name in self._failed[0]:
                    self._failed[0].remove(name)  # why the first of them failed is why the others do
                    raise self._failed[1]
                self._moment = self._begun(name)
            self._readers += 1
            return self._moment

    def _begun(self, name: str) -> Moment:
        names = {source.disk for source in self.opened}
        try:
            with ExitStack() as held:
                moment = self._begin(names, held.enter_context(self._connected()), held)
                self._held = held.pop_all()
        except SourceError as error:
            self._failed = names - {name}, error
            raise
        return moment

    def _left(self) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers:
                self._moment = None
                self._held.close()
