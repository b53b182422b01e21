"""What holds for qubes in every pool that tracks changes; told by the tests of each kind of pool."""

from __future__ import annotations

import itertools
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lamella.memory.host import Host
from lamella.operations.backup.story import VolumeResult
from lamella.qubes.admin import Admin
from lamella.qubes.restore_plan import RestoreWishes
from lamella.sources.base import Consistency
from lamella.stores.base import Store
from lamella_kit.fake_qubesd import FakeQubesd
from tests.cli.program import Lamella
from tests.qubes.system import FEW_WORKERS, back_up, content, essence, restore

CHUNK = 1 << 16
_SECTOR = 4096


def saved(store: Store, host: Host, admin: Admin, *names: str) -> dict[str, VolumeResult]:
    return {row.volume: row for row in back_up(store, host, admin, *names).volumes}


def a_running_qube_costs_what_it_changed(store: Store, host: Host, admin: Admin, system: FakeQubesd) -> None:
    """Then it is shut down, renamed, lost and restored, and never read anew."""
    size = system.volume_size
    system.write("work", os.urandom(size * 2 // 3))
    os.sync()
    system.start("work")
    assert saved(store, host, admin, "work")["work:private"].mode == "full"
    for number in range(20):
        system.write("work", os.urandom(_SECTOR), offset=number * (size // 20 // CHUNK * CHUNK))
    row = saved(store, host, admin, "work")["work:private"]
    assert (row.mode, row.changed_chunks, row.consistency) == ("incremental", 20, 1)
    assert row.read_bytes - row.sampled_bytes == 20 * CHUNK

    system.stop("work")  # what it wrote to becomes the volume, and the volume a revision
    system.write("work", b"after the shutdown")
    row = saved(store, host, admin, "work")["work:private"]
    assert (row.mode, row.changed_chunks, row.consistency) == ("incremental", 1, 3)

    system.rename("work", "job")
    row = saved(store, host, admin, "job")["job:private"]
    assert row.new_chunks == 0

    before = content(system, "job")
    system.remove("job")
    restore(store, host, admin, ["job"])
    assert content(system, "job") == before
    row = saved(store, host, admin, "job")["job:private"]
    assert row.new_chunks == 0


def going_back_a_day_costs_what_differs(store: Store, host: Host, admin: Admin, system: FakeQubesd) -> None:
    """The import begins as the checkpoint: only what differs is fetched, and what is in use stays shared."""
    size = system.volume_size
    system.write("work", os.urandom(size * 2 // 3))
    first = back_up(store, host, admin, "work").snapshot
    monday = content(system, "work")
    for number in (3, 9, 17):
        system.write("work", b"tuesday", offset=number * CHUNK)
    second = back_up(store, host, admin, "work").snapshot
    tuesday = content(system, "work")
    system.write("work", os.urandom(size // 2))  # what it holds by now does not matter
    for trust in (False, True):
        wishes = RestoreWishes(overwrite=True, trust_local=trust)
        done = restore(store, host, admin, [f"work@{first}"], wishes)["work"]
        assert (done.result, done.bytes_written) == ("restored", 3 * CHUNK), done
        how = "compared what differs from" if trust else "began as"
        assert f"volume private: {how} the checkpoint of {second}" in done.notes[0], done.notes
        assert content(system, "work") == monday
        done = restore(store, host, admin, [f"work@{second}"], wishes)["work"]
        assert (content(system, "work"), done.bytes_written) == (tuesday, 0)
    row = saved(store, host, admin, "work")["work:private"]
    assert (row.mode, row.new_chunks) == ("incremental", 0), "the checkpoint is what it was"

    # A qube that is lost is made again from its checkpoint; one whose volume is smaller by now gets its size.
    system.remove("work")
    done = restore(store, host, admin, [f"work@{first}"])["work"]
    assert (content(system, "work"), done.bytes_written) == (monday, 3 * CHUNK)
    system.start("work")
    system.stop("work")


def a_direct_volume_is_never_called_committed(
    store: Store, host: Host, admin: Admin, system: FakeQubesd, qube: str = "vault"
) -> None:
    """A halted qube whose volume has no snapshots is started, paused and halted again; `--committed` says no."""
    committed, volume = replace(FEW_WORKERS, live=False), f"{qube}:private"
    assert {row.volume: row for row in back_up(store, host, admin, qube, options=committed).volumes}[volume].error == ""
    system.start(qube)
    system.write(qube, b"of the running qube")
    words = {Consistency.LIVE, Consistency.UNKNOWN, Consistency.CHANGED}  # the driver `file` cannot promise a moment
    assert saved(store, host, admin, qube)[volume].consistency in words
    done = back_up(store, host, admin, qube, options=committed)
    row = {row.volume: row for row in done.volumes}[volume]
    assert (row.result, done.complete) == ("failed", False)
    assert "keeps no state of its last shutdown while its qube runs" in row.error, row.error
    assert "revisions_to_keep is -1" in row.error, row.error
    system.qubes[qube].state = "Paused"
    words = {Consistency.QUIESCED, Consistency.UNKNOWN, Consistency.CHANGED}
    assert saved(store, host, admin, qube)[volume].consistency in words
    system.qubes[qube].state = "Running"
    system.stop(qube)
    for options in (FEW_WORKERS, committed):
        row = {row.volume: row for row in back_up(store, host, admin, qube, options=options).volumes}[volume]
        assert row.consistency in {Consistency.HALTED, Consistency.UNKNOWN}


def command(system: FakeQubesd, place: Path, repository: str = "") -> Lamella:
    """The command as dom0 runs it, and an empty repository."""
    (place / "key").write_bytes(os.urandom(32))
    (place / "key").chmod(0o600)
    places = {
        "LAMELLA_REPO": repository or str(place / "repository"),
        "LAMELLA_QUBESD_SOCKET": str(system.place),
        "LAMELLA_STATE_DIR": str(place / "state"),
        "LAMELLA_CACHE_DIR": str(place / "cache"),
    }
    lamella = Lamella(places, ["--keyfile", str(place / "key")])
    lamella.ok("init", "-q")
    return lamella


def five_qubes_live_while_one_writes_one_renamed_one_deleted(dom0: Lamella, system: FakeQubesd) -> None:
    """Template, two app qubes, standalone, named disposable; all come back under their names, settings included."""
    system.write("tpl", os.urandom(CHUNK), volume="root")
    system.write("vault", os.urandom(CHUNK))
    system.write("own", os.urandom(CHUNK), volume="root", offset=system.volume_size // 2)
    for name in ("work", "vault", "own"):
        system.start(name)
    slots = system.volume_size // 2 // _SECTOR
    with _writing(system.live("work", "private"), slots):
        dom0.ok("qubes", "backup", "tpl", "work", "vault", "own", "disp1")
        system.rename("vault", "safe")
        five = ("tpl", "work", "safe", "own", "disp1")
        done = dom0.json("qubes", "backup", *five)
    assert done["result"] == "complete"
    row = next(row for row in done["volumes"] if row["volume"] == "safe:private")
    assert (row["mode"], row["reason"], row["new_chunks"]) == ("incremental", "", 0)
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
    _assert_a_moment(content(system, "work"), slots)


@contextmanager
def _writing(image: Path, slots: int) -> Iterator[None]:
    """A qube that writes numbers into slots of its volume, one after the other, without an end."""
    over = threading.Event()
    # What a qube writes to a device is not kept back by this kernel, as a buffered write of ours would be.
    device = os.O_SYNC if stat.S_ISBLK(image.stat().st_mode) else 0

    def writes() -> None:
        fd = os.open(image, os.O_WRONLY | device)
        for number in itertools.takewhile(lambda _: not over.is_set(), itertools.count(1)):
            os.pwrite(fd, number.to_bytes(8, "little"), number * 7919 % slots * _SECTOR)
        os.close(fd)

    writer = threading.Thread(target=writes)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


def _assert_a_moment(image: bytes, slots: int) -> None:
    """No number is there without those written before it."""
    found = {int.from_bytes(image[at : at + 8], "little") for at in range(0, slots * _SECTOR, _SECTOR)} - {0}
    assert found, "it was written while the backup ran"
    assert found == set(range(max(1, max(found) - slots + 1), max(found) + 1))
