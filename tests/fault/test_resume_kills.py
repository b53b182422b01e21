"""Runs that leave points to go on from, killed at every call to the store, to the source, and at every durable write.

Whatever the point: what was committed restores, the next run needs no hand, and nothing is left behind. And killed
again and again, the work does not grow.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.base.chunkset import ChunkSet
from lamella.operations.backup import sampling
from lamella.operations.backup.sampling import Sample
from lamella.repository.repository import Repository
from lamella_kit.crash_store import ALL_CALLS, CrashPoint, CrashStore, PowerCut
from lamella_kit.tracked_source import Killed
from tests.fault.resuming import World, small_steps
from tests.fault.world import CHUNK, SECRET
from tests.property.test_tracking_machine import StateKill

CHUNKS = 28


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sampling, "choose", lambda *rest: Sample(ChunkSet(), 0))
    with small_steps():
        yield


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A disk whose first backup was broken off once, and that went on writing."""
    world = World.make(tmp_path_factory.mktemp("kills") / "world", CHUNKS)
    with small_steps():
        world.disk.faults.kill_at = 12
        with pytest.raises(Killed):
            world.run()
        world.disk.revive()
    world.write(1)
    world.write(CHUNKS - 1)
    assert world.sessions()[0].partial_roots[0].done >= 8
    return world


def check_goes_on(world: World) -> None:
    world.disk.revive()
    published = world.check(only_known=False)
    world.write(2, seed=9)
    row = world.row()
    # Killed between its first commit and the ledger, a volume is compared once.
    assert row.resumed_bytes >= 8 * CHUNK if not published else row.mode in ("incremental", "compare")
    world.check(only_known=False)
    world.check_nothing_left()


@pytest.mark.parametrize("after", [False, True])
def test_a_power_cut_at_any_call_to_the_store(prepared: World, tmp_path: Path, after: bool) -> None:
    call = 0
    while True:
        call += 1
        world = prepared.copied(tmp_path / "world")
        store = CrashStore(world.memory.objects(), CrashPoint(call, after), counted=ALL_CALLS)
        try:
            world.run(store)
        except PowerCut:
            # Of what was not synced, every second write is lost; then everything.
            for lost in (2, 1):
                left = [index for index in range(len(store.unsynced)) if index % lost]
                other = world.copied(tmp_path / "other")
                other.memory = store.after_crash(left)
                check_goes_on(other)
        else:
            break
    assert call > 30, "not even the SESSION commits were met"


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_call_to_the_source(prepared: World, tmp_path: Path, after: bool) -> None:
    call = 0
    while True:
        call += 1
        world = prepared.copied(tmp_path / "world")
        world.disk.faults.kill_at, world.disk.faults.kill_after = call, after
        try:
            world.run()
        except Killed:
            check_goes_on(world)
        else:
            break
    assert call > 12


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_write_of_the_state(prepared: World, tmp_path: Path, after: bool) -> None:
    write = 0
    while True:
        write += 1
        world = prepared.copied(tmp_path / "world")
        try:
            with StateKill(write, after).armed():
                world.run()
        except Killed:
            check_goes_on(world)
        else:
            break
    assert write > 5


@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again_the_work_does_not_grow(tmp_path: Path, seed: int) -> None:
    """Until the snapshot is there, read and sent is a little more than once, whatever the kills met."""
    chance = random.Random(seed)
    world = World.make(tmp_path / "world", 300)
    kills = 0
    published = False
    while not published:
        store = CrashStore(world.memory.objects(), CrashPoint(chance.randrange(1, 60), chance.random() < 0.5))
        try:
            world.run(store)
            published = True
        except PowerCut:
            kills += 1
            world.disk.revive()
        world.memory = store.after_crash(range(len(store.unsynced)))
        # Killed after its last commit was put, it has published all the same, and knows it not.
        published = published or _snapshots(world) > 0
    assert kills > 3
    # Two ranges since the point that counts or one before it, two that were read ahead, and those of the last pack.
    assert world.disk.log["read_into"] <= 300 // 4 + kills * 8
    data = sum(len(content) for name, content in world.memory.objects().items() if name.startswith("p/"))
    assert data <= 300 * CHUNK * 1.05 + kills * 20_000
    world.check(only_known=False)
    world.row()
    world.check()
    world.check_nothing_left()


def _snapshots(world: World) -> int:
    with Repository.open(world.memory.connect(), SECRET, world.host) as repo:
        return len(repo.catalogue.snapshots)
