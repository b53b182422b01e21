"""The store behind a server of SFTP obeys the contract: a real sshd that lets its client do nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamella.base.trust import Clear
from lamella.stores.base import Store
from lamella.stores.sftp.store import SftpStore
from lamella.stores.url import open_store
from lamella_kit.store_contract import ReadOnlyStoreContract, StoreContract
from tests.system.ssh_server import SshServer, ssh_server


@contextmanager
def sftp_alone(command: str = "internal-sftp") -> Iterator[SshServer]:
    """An sshd whose client gets SFTP, whatever it asks for."""
    with ssh_server(reuse=True) as running:
        running.allow(command=command)
        yield running


@pytest.fixture(scope="module")
def server() -> Iterator[SshServer]:
    """With everything that OpenSSH's server can do."""
    with sftp_alone() as running:
        yield running


@pytest.fixture(scope="module")
def poorer() -> Iterator[SshServer]:
    """Without the extensions of OpenSSH that the store uses."""
    with sftp_alone("internal-sftp -P hardlink,fsync,statvfs") as running:
        yield running


class BehindSftp:
    """Makes stores in new directories, each behind a session of its own, and ends them all."""

    _numbers = itertools.count()

    @pytest.fixture(autouse=True)
    def _places(self, tmp_path: Path, server: SshServer) -> Iterator[None]:
        yield from self.places(tmp_path, server)

    def places(self, below: Path, server: SshServer) -> Iterator[None]:
        self.server, self.below = server, below
        self.opened: list[Store] = []
        yield
        for store in self.opened:
            store.close()

    def place(self) -> str:
        return f"sftp://127.0.0.1:{self.server.port}{self.below}/store-{next(self._numbers)}"

    def connect(self, place: str, *, create: bool = False, read_only: bool = False) -> Store:
        # One login for all: a session more costs little.
        shared = f"-o ControlMaster=auto -o ControlPath={self.server.place}/%C -o ControlPersist=60"
        environment = {"LAMELLA_SSH_COMMAND": f"{self.server.bin}/ssh {shared}"}
        store = open_store(place, create=create, read_only=read_only, environment=environment)
        assert isinstance(store, SftpStore)
        self.opened.append(store)
        return store

    def inner(self) -> Store:
        return self.connect(self.place(), create=True)


class TestSftp(BehindSftp, StoreContract):
    def make_store(self) -> Store:
        return self.inner()

    def test_promises_all_that_a_machine_can(self) -> None:
        assert self.make_store().abilities.weaker == ()


class TestPoorerSftp(BehindSftp, StoreContract):
    @pytest.fixture(autouse=True)
    def _places(self, tmp_path: Path, poorer: SshServer) -> Iterator[None]:
        yield from self.places(tmp_path, poorer)

    def make_store(self) -> Store:
        return self.inner()

    def test_says_what_it_cannot_promise(self) -> None:
        durable, links = self.make_store().abilities.weaker
        assert "power cut" in durable and "hard links" in links


class TestReadOnlySftp(BehindSftp, ReadOnlyStoreContract):
    def make_filled(self, objects: Mapping[str, bytes]) -> Store:
        place = self.place()
        store = self.connect(place, create=True)
        for name, content in objects.items():
            store.put(name, Clear(content))
        store.sync()
        return self.connect(place, read_only=True)
