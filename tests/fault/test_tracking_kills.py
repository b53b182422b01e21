"""A run killed at each of its calls to the source, and at each durable write of the host's memory, one after the other.

Whatever the point: no snapshot suffers, the next runs are incremental and right, and they leave no moment too many.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.operations.backup.story import BackupOptions, BackupResult, Request, plan_backup
from lamella.operations.moments.monitor import monitor
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from lamella_kit.tracked_source import Killed, TrackedDisk
from tests.fault.world import CHUNK, SECRET, host_at, init, restored
from tests.property.test_tracking_machine import StateKill

MOST_CALLS = 40


class World:
    """A disk with 6 chunks, two repositories, and one interval that both their bases lead on by."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.host = host_at(place)
        self.stores = [MemoryStore(), MemoryStore()]
        self.disk = TrackedDisk("disk", bytearray(b"a" * (6 * CHUNK)))
        self.truth: dict[tuple[int, str], bytes] = {}
        for store in self.stores:
            init(store, self.host)

    def copied(self, place: Path) -> World:
        """The same at another place."""
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.place, place)
        other = World.__new__(World)
        other.place, other.host = place, host_at(place)
        other.stores = [MemoryStore(store.objects()) for store in self.stores]
        other.disk = TrackedDisk("disk", bytearray(self.disk.content), moments=dict(self.disk.moments))
        other.disk._made = self.disk._made
        other.truth = copy.copy(self.truth)
        return other

    def write(self, chunk: int, content: bytes) -> None:
        self.disk.content[chunk * CHUNK : chunk * CHUNK + len(content)] = content

    def backup(self, number: int) -> BackupResult:
        with Repository.open(self.stores[number], SECRET, self.host) as repo:
            options = BackupOptions(chunk_log2=16 + number, workers=1)
            result = plan_backup(repo, [Request("disk", self.disk.source())], options).execute()
        assert (result.complete, result.warnings) == (True, [])
        self.truth[number, result.snapshot] = bytes(self.disk.content)
        return result

    def run(self, what: str) -> None:
        if what == "monitor":
            monitor(self.host, self.disk.source())
        else:
            self.backup(int(what))

    def check(self) -> None:
        """Every snapshot restores; what a killed run had committed is of the present moment."""
        for number, store in enumerate(self.stores):
            with Repository.open(store, SECRET, self.host) as repo:
                found = {one.snapshot.name: one for one in select(repo, [])}
                assert {name for which, name in self.truth if which == number} <= set(found)
                for name, one in found.items():
                    expected = self.truth.get((number, name), bytes(self.disk.content))
                    self.truth[number, name] = expected
                    assert restored(repo, one, self.place / "out.img") == expected


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("kills") / "world")
    world.backup(0)
    world.write(1, b"one")
    world.backup(1)
    world.write(2, b"two")
    monitor(world.host, world.disk.source())
    world.write(3, b"three")
    assert len(world.disk.moments) == 1
    yield world


def check_goes_on(world: World) -> None:
    world.disk.revive()
    world.check()
    world.write(4, b"four")
    for number in (0, 1):
        (row,) = world.backup(number).volumes
        assert (row.mode, row.reason) == ("incremental", ""), "a kill costs nothing"
    world.check()
    assert len(world.disk.moments) == 2
    assert not list((world.host.state_dir / "intervals").glob("*/*.json"))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("what", ["0", "monitor"])
def test_a_kill_at_any_call_to_the_source(prepared: World, tmp_path: Path, what: str, after: bool) -> None:
    for call in range(1, MOST_CALLS):
        world = prepared.copied(tmp_path / "world")
        world.disk.faults.kill_at, world.disk.faults.kill_after = call, after
        try:
            world.run(what)
        except Killed:
            check_goes_on(world)
        else:
            assert call > 5, "not one call was killed"
            return
    pytest.fail("a run has more calls than were tried")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("what", ["0", "monitor"])
def test_a_kill_at_any_write_of_the_state(prepared: World, tmp_path: Path, what: str, after: bool) -> None:
    for write in range(1, MOST_CALLS):
        world = prepared.copied(tmp_path / "world")
        try:
            with StateKill(write, after).armed():
                world.run(what)
        except Killed:
            check_goes_on(world)
        else:
            assert write > 1, "not one write was killed"
            return
    pytest.fail("a run writes more often than was tried")
