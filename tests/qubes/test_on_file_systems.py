"""Qubes in pools that track changes: only what a running qube changed is read, and kept moments outlive renames."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.operations.backup_result import VolumeResult
from lamella.qubes.admin import Admin
from lamella.repository.host import Host
from lamella.stores.memory import MemoryStore
from tests.qubes.conftest import populate
from tests.qubes.fake_qubesd import FakeQubesd
from tests.qubes.system import back_up, content, restore, write
from tests.system import loop_fs

MIB = 1 << 20
CHUNK = 1 << 16


@pytest.fixture(params=["btrfs", "xfs"])
def pool(request: pytest.FixtureRequest) -> Iterator[Path]:
    with loop_fs.make(request.param) as mount:
        yield mount


@pytest.fixture
def system(tmp_path: Path, pool: Path) -> Iterator[FakeQubesd]:
    with FakeQubesd(tmp_path / "run", {"varlibqubes": pool}, volume_size=48 * MIB) as fake:
        populate(fake)
        yield fake


def saved(store: MemoryStore, host: Host, admin: Admin, *names: str) -> dict[str, VolumeResult]:
    return {row.volume: row for row in back_up(store, host, admin, *names).volumes}


def test_a_running_qube_costs_what_it_changed(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd, pool: Path
) -> None:
    write(system, "work", os.urandom(32 * MIB))
    os.sync()
    system.start("work")
    assert saved(store, host, admin, "work")["work:private"].mode == "full"
    for number in range(20):
        write(system, "work", os.urandom(4096), offset=number * 24 * CHUNK)
    row = saved(store, host, admin, "work")["work:private"]
    assert (row.mode, row.changed_chunks, row.consistency) == ("incremental", 20, 1)
    assert row.read_bytes - row.sampled_bytes == 20 * CHUNK

    system.stop("work")  # the dirty file becomes the image, and the image a revision
    write(system, "work", b"after the shutdown")
    row = saved(store, host, admin, "work")["work:private"]
    assert (row.mode, row.changed_chunks, row.consistency) == ("incremental", 1, 3)

    system.rename("work", "job")
    row = saved(store, host, admin, "job")["job:private"]
    assert row.new_chunks == 0

    before = content(system, "job")
    system.remove("job")
    assert list((pool / ".lamella").iterdir())  # a kept moment does not go with the qube
    restore(store, host, admin, ["job"])
    assert content(system, "job") == before
    row = saved(store, host, admin, "job")["job:private"]
    assert row.new_chunks == 0
