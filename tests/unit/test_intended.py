"""A first backup that was broken off: what it stored is found by the next attempt."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from lamella.base.errors import StoreError
from lamella.memory.intended import NewVolume, forget, new_volume, remember
from lamella.operations.backup.story import BackupOptions, BackupResult, Request, plan_backup
from lamella_kit.fault_store import FaultStore
from tests.unit.small_repository import Small

SIZE = 40 << 20


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small.make(tmp_path / "hosts")


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    path = tmp_path / "noise.img"
    path.write_bytes(random.Random(858).randbytes(SIZE))
    return path


def broken_off(small: Small, path: Path, options: BackupOptions) -> None:
    """A backup whose destination fails after three packs."""
    store = FaultStore(small.store)
    store.fail("put", StoreError("the disk went away"), after=3)
    with small.opened(store=store) as repo, pytest.raises(StoreError, match="went away"):
        plan_backup(repo, [Request(None, small.source(path))], options).execute()
    store.assert_all_fired()


def again(small: Small, path: Path, options: BackupOptions) -> BackupResult:
    with small.opened() as repo:
        result = plan_backup(repo, [Request(None, small.source(path))], options).execute()
    assert result.complete
    return result


@pytest.mark.parametrize("label", [None, "shared"])
@pytest.mark.parametrize("cache_is_lost", [False, True])
def test_the_next_attempt_sends_only_what_is_missing(
    small: Small, noise: Path, label: str | None, cache_is_lost: bool
) -> None:
    options = BackupOptions(domain=label)
    broken_off(small, noise, options)
    if cache_is_lost:
        shutil.rmtree(small.host().cache_dir)
    result = again(small, noise, options)
    assert 0 < result.stored_bytes < SIZE - (20 << 20)
    with small.opened() as repo:
        assert new_volume(repo.memory, b"any", "") != new_volume(repo.memory, b"any", "")
        assert repo.memory.read("intended.json") == {}


def test_another_domain_or_a_lost_memory_sends_everything(small: Small, noise: Path) -> None:
    broken_off(small, noise, BackupOptions())
    assert again(small, noise, BackupOptions(domain="now shared")).stored_bytes > SIZE


def test_a_dry_run_remembers_nothing(small: Small, noise: Path) -> None:
    with small.opened() as repo:
        plan_backup(repo, [Request(None, small.source(noise))], BackupOptions())
        assert repo.memory.read("intended.json") == {}


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"volume_id": "00", "domain_id": "11" * 16, "domain_label": ""},
        {"volume_id": "22" * 16, "domain_id": "00" * 16, "domain_label": ""},
        {"volume_id": 7, "domain_id": "11" * 16, "domain_label": ""},
        {"volume_id": "22" * 16, "domain_id": "11" * 16, "domain_label": "other"},
    ],
)
def test_what_cannot_be_used_is_not(small: Small, row: dict[str, object]) -> None:
    with small.opened() as repo:
        repo.memory.write("intended.json", {b"disk".hex(): row})
        assert new_volume(repo.memory, b"disk", "").volume_id != b"\x22" * 16


def test_it_is_remembered_until_it_is_forgotten(small: Small) -> None:
    with small.opened() as repo:
        ids = new_volume(repo.memory, b"disk", "x")
        assert remember(repo.memory, b"disk", "x", ids) == ""
        assert new_volume(repo.memory, b"disk", "x") == ids
        assert isinstance(ids, NewVolume)
        forget(repo.memory, b"disk")
        assert new_volume(repo.memory, b"disk", "x") != ids
