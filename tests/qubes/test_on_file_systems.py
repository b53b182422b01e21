"""Qubes in pools that track changes: only what a running qube changed is read, and checkpoints outlive renames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.memory.host import Host
from lamella.qubes.admin import Admin
from lamella.stores.memory import MemoryStore
from lamella_kit.fake_qubesd import FakeQubesd
from tests.qubes import stories
from tests.qubes.conftest import populate
from tests.system import loop_fs

MIB = 1 << 20


@pytest.fixture(params=["btrfs", "xfs"])
def pool(request: pytest.FixtureRequest) -> Iterator[Path]:
    with loop_fs.make(request.param) as mount:
        yield mount


@pytest.fixture
def system(tmp_path: Path, pool: Path) -> Iterator[FakeQubesd]:
    with FakeQubesd(tmp_path / "run", {"varlibqubes": pool}, volume_size=48 * MIB) as fake:
        populate(fake)
        yield fake


def test_a_running_qube_costs_what_it_changed(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd, pool: Path
) -> None:
    stories.a_running_qube_costs_what_it_changed(store, host, admin, system)
    # A checkpoint does not lie where it would go with the qube.
    assert list((pool / ".lamella").iterdir())


def test_going_back_a_day_costs_what_differs(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd, pool: Path
) -> None:
    before = {path.name: path.read_bytes() for path in pool.glob(".lamella/*")}
    stories.going_back_a_day_costs_what_differs(store, host, admin, system)
    assert not before and len(list(pool.glob(".lamella/*"))) == 1


def test_five_qubes_live_while_one_writes_one_renamed_one_deleted(system: FakeQubesd, tmp_path: Path) -> None:
    stories.five_qubes_live_while_one_writes_one_renamed_one_deleted(stories.command(system, tmp_path), system)


def test_a_direct_volume_is_never_called_committed(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd
) -> None:
    system.qubes["vault"].volumes["private"].revisions_to_keep = -1
    stories.a_direct_volume_is_never_called_committed(store, host, admin, system)
