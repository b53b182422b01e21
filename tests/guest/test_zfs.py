"""The driver `zfs` on real volumes: the source contract, random changes, whole backups, what is refused.

Where ZFS is built, `make test-all` runs what has no mark: in the guest, whose processor is a program, all of it takes
half an hour (`make test-zfs`).
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lamella.base.errors import SourceError, UsageError
from lamella.sources.base import Keeping, Source
from lamella.sources.registry import open_kept_source
from lamella.sources.zfs import commands
from lamella_kit.fake_qubesd import FakeQubesd
from lamella_kit.source_changes import CHANGES, SIZE
from lamella_kit.source_contract import SourceContract
from lamella_kit.source_reading import GRAIN, KIB, MIB, check_delta, pattern, whole
from tests.cli import program
from tests.cli.program import COMMAND, Lamella, environment
from tests.features import require
from tests.guest import machine
from tests.guest.lvm import run
from tests.guest.zfs import BLOCK, MACHINE, OWNER, POOL, ZfsChanges, ZfsLayout, ZfsVolume, zfs_pool
from tests.qubes import stories
from tests.qubes.system import content

ROUNDS = int(os.environ.get("LAMELLA_ZFS_ROUNDS", "20"))
SEED = int(os.environ.get("LAMELLA_ZFS_SEED", "1"))
OTHERS = {name for name in CHANGES if name.startswith(("made anew", "replaced by a"))}
"""Changes after which the name means another volume, which no bookmark of the old one is in."""
SHORT = {"one byte", "replaced by zeros", "shrunk then filled again"}


@pytest.fixture(scope="module", autouse=True)
def pool() -> Iterator[None]:
    require("zfs-guest", "LAMELLA_GUEST" in os.environ, machine.missing() or "the guest was not started")
    require("zfs-guest", not machine.missing_zfs(), machine.missing_zfs())
    with zfs_pool():
        yield


def some(names: set[str]) -> list[Any]:
    """These as parameters; all but those of SHORT are for the long run."""
    return [pytest.param(name, marks=[] if name in SHORT else [pytest.mark.long]) for name in sorted(names)]


@pytest.mark.zfs
class TestZfs(SourceContract):
    sizes = (BLOCK, GRAIN, 3 * MIB + 16 * KIB)
    small_sizes = (BLOCK, GRAIN + BLOCK)

    @pytest.fixture(autouse=True)
    def _volume(self, pool: None) -> Iterator[None]:
        self.mine = ZfsVolume()
        yield
        self.mine.destroy()

    def volume(self) -> ZfsVolume:
        return self.mine

    def make_source(self, image: Path) -> Source:
        return open_kept_source(str(image), MACHINE, Keeping(OWNER))

    def changes(self, volume: object, chance: Random) -> ZfsChanges:
        assert isinstance(volume, ZfsVolume)
        return ZfsChanges(volume, chance, SIZE)

    @pytest.mark.parametrize("name", some(set(CHANGES) - OTHERS))
    def test_a_frozen_volume_does_not_change(self, name: str) -> None:
        super().test_a_frozen_volume_does_not_change(name)

    @pytest.mark.parametrize("name", some(set(CHANGES) - OTHERS))
    def test_nothing_outside_a_delta_changed(self, name: str) -> None:
        super().test_nothing_outside_a_delta_changed(name)

    @pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long) for name in sorted(OTHERS)])
    def test_another_volume_of_the_name_is_compared(self, name: str) -> None:
        volume = self.filled(pattern(SIZE, 4))
        checkpoint = self.base(self.source_of(volume))
        CHANGES[name](volume)
        self.assert_lost(volume, checkpoint)

    def test_a_frozen_volume_outlives_the_volume(self) -> None:
        """ZFS refuses to destroy a volume that is read."""
        volume = self.filled(pattern(SIZE, 1))
        content = volume.content()
        with self.source_of(volume).freeze() as frozen:
            run("zfs", "destroy", "-r", self.mine.name, code=1)
            assert whole(frozen) == content

    def test_an_empty_volume_has_nothing_allocated(self) -> None:
        pytest.skip("ZFS tells holes of a volume to nobody, and no volume is empty")

    def test_a_delta_reads_no_data(self) -> None:
        pytest.skip("a send stream holds what changed")

    @pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.long) for seed in range(3)])
    def test_random_changes(self, seed: int) -> None:
        super().test_random_changes(seed)


def test_nothing_that_changed_is_missed(record_property: Any) -> None:  # noqa: ANN401 - pytest gives it no type
    """Each moment against all that are kept. LAMELLA_ZFS_ROUNDS and LAMELLA_ZFS_SEED set rounds and seed."""
    chance = Random(SEED)
    volume = ZfsVolume(block=chance.choice([4096, 8192, 16384, 131072]))
    bases: dict[str, bytes] = {}
    compared = zeroed = 0
    with ZfsChanges(volume, chance, SIZE) as changes:
        for number in range(ROUNDS):
            when = f"seed {SEED}, round {number}, blocks of {volume.block}, {dict(changes.done)}"
            source = volume.source()
            with source.freeze() as frozen:
                now = whole(frozen)
                assert now == volume.content(), when
                for checkpoint, content in bases.items():
                    delta = frozen.delta_since(checkpoint, chance.choice([GRAIN, 4 * GRAIN]))
                    check_delta(delta, content, now, when)
                    compared, zeroed = compared + 1, zeroed + len(delta.zeroed)
                source.keep(frozen.checkpoint)
                bases[frozen.checkpoint] = now
            if len(bases) > 2:
                gone = chance.choice(list(bases))
                source.drop(gone)
                del bases[gone]
            assert all(moment.startswith("#") for moment in volume.moments()), "no snapshot is pinned"
            changes.change(chance.choice([1, 3, 10]))
    record_property("deltas", f"{compared}, chunks of zeros {zeroed}, {dict(changes.done)}")
    assert zeroed or ROUNDS < 20, "no delta named a hole"


def test_what_is_refused_says_why(tmp_path: Path) -> None:
    run("zfs", "create", f"{POOL}/files")
    for text, error, said in (
        (f"zfs:{POOL}/files", UsageError, "filesystem"),
        (f"zfs:{POOL}", UsageError, "not a volume of ZFS"),
        (f"zfs:{POOL}/x@y", UsageError, "not a volume of ZFS"),
        (f"zfs:{POOL}/absent", SourceError, "does not exist"),
    ):
        with pytest.raises(error, match=said):
            open_kept_source(text, MACHINE, Keeping(OWNER))
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    options = ["-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation=file://{key}"]
    run("zfs", "create", *options, f"{POOL}/secret")
    volume = ZfsVolume(parent=f"{POOL}/secret")
    volume.fill(pattern(SIZE, 1))
    source = volume.source()
    with source.freeze() as frozen:
        source.keep(frozen.checkpoint)
    volume.write(BLOCK, b"changed")
    with source.freeze() as later:
        assert later.delta_since(frozen.checkpoint, GRAIN).changed
        assert whole(later) == volume.content()
    run("zfs", "unmount", "-a")
    run("zfs", "unload-key", "-r", f"{POOL}/secret")
    with pytest.raises(SourceError, match="key is not loaded"), source.freeze():
        pytest.fail("it cannot be read")
    run("zfs", "destroy", "-r", f"{POOL}/secret")


def test_a_kernel_that_hides_holes_is_not_believed() -> None:
    volume = ZfsVolume()
    volume.fill(pattern(SIZE, 1))
    source = volume.source()
    with source.freeze() as frozen:
        source.keep(frozen.checkpoint)
    parameter = Path("/sys/module/zfs/parameters/send_holes_without_birth_time")
    parameter.write_text("0")
    try:
        with source.freeze() as later, pytest.raises(SourceError, match="holes"):
            later.delta_since(frozen.checkpoint, GRAIN)
    finally:
        parameter.write_text("1")


KILLER = """
import os, signal, sys
from lamella.__main__ import entry
from lamella.sources.zfs import commands
step = os.environ["KILL"]
real = commands.change
def killed(*words):
    real(*words)
    if words[0] == step:
        os.kill(os.getpid(), signal.SIGKILL)
commands.change = killed
entry()
"""


def killed_after(step: str, lamella: Lamella, volume: ZfsVolume) -> subprocess.CompletedProcess[bytes]:
    """A backup that is killed when it has done this to ZFS."""
    command = [COMMAND[0], "-c", KILLER, *lamella.options, "backup", str(volume.path)]
    env = environment({**lamella.env, "KILL": step})
    return subprocess.run(command, env=env, capture_output=True, timeout=program.SECONDS, check=False)


@pytest.mark.zfs
def test_backups_restores_and_kills_through_the_command(tmp_path: Path) -> None:
    """Full, killed after each change to ZFS, incremental, bookmark lost; what is left; restored and compared."""
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    lamella = Lamella({"LAMELLA_REPO": str(tmp_path / "repository")}, ["--keyfile", str(key)])
    lamella.ok("init", "-q")
    volume = ZfsVolume(f"{POOL}/disk")
    volume.fill(pattern(SIZE, 1))
    row = lamella.json("backup", volume.path, "--chunk-size", "64K")["volumes"][0]
    assert (row["mode"], row["driver"], row["consistency"]) == ("full", "zfs", "live")
    for number, step in enumerate(("snapshot", "clone", "bookmark")):
        volume.write(number * 100_000, pattern(70_000, number + 2))
        done = killed_after(step, lamella, volume)
        assert done.returncode == -signal.SIGKILL, (step, done)
        assert any(one.startswith("@") for one in volume.moments())
        row = lamella.json("backup", volume.path)["volumes"][0]
        assert (row["mode"], row["reason"]) == ("incremental", ""), step
        assert [one[0] for one in volume.moments()] == ["#"], step
        assert run("zfs", "list", "-H", "-o", "name").split().count(f"{POOL}/disk") == 1
        assert f"{POOL}/disk.lamella" not in run("zfs", "list", "-H", "-o", "name")
    content = volume.content()
    lamella.ok("restore", "disk", "--to", tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes() == content
    assert lamella.json("verify", "disk", "--level", "source")["findings"] == []
    run("zfs", "destroy", f"{POOL}/disk{volume.moments()[0]}")
    volume.write(5, b"missed by whoever believes another moment")
    row = lamella.json("backup", volume.path)["volumes"][0]
    assert row["mode"] == "compare" and row["reason"]


# -- Qubes OS ---------------------------------------------------------------------------------------------------------


def removed_as_qubesd_does(volume: ZfsVolume) -> None:
    """What depends on a snapshot of the volume is promoted; then the volume is destroyed."""
    for clone in run("zfs", "list", "-H", "-o", "clones", "-t", "snapshot", "-r", volume.name).split():
        if clone != "-":
            run("zfs", "promote", clone)
    run("zfs", "destroy", "-r", volume.name)


def datasets() -> list[str]:
    return run("zfs", "list", "-H", "-o", "name", "-t", "all", "-r", POOL).split()


def test_a_volume_that_is_removed_while_it_is_read_does_not_live_on(tmp_path: Path) -> None:
    """Its clone would: at the end of the run, or of the next one in this pool if the run was killed."""
    volume, other = ZfsVolume(), ZfsVolume()
    other.fill(pattern(SIZE, 2))
    volume.fill(pattern(SIZE, 1))
    content = volume.content()
    with volume.source().freeze() as frozen:
        removed_as_qubesd_does(volume)
        assert any(name.startswith(volume.name) for name in datasets()), "as its promoted clone"
        assert whole(frozen) == content
    assert not any(name.startswith(volume.name) for name in datasets()), datasets()
    volume.fill(pattern(SIZE, 1))
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    lamella = Lamella({"LAMELLA_REPO": str(tmp_path / "repository")}, ["--keyfile", str(key)])
    lamella.ok("init", "-q")
    assert killed_after("clone", lamella, volume).returncode == -signal.SIGKILL
    removed_as_qubesd_does(volume)
    assert any(name.startswith(volume.name) for name in datasets())
    lamella.ok("backup", other.path)
    assert not any(name.startswith(volume.name) for name in datasets()), datasets()


@pytest.mark.zfs
def test_the_volumes_of_qubes(tmp_path: Path) -> None:
    """A running qube is frozen at one moment, and costs what it changed; the same after a shutdown."""
    with FakeQubesd(tmp_path / "run", {"pool": ZfsLayout()}, volume_size=SIZE) as system:
        system.add("tpl", "TemplateVM")
        system.add("work", template="tpl")
        dom0 = stories.command(system, tmp_path)
        system.write("work", pattern(SIZE // 2, 3))
        system.start("work")
        for mode, consistency in (("full", "live"), ("incremental", "live"), ("incremental", "halted")):
            if consistency == "halted":
                system.stop("work")
            before = content(system, "work")
            row = next(
                row for row in dom0.json("qubes", "backup", "work")["volumes"] if row["volume"] == "work:private"
            )
            assert (row["driver"], row["mode"], row["consistency"]) == ("zfs", mode, consistency), row
            assert mode == "full" or row["read_bytes"] - row.get("sampled_bytes", 0) <= MIB, row
            dom0.ok("restore", "work:private", "--to", tmp_path / "back", "--overwrite")
            assert (tmp_path / "back").read_bytes() == before
            system.write("work", b"newer", offset=100_000)
        vid = system.qubes["work"].volumes["private"].vid
        assert [one.mark for one in commands.moments(vid)] == ["#"], "nothing is pinned"
        assert not [name for name in datasets() if ".lamella" in name]
        assert dom0.run("qubes", "backup", "work", "--committed").code == 0
        system.start("work")
        refused = dom0.run("qubes", "backup", "work", "--committed")
        assert refused.code == 3 and "keeps no state of its last shutdown" in refused.err + refused.out
