"""Qubes whose volumes are in a real thin pool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.memory.host import Host
from lamella.qubes.admin import Admin
from lamella.qubes.restore_plan import RestoreWishes
from lamella.stores.memory import MemoryStore
from lamella_kit.fake_qubesd import FakeQubesd
from tests.fault.world import host_at, init
from tests.guest.lvm import Pool
from tests.guest.qubes_pool import ThinVolumes
from tests.qubes import stories
from tests.qubes.conftest import populate
from tests.qubes.stories import saved
from tests.qubes.system import content, restore

SIZE = 6 << 20


@pytest.fixture
def system(tmp_path: Path, pool: Pool) -> Iterator[FakeQubesd]:
    with FakeQubesd(tmp_path / "run", {"vm-pool": ThinVolumes(pool)}, volume_size=SIZE) as fake:
        yield fake


@pytest.fixture
def admin(system: FakeQubesd) -> Admin:
    return Admin(system.place, system.internal_place, seconds=250)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return host_at(tmp_path / "dom0")


@pytest.fixture
def store(host: Host) -> MemoryStore:
    made = MemoryStore()
    init(made, host)
    return made


def test_a_running_qube_costs_what_it_changed(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd, pool: Pool
) -> None:
    system.add("tpl", "TemplateVM")
    system.add("work", template="tpl")
    stories.a_running_qube_costs_what_it_changed(store, host, admin, system)
    assert len([name for name in pool.volumes() if "+lam" in name]) == 1


def test_going_back_a_day_costs_what_differs(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd, pool: Pool
) -> None:
    system.add("tpl", "TemplateVM")
    system.add("work", template="tpl")
    stories.going_back_a_day_costs_what_differs(store, host, admin, system)
    assert not [name for name in pool.volumes() if name.endswith(("-import", "+lampartial"))]
    assert {tags for name, tags in pool.volumes().items() if "+lam" not in name} == {""}


def test_committed_and_live_states_are_told_apart(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd, pool: Pool
) -> None:
    """And an import that a kill left open, which keeps the qube from starting, is closed by the next restore."""
    system.add("tpl", "TemplateVM")
    system.add("vault", template="tpl")
    system.write("vault", b"committed")
    system.start("vault")
    system.write("vault", b"live data")
    assert saved(store, host, admin, "vault")["vault:private"].consistency == 1
    system.stop("vault")
    assert saved(store, host, admin, "vault")["vault:private"].consistency == 3
    assert [name for name in pool.volumes() if name.endswith("-back")]

    admin.internal("internal.vm.volume.ImportBegin", "vault", "private", str(SIZE).encode())
    (host.state_dir / "qubes-imports.json").write_text('[["vault", "private"]]')
    system.write("vault", b"newer    ")
    done = restore(store, host, admin, ["vault"], RestoreWishes(overwrite=True))
    assert done["vault"].result == "restored"
    assert content(system, "vault")[:9] == b"live data"
    system.start("vault")
    assert not [name for name in pool.volumes() if name.endswith("-import")]

    # Without snapshots a running qube writes to the volume itself: the name says nothing of it.
    system.stop("vault")
    system.qubes["vault"].volumes["private"].revisions_to_keep = -1
    stories.a_direct_volume_is_never_called_committed(store, host, admin, system)


def test_five_qubes_live_while_one_writes_one_renamed_one_deleted(system: FakeQubesd, tmp_path: Path) -> None:
    populate(system)
    stories.five_qubes_live_while_one_writes_one_renamed_one_deleted(stories.command(system, tmp_path), system)
