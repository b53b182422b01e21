"""Qubes in pools that track changes: only what a running qube changed is read, and kept moments outlive renames."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamella.operations.backup_result import VolumeResult
from lamella.qubes.admin import Admin
from lamella.repository.host import Host
from lamella.stores.memory import MemoryStore
from tests.cli.program import Lamella
from tests.qubes.conftest import populate
from tests.qubes.fake_qubesd import FakeQubesd
from tests.qubes.system import back_up, content, essence, restore, write
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


SLOTS = 40 * MIB // 4096


@pytest.fixture
def dom0(system: FakeQubesd, tmp_path: Path) -> Lamella:
    """The command as dom0 runs it, and an empty repository."""
    (tmp_path / "key").write_bytes(os.urandom(32))
    places = {
        "LAMELLA_REPO": str(tmp_path / "repository"),
        "LAMELLA_QUBESD_SOCKET": str(system.place),
        "LAMELLA_STATE_DIR": str(tmp_path / "state"),
        "LAMELLA_CACHE_DIR": str(tmp_path / "cache"),
    }
    lamella = Lamella(places, ["--keyfile", str(tmp_path / "key")])
    lamella.ok("init", "-q")
    return lamella


@contextmanager
def writing(image: Path) -> Iterator[None]:
    """A qube that writes numbers into slots of its volume, one after the other, without an end."""
    over = threading.Event()

    def writes() -> None:
        with image.open("r+b", buffering=0) as file:
            for number in itertools.count(1):
                if over.is_set():
                    return
                os.pwrite(file.fileno(), number.to_bytes(8, "little"), number * 7919 % SLOTS * 4096)

    writer = threading.Thread(target=writes)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


def assert_a_moment(image: bytes) -> None:
    """No number is there without those written before it."""
    found = {int.from_bytes(image[at : at + 8], "little") for at in range(0, SLOTS * 4096, 4096)} - {0}
    assert found, "it was written while the backup ran"
    assert found == set(range(max(1, max(found) - SLOTS + 1), max(found) + 1))


def test_five_qubes_live_while_one_writes_one_renamed_one_deleted(dom0: Lamella, system: FakeQubesd) -> None:
    write(system, "tpl", os.urandom(MIB), volume="root")
    write(system, "vault", os.urandom(MIB))
    write(system, "own", os.urandom(MIB), volume="root", offset=5 * MIB)
    for name in ("work", "vault", "own"):
        system.start(name)
    with writing(system.live("work", "private")):
        dom0.ok("qubes", "backup", "tpl", "work", "vault", "own", "disp1")
        system.rename("vault", "safe")
        five = ("tpl", "work", "safe", "own", "disp1")
        done = dom0.json("qubes", "backup", *five)
    assert done["result"] == "complete"
    rows = {row["volume"]: row for row in done["volumes"]}
    assert (rows["safe:private"]["mode"], rows["safe:private"]["new_chunks"]) == ("incremental", 0)
    for name in ("work", "safe", "own"):
        system.stop(name)
    before = {name: essence(system.qubes[name]) for name in five}
    kept = {(name, volume): content(system, name, volume) for name, volume in (("tpl", "root"), ("own", "root"))}
    safe = content(system, "safe")
    system.remove("disp1")
    for name in ("work", "safe", "own"):
        system.remove(name)
    dom0.ok("qubes", "restore", "work", "safe", "own", "disp1")
    dom0.ok("qubes", "restore", "tpl", "--overwrite", "-y")
    assert {name: essence(system.qubes[name]) for name in five} == before
    assert {place: content(system, *place) for place in kept} == kept
    assert content(system, "safe") == safe
    assert_a_moment(content(system, "work"))
