"""The power goes at every writing call while the log is compacted, and any part of what was not synced is lost."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from lamella.format.deletion import Remove
from lamella.history import publish
from lamella.operations.shared.auditing import compact_log
from lamella.repository.repository import Repository
from lamella_kit.crash_store import WRITING_CALLS, CrashStore, PowerCut, crash_points, surviving_subsets
from tests.property.test_compaction import World
from tests.unit.small_repository import ADMIN, tick


@pytest.fixture
def life(tmp_path: Path) -> World:
    """Two audited checkpoints of two chains, and commits before them that are still there."""
    with mock.patch.object(publish, "CHECKPOINT_EVERY", 3):
        world = World(tmp_path)
        for number in range(4):
            world.step("two", "add", number, 1)
        with world.small.opened() as repo:
            repo.publish([Remove(tuple(world.refs[:2]))])
        for number in range(5):
            world.step("two", "nothing", number, 1)
            world.step("one", "nothing", number, 1)
            world.step("one", "audit", 0, 0)
        return world


def compact(life: World, store: CrashStore, host: str) -> int:
    with Repository.open(store, ADMIN, life.small.host(host), clock=tick, whole=True) as repo:
        deleted, problems = compact_log(repo, 0, delete=True)
        assert problems == []
        return deleted


def test_a_crash_while_the_log_is_compacted_loses_nothing(life: World) -> None:
    before = life.small.store.objects()
    whole = CrashStore(before, counted=WRITING_CALLS)
    assert compact(life, whole, "whole") > 3
    for number, point in enumerate(crash_points(whole.calls)):
        store = CrashStore(before, point, counted=WRITING_CALLS)
        with pytest.raises(PowerCut):
            compact(life, store, f"crash{number}")
        for surviving in surviving_subsets(len(store.unsynced), every_up_to=3, random_subsets=2):
            after = CrashStore(store.after_crash(surviving).objects())
            for opened_whole in (False, True):
                with Repository.open(after, ADMIN, life.small.host(f"new{number}"), whole=opened_whole) as repo:
                    assert repo.problems == []
                    assert [shot.ref for shot in repo.catalogue.snapshots] == life.refs[2:]
            compact(life, after, f"again{number}")
