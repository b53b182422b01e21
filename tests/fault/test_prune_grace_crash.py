"""The power goes at every writing call of both steps of a prune without a lock: condemning with copies, and reaping."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lamella.format.records import Ref
from lamella.memory.host import Host
from lamella.operations.backup.story import BackupOptions, Request, plan_backup
from lamella.operations.prune.plan import PruneOptions, PruneResult
from lamella.operations.prune.prune import run_prune
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.stores.base import Store
from lamella.stores.memory import MemoryStore
from lamella_kit.crash_store import PowerCut, crash_points
from lamella_kit.scripted_source import ScriptedSource
from tests.fault.lockless import LocklessCrash, Turned
from tests.fault.world import CHUNK, SECRET, Truth, check_rescue, check_sound, fresh_host, host_at, init, short_rescue

OLDEST = random.Random(1).randbytes(6 * CHUNK)
OLD = random.Random(2).randbytes(9 * CHUNK)
NEW = OLD[: 2 * CHUNK] + random.Random(3).randbytes(3 * CHUNK)
OPTIONS = PruneOptions(max_unused=0)


@dataclass
class Start:
    """Objects and host memory before a prune."""

    objects: dict[str, bytes]
    place: Path
    now: int
    truth: Truth
    removals: list[Ref]

    def host(self, place: Path) -> Host:
        """A copy of the host as it is before the prune."""
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.place, place)
        return host_at(place)


def prune(store: Store, host: Host, clock: Turned, removals: list[Ref]) -> PruneResult:
    with Repository.open(store, SECRET, host, clock=clock, exclusive=True) as repo:
        return run_prune(repo, removals, OPTIONS)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    place, clock, truth = tmp_path / "start", Turned(), Truth()
    store = LocklessCrash()
    with short_rescue(monkeypatch):
        init(store, host_at(place))
    for content in (OLDEST, OLD, NEW):
        with Repository.open(store, SECRET, host_at(place), clock=clock) as repo:
            request = Request("disk", ScriptedSource("disk", content))
            result = plan_backup(repo, [request], BackupOptions(chunk_log2=16, workers=1)).execute()
    truth.learn(result, {"disk": NEW})
    with Repository.open(store, SECRET, host_at(place), clock=clock) as repo:
        removals = [one.snapshot.ref for one in select(repo, []) if one.text not in truth.volumes]
    return Start(store.after_crash(range(99)).objects(), place, clock.now, truth, removals)


@pytest.fixture
def condemned(start: Start, tmp_path: Path) -> Start:
    """The same, two days after a prune condemned what can go."""
    store, clock, place = LocklessCrash(start.objects), Turned(start.now), tmp_path / "condemned"
    result = prune(store, start.host(place), clock, start.removals)
    assert result.condemned_bytes > 13 * CHUNK and result.repacked_bytes > 2 * CHUNK
    clock.days(2)
    return Start(store.after_crash(range(99)).objects(), place, clock.now, start.truth, [])


def crashes(start: Start, place: Path) -> Iterator[tuple[dict[str, bytes], Path]]:
    whole = LocklessCrash(start.objects)
    prune(whole, start.host(place / "whole"), Turned(start.now), start.removals)
    for point in crash_points(whole.calls):
        host = start.host(place / "crashed")
        store = LocklessCrash(start.objects, point)
        with pytest.raises(PowerCut):
            prune(store, host, Turned(start.now), start.removals)
        for survived in dict.fromkeys((frozenset[int](), frozenset(range(len(store.unsynced))))):
            yield store.after_crash(survived).objects(), place / "crashed"


def size(objects: dict[str, bytes]) -> int:
    return sum(len(content) for name, content in objects.items() if name.startswith("p/"))


@pytest.mark.parametrize("step", ["start", "condemned"])
def test_power_cut_at_every_writing_call(step: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    before: Start = request.getfixturevalue(step)
    cases = 0
    for objects, crashed in crashes(before, tmp_path):
        check_sound(
            LocklessCrash(objects), fresh_host(tmp_path / "fresh"), before.truth, tmp_path, others=(OLDEST, OLD)
        )
        host = host_at(shutil.copytree(crashed, tmp_path / "survivor"))
        clock = Turned(before.now)
        for days in (0, 2, 8, 2):
            clock.days(days)
            store = LocklessCrash(objects)
            assert not prune(store, host, clock, before.removals).blocked
            objects = store.after_crash(()).objects()
        check_sound(LocklessCrash(objects), host, before.truth, tmp_path)
        check_rescue(objects, before.truth, tmp_path)
        # Copies that nothing names, of a kill before their commit, hold what is needed and stay (docs/decisions/0021).
        assert size(objects) < 10 * CHUNK
        shutil.rmtree(tmp_path / "survivor")
        cases += 1
    assert cases >= 8


def test_memory_store_is_a_store_with_a_lock() -> None:
    """What the others of this file stand apart from."""
    assert MemoryStore().abilities.exclusive_lock and not LocklessCrash().abilities.exclusive_lock
