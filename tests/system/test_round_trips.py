"""How often a run has to wait for a distant store: counted, because that is what latency costs.

Over a link of 200 ms, so that what is sent together arrives together, however busy this machine is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lamella.base.clock import now_ms
from lamella.crypto.slots import Secret
from lamella.format.keyslot import SlotType
from lamella.memory.host import Host, machine_name
from lamella.operations.backup.story import Request, plan_backup
from lamella.operations.shared.selection import select
from lamella.repository.create import SlotWanted, create_repository
from lamella.repository.repository import Repository
from lamella.repository.slots import read_marker
from lamella.sources.registry import open_source
from lamella.stores.pipe.client import PipeStore
from lamella.stores.url import open_store
from lamella.stores.wrap.retrying import RetryingStore
from tests.fault.world import restored
from tests.system.bad_link import BadLink, bad_link
from tests.system.ssh_server import SshServer, ssh_server

MIB = 1 << 20
SSH_ROUND_TRIPS = 6
"""TCP, versions, key exchange, service, login, channel: measured with a link of our own, see docs/bench.md."""
SECRET = Secret(SlotType.KEYFILE, bytes(range(32)))


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[SshServer, BadLink]]:
    """A running sshd, whose `ssh` is first on the PATH, and the slow link that leads to it."""
    with ssh_server() as running, bad_link((running.address, running.port), delay=0.1) as link:
        monkeypatch.setenv("PATH", f"{running.bin}:{os.environ['PATH']}")
        key = (running.place / "host.pub").read_text()
        (running.place / "known").write_text(f"[127.0.0.1]:{link.port} {key}")
        running.port = link.port
        yield running, link


@pytest.fixture
def server(ends: tuple[SshServer, BadLink]) -> SshServer:
    """The server behind the link."""
    return ends[0]


@pytest.fixture
def link(ends: tuple[SshServer, BadLink]) -> BadLink:
    """The link."""
    return ends[1]


class Place:
    """A repository behind the server, and the volumes that are backed up into it."""

    def __init__(self, server: SshServer, folder: Path, volumes: int) -> None:
        self.host = Host(machine_name("a" * 32), "host", folder / "state", folder / "cache")
        self.url = f"ssh://127.0.0.1:{server.port}{folder}/repo"
        self.images = [folder / f"disk-{number}.img" for number in range(volumes)]
        for image in self.images:
            image.write_bytes(os.urandom(MIB))
        with closing(open_store(self.url, create=True)) as store:
            create_repository(store, self.host, [SlotWanted(SECRET, True)], now_ms)

    def backup(self) -> int:
        """Back up everything in one run; returns how often somebody waited for the store, opening included."""
        pipe = open_store(self.url)
        assert isinstance(pipe, PipeStore)
        with closing(RetryingStore(pipe)) as store:
            read_marker(store)
            with Repository.open(store, SECRET, self.host) as repo:
                sources = [
                    open_source(str(image), machine=self.host.machine, owner=self.host.owner) for image in self.images
                ]
                requests = [Request(image.stem, source) for image, source in zip(self.images, sources, strict=True)]
                assert plan_backup(repo, requests).execute().complete
        assert pipe.connections == 1
        return pipe.waits.rounds

    def change(self) -> None:
        """Some bytes in every volume."""
        for image in self.images:
            with image.open("r+b") as file:
                file.seek(MIB // 2)
                file.write(os.urandom(4096))


def test_opening_and_a_backup_without_changes(server: SshServer, tmp_path: Path) -> None:
    place = Place(server, tmp_path, 1)
    place.backup()
    assert place.backup() + SSH_ROUND_TRIPS <= 12


@pytest.mark.slow
def test_an_incremental_backup_of_thirty_small_volumes(server: SshServer, tmp_path: Path) -> None:
    place = Place(server, tmp_path, 30)
    place.backup()
    place.change()
    assert place.backup() + SSH_ROUND_TRIPS < 20


@pytest.mark.slow
def test_thirty_small_volumes_over_a_link_that_loses_packets(server: SshServer, link: BadLink, tmp_path: Path) -> None:
    """Slowly, over one connection; nothing is lost but time."""
    link.delay, link.loss = 0.025, 0.1
    place = Place(server, tmp_path, 30)
    place.backup()
    place.change()
    place.backup()
    with closing(open_store(place.url)) as store, Repository.open(store, SECRET, place.host) as repo:
        for image in place.images[::3]:
            (newest, *_) = select(repo, [image.stem])
            assert restored(repo, newest, tmp_path / "out.img") == image.read_bytes()
    assert link.lost > 50
    assert link.cuts == 0


@pytest.mark.slow
def test_another_host_fetches_many_commits_at_once(server: SshServer, tmp_path: Path) -> None:
    place = Place(server, tmp_path, 1)
    for _ in range(12):
        place.backup()
    place.host = Host(machine_name("b" * 32), "other", tmp_path / "other-state", tmp_path / "other-cache")
    pipe = open_store(place.url)
    assert isinstance(pipe, PipeStore)
    with closing(pipe), Repository.open(pipe, SECRET, place.host) as repo:
        assert len(repo.catalogue.snapshots) == 12
        assert pipe.waits.rounds <= 5
