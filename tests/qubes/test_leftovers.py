"""Qubes that are not as most: volumes without snapshots, preloaded disposables, volumes that are gone, running ones."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.base.errors import SourceError
from lamella.memory.host import Host
from lamella.qubes.admin import Admin
from lamella.qubes.inventory import HALTED, Pool, QubeVolume
from lamella.qubes.sources import committed_place, live_place
from lamella.stores.memory import MemoryStore
from lamella_kit.fake_qubesd import FakeQubesd
from lamella_kit.qubes_layouts import Files, InPlaceFiles, Refusal
from tests.cli.program import Lamella
from tests.qubes import stories
from tests.qubes.conftest import populate
from tests.qubes.system import back_up, content, essence


@pytest.fixture
def system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeQubesd]:
    (tmp_path / "pool").mkdir()
    pools = {"varlibqubes": getattr(request, "param", Files)(tmp_path / "pool")}
    with FakeQubesd(tmp_path / "run", pools, volume_size=1 << 20) as fake:
        populate(fake)
        yield fake


@pytest.fixture
def dom0(tmp_path: Path, system: FakeQubesd) -> Lamella:
    return stories.command(system, tmp_path)


@pytest.mark.parametrize("system", [Files, InPlaceFiles], indirect=True)
def test_a_direct_volume_is_never_called_committed(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd
) -> None:
    system.qubes["vault"].volumes["private"].revisions_to_keep = -1
    stories.a_direct_volume_is_never_called_committed(store, host, admin, system)


def test_what_a_running_qube_writes_to_is_never_its_last_shutdown(tmp_path: Path) -> None:
    """Of every driver, with snapshots and without, whatever the pool says of revisions."""
    (tmp_path / "q").mkdir()
    image, facts = tmp_path / "q/private.img", {"revisions_to_keep": "1"}
    image.touch()
    config = {"dir_path": str(tmp_path)}
    for driver in ("file", "file-reflink", "zfs", "lvm_thin"):
        vid = f"..{image}" if driver == "lvm_thin" else "q/private"  # below /dev
        pool, volume = Pool("p", driver, config), QubeVolume("private", "p", vid, 1, True, facts)
        for state in ("Running", "Paused", "Transient", "NA"):
            assert not live_place(pool, volume, state).committed, (driver, state)
            with pytest.raises(SourceError, match="keeps no state of its last shutdown"):
                committed_place(pool, volume, state)
        assert live_place(pool, volume, HALTED) == committed_place(pool, volume, HALTED)
        assert live_place(pool, volume, HALTED).committed
    for driver, vid, name in (
        ("file-reflink", "q/private", "private-dirty.img"),
        ("lvm_thin", f"..{image}", "private.img-snap"),
    ):
        (tmp_path / "q" / name).touch()
        pool, volume = Pool("p", driver, config), QubeVolume("private", "p", vid, 1, True, facts)
        assert committed_place(pool, volume, "Running").committed
        for state in ("Running", HALTED):  # a halted one that was not shut down in order
            place = live_place(pool, volume, state)
            assert place.text.endswith(name) and not place.committed


def test_the_command_refuses_the_one_volume_and_says_why(dom0: Lamella, system: FakeQubesd) -> None:
    system.qubes["vault"].volumes["private"].revisions_to_keep = -1
    system.start("vault")
    done = dom0.run("--json", "qubes", "backup", "vault", "own", "--committed")
    results = {row["volume"]: row["result"] for row in done.json["volumes"]}
    assert done.code == 3, done
    assert (results["vault:private"], results["own:private"]) == ("failed", "complete")
    refused = dom0.run("qubes", "backup", "vault", "--committed")
    assert "vault:private was not saved: " in refused.err and "revisions_to_keep is -1" in refused.err, refused


def test_what_loses_its_old_state_is_said_before(dom0: Lamella, system: FakeQubesd) -> None:
    dom0.ok("qubes", "backup", "vault", "own")
    system.qubes["vault"].volumes["private"].revisions_to_keep = 0
    rows = {
        row["qube"]: row["notes"] for row in dom0.json("qubes", "restore", "vault", "own", "--overwrite", "-n")["qubes"]
    }
    assert (["private keeps no revisions" in note for note in rows["vault"]], rows["own"]) == ([True], [])


# -- preloaded disposables --------------------------------------------------------------------------------------------


def preloaded(system: FakeQubesd) -> str:
    system.add("disp7", "DispVM", template="dvm").preloaded = True
    system.qubes["disp7"].tags.add("chosen")
    system.start("disp7")
    system.qubes["disp7"].state = "Paused"
    system.qubes["dvm"].features |= {"preload-dispvm": "disp7", "preload-dispvm-max": "1"}
    return "disp7"


def test_preloaded_disposables_are_left_alone(dom0: Lamella, system: FakeQubesd) -> None:
    name = preloaded(system)
    before = essence(system.qubes[name])
    system.calls.clear()
    done = dom0.json("qubes", "backup", "--all", "--pause")
    assert name not in done["qubes"] and "disp1" in done["qubes"] and done["result"] == "complete"
    asked = {call.split()[0] for call in system.calls if call.endswith(f" {name}")}
    assert asked <= {"admin.vm.property.Get+is_preload", "admin.vm.property.Get+include_in_backups"}
    assert dom0.run("qubes", "backup", "--tag", "chosen").code == 4
    refused = dom0.run("qubes", "backup", name, "own")
    assert (refused.code, "preloaded" in refused.err) == (2, True), refused
    assert (essence(system.qubes[name]), system.qubes[name].state) == (before, "Paused")

    # One that was used is a qube like any other; and no restore says which are kept ready.
    system.qubes[name].preloaded = False
    assert name in dom0.json("qubes", "backup", "--all")["qubes"]
    system.qubes["dvm"].features["preload-dispvm"] = "disp8 disp9"
    dom0.ok("qubes", "restore", "dvm", "--overwrite", "--exact", "-y")
    assert system.qubes["dvm"].features["preload-dispvm"] == "disp8 disp9"
    assert system.qubes["dvm"].features["preload-dispvm-max"] == "1"


# -- volumes that are gone --------------------------------------------------------------------------------------------


def test_a_volume_that_qubesd_cannot_describe_fails_alone(dom0: Lamella, system: FakeQubesd) -> None:

    def lost(method: str, dest: str) -> None:
        if method == "admin.vm.volume.Info" and dest == "own" and system.calls[-1].startswith(f"{method}+private "):
            raise Refusal("StoragePoolException", "no such volume")

    system.before_call = lost
    done = dom0.json("qubes", "backup", "own", "vault", code=3)
    assert {row["volume"] for row in done["volumes"] if row["result"] == "failed"} == {"own:private"}
    assert {"own:settings", "own:root", "vault:private"} <= {row["volume"] for row in done["volumes"]}
    assert "backup_timestamp" not in system.qubes["own"].properties


def test_a_qubesd_that_does_not_answer_is_not_waited_for(store: MemoryStore, host: Host, system: FakeQubesd) -> None:
    impatient = Admin(system.place, system.internal_place, seconds=1)
    released = threading.Event()

    def hang(method: str, dest: str) -> None:
        if method == "admin.vm.volume.Info" and dest == "own" and "+root " in system.calls[-1]:
            system.before_call = lambda *_: None
            released.wait(30)

    system.before_call = hang
    threading.Timer(1.5, released.set).start()
    started = time.monotonic()
    done = back_up(store, host, impatient, "own")
    assert time.monotonic() - started < 25
    assert {row.volume for row in done.volumes if row.result == "failed"} >= {"own:root"}
    assert not done.complete


def test_a_restore_into_a_volume_that_qubesd_cannot_describe_fails(dom0: Lamella, system: FakeQubesd) -> None:
    system.write("own", b"saved")
    dom0.ok("qubes", "backup", "own")
    system.write("own", b"newer")

    def lost(method: str, dest: str) -> None:
        if method == "admin.vm.volume.Info" and dest == "own" and "+private " in system.calls[-1]:
            raise Refusal("StoragePoolException", "no such volume")

    system.before_call = lost
    done = dom0.run("qubes", "restore", "own", "--overwrite", "-y")
    assert done.code == 3 and "no such volume" in done.out, done
    assert content(system, "own")[:5] == b"newer"


# -- running ones -----------------------------------------------------------------------------------------------------


def test_which_qubes_run_is_shown_before_and_after(dom0: Lamella, system: FakeQubesd) -> None:
    system.start("work")
    planned = dom0.ok("qubes", "backup", "work", "own", "-n").out
    assert "work is running: its state of this moment is saved" in planned and "own is" not in planned
    assert dom0.json("qubes", "backup", "work", "own", "-n")["states"] == {"own": "Halted", "work": "Running"}
    assert "work is running" in dom0.ok("qubes", "backup", "work", "own").err
    listed = {row["qube"]: row["state"] for row in dom0.json("qubes", "list")["qubes"]}
    assert (listed["work"], listed["own"]) == ("Running", "Halted")
    (line,) = [line for line in dom0.ok("qubes", "list").out.splitlines() if line.startswith("work ")]
    assert "Running" in line


@pytest.mark.parametrize("system", [InPlaceFiles], indirect=True)
def test_a_restore_warns_of_what_was_no_single_moment(dom0: Lamella, system: FakeQubesd) -> None:
    system.write("work", os.urandom(system.volume_size))  # so that reading takes a while
    system.start("work")
    over = threading.Event()

    def writes() -> None:
        while not over.wait(0.001):
            system.write("work", time.time_ns().to_bytes(8, "little"))

    writer = threading.Thread(target=writes)
    writer.start()
    try:
        row = {row["volume"]: row for row in dom0.json("qubes", "backup", "work")["volumes"]}["work:private"]
    finally:
        over.set()
        writer.join()
    assert row["consistency"] == "changed"
    system.stop("work")
    for options in (["-n"], ["-y"]):
        said = dom0.run("qubes", "restore", "work", "--overwrite", *options)
        assert said.code == 0 and "warning: work:private@" in said.err and "may not start" in said.err, said
