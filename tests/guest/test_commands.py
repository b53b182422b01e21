"""The command `lamella` on thin volumes: the main job on a real ext4, monitor, refusals, restores, doctor."""

from __future__ import annotations

import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lamella_kit.source_reading import GRAIN, MIB, pattern
from tests.cli.program import Lamella
from tests.guest.lvm import BLOCK, Pool, ThinVolume, run


@pytest.fixture
def lamella(tmp_path: Path, pool: Pool) -> Lamella:
    """The command with a repository of its own."""
    assert pool
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    found = Lamella({"LAMELLA_REPO": str(tmp_path / "repository")}, ["--keyfile", str(key)])
    found.ok("init", "-q")
    return found


@pytest.fixture
def volume(pool: Pool) -> ThinVolume:
    """A thin volume of 8 MiB with data in its first and its seventh MiB."""
    found = pool.volume()
    found.fill(pattern(MIB, 1))
    found.resize(8 * MIB)
    found.write(6 * MIB, pattern(MIB, 2))
    return found


def backup(lamella: Lamella, *arguments: str) -> dict[str, Any]:
    """The only row of a backup."""
    (row,) = lamella.json("backup", *arguments)["volumes"]
    assert row["driver"] == "lvm_thin"
    return dict(row)


@contextmanager
def reserved() -> Iterator[str]:
    """The metadata device of the pool, held still."""
    run("dmsetup", "message", "vg-pool-tpool", "0", "reserve_metadata_snap")
    try:
        yield "/dev/mapper/vg-pool_tmeta"
    finally:
        run("dmsetup", "message", "vg-pool-tpool", "0", "release_metadata_snap")


def thin_id(text: str) -> str:
    return run("lvs", "--noheadings", "-o", "thin_id", text).strip()


def mapped(text: str) -> list[int]:
    """The blocks of the pool that a thin volume maps."""
    with reserved() as device:
        dump = run("thin_dump", "-m", "--dev-id", thin_id(text), device)
    found = [int(block) for block in re.findall(r'origin_block="(\d+)"', dump)]
    for begin, length in re.findall(r'origin_begin="(\d+)".* length="(\d+)"', dump):
        found += range(int(begin), int(begin) + int(length))
    return sorted(found)


def differing(base: str, now: str) -> int:
    """How many blocks thin_delta does not call the same."""
    with reserved() as device:
        delta = run("thin_delta", "-m", "--thin1", thin_id(base), "--thin2", thin_id(now), device)
    lines = [line for line in delta.splitlines() if "<same" not in line]
    return sum(int(length) for line in lines for length in re.findall(r' length="(\d+)"', line))


# -- the main job ----------------------------------------------------------------------------------------------------


@contextmanager
def mounted(device: Path, mount: Path) -> Iterator[None]:
    mount.mkdir(exist_ok=True)
    run("mount", device, mount)
    try:
        yield
    finally:
        run("umount", mount)


def kept(pool: Pool) -> str:
    """`VG/LV` of the only snapshot of Lamella."""
    (name,) = [name for name in pool.volumes() if "+lam" in name]
    return f"vg/{name}"


class Figures:
    """CPU seconds of the guest (programs that were waited for), and bytes."""

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record
        self._before = self._now()

    def tell(self, what: str, done: int, of: int) -> None:
        now = self._now()
        self._record(what, f"{now - self._before:.1f} CPU seconds, {done} of {of} bytes")
        self._before = now

    def _now(self) -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime


def test_back_up_change_back_up_again_restore_and_compare(
    lamella: Lamella, pool: Pool, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """A volume with a real ext4 that is mounted all the time."""
    volume, mount = pool.volume(), tmp_path / "mount"
    run("lvcreate", "-q", "--type", "thin", "-V", "96M", "-n", volume.name, "--thinpool", pool.text)
    run("mkfs.ext4", "-q", volume.path)
    with mounted(volume.path, mount):
        for number in range(24):
            (mount / f"file-{number}").write_bytes(os.urandom(MIB))
        figures = Figures(record_property)
        row = backup(lamella, f"work=lvm:{volume.text}", "--chunk-size", "64K")
        figures.tell("full", row["read_bytes"], row["source_bytes"])
        assert row["mode"] == "full"
        assert row["read_bytes"] == len(mapped(kept(pool))) * BLOCK < row["source_bytes"] // 2
        (mount / "file-3").write_bytes(os.urandom(300_000))
        (mount / "file-5").unlink()
        (mount / "new").write_bytes(b"new")
        run("lvcreate", "-q", "-s", "-n", "same-as-base", kept(pool))
        figures = Figures(record_property)
        row = backup(lamella, f"work=lvm:{volume.text}")
        figures.tell("incremental", row["read_bytes"], row["source_bytes"])
        assert (row["mode"], row["reason"], row["consistency"]) == ("incremental", "", "live")
        blocks = differing("vg/same-as-base", kept(pool))
        assert row["read_bytes"] - row["sampled_bytes"] == blocks * BLOCK < 4 * MIB
        assert 0 < row["sampled_bytes"] <= 64 * BLOCK
        record_property(
            "incremental", f"{blocks} pool blocks named by thin_delta, {row['sampled_bytes']} bytes sampled"
        )
        figures = Figures(record_property)
        restored = lamella.json("restore", "work", "--to", "lvm:vg/vm-restored-private")
        figures.tell("restore", restored["bytes_written"], restored["size"])
    run("lvchange", "-ay", "-K", kept(pool))
    target = Path("/dev/vg/vm-restored-private")
    run("cmp", f"/dev/{kept(pool)}", target)
    with mounted(target, mount):
        assert (mount / "new").read_bytes() == b"new"
        assert not (mount / "file-5").exists()
        assert (mount / "file-3").stat().st_size == 300_000
    run("e2fsck", "-fn", target)


def test_a_run_of_several_repositories_and_monitor(
    lamella: Lamella, volume: ThinVolume, pool: Pool, tmp_path: Path
) -> None:
    other = Lamella({**lamella.env, "LAMELLA_REPO": str(tmp_path / "second")}, lamella.options)
    other.ok("init", "-q")
    for one in (lamella, other):
        assert backup(one, f"vm=lvm:{volume.text}", "--chunk-size", "64K")["mode"] == "full"
    volume.write(20 * GRAIN, b"x")
    assert backup(lamella, f"vm=lvm:{volume.text}")["changed_chunks"] == 1
    volume.write(30 * GRAIN, b"x")
    (row,) = Lamella().json("monitor")["sources"]
    assert (row["driver"], row["intervals"], row["dropped"]) == ("lvm_thin", 2, 2)
    volume.write(40 * GRAIN, b"x")
    assert len([name for name in pool.volumes() if "+lam" in name]) == 1
    for one, count in ((other, 3), (lamella, 2)):
        row = backup(one, f"vm=lvm:{volume.text}")
        assert (row["mode"], row["changed_chunks"]) == ("incremental", count)
        assert row["read_bytes"] - row["sampled_bytes"] == count * GRAIN
    target = tmp_path / "out.img"
    lamella.ok("restore", "vm", "--to", target)
    assert target.read_bytes() == volume.content()


def test_changed_chunks_are_stored_as_differences_from_the_kept_snapshot(
    lamella: Lamella, volume: ThinVolume, pool: Pool, tmp_path: Path
) -> None:
    """What a chunk was is read from the kept snapshot, which has a device only meanwhile."""
    volume.write(0, os.urandom(MIB))
    words = [f"vm=lvm:{volume.text}", "--deltas"]
    assert backup(lamella, *words, "--chunk-size", "64K")["mode"] == "full"
    for chunk in (3, 5):
        volume.write(chunk * 65536 + 9000, os.urandom(600))
    row = backup(lamella, *words)
    assert (row["mode"], row["delta_chunks"]) == ("incremental", 2)
    assert row["stored_bytes"] < 12_288
    assert not Path("/dev", kept(pool)).exists()
    target = tmp_path / "out.img"
    lamella.ok("restore", "vm", "--to", target)
    assert target.read_bytes() == volume.content()


# -- refusals --------------------------------------------------------------------------------------------------------


def test_a_pool_at_95_percent_is_refused_with_22_and_nothing_changed(lamella: Lamella, pool: Pool) -> None:
    small = Pool("vg", "small")
    sizes = ["-L", "16M", "--chunksize", f"{BLOCK}b", "--poolmetadatasize", "2M", "--poolmetadataspare", "n"]
    run("lvcreate", "-q", "--type", "thin-pool", *sizes, "-n", "small", "vg")
    try:
        volume = ThinVolume(small, "vm-big-private")
        run("lvcreate", "-q", "--type", "thin", "-V", "16M", "-n", volume.name, "--thinpool", small.text)
        volume.write(0, pattern(16 * MIB * 95 // 100 // BLOCK * BLOCK + BLOCK, 1))
        assert run("lvs", "--noheadings", "-o", "data_percent", small.text).strip().startswith("95")
        before = run("lvs", "-a", "-o", "+lv_uuid,thin_id,transaction_id,lv_tags", "vg"), small.status()
        done = lamella.run("backup", f"lvm:{volume.text}")
        assert done.code == 22
        assert "the data of thin pool vg/small is 95" in done.err
        assert "lvextend --size" in done.err
        after = run("lvs", "-a", "-o", "+lv_uuid,thin_id,transaction_id,lv_tags", "vg"), small.status()
        assert after == before
        assert lamella.json("list")["snapshots"] == []
        config = Path(lamella.env["LAMELLA_REPO"]).with_name("lamella.toml")
        config.write_text("[lvm]\ndata_percent = 98\n")
        assert lamella.run("backup", f"lvm:{volume.text}", env={"LAMELLA_CONFIG": str(config)}).code == 0
    finally:
        run("lvremove", "-ff", "-y", "-q", "vg/small")


def test_a_thin_delta_that_is_known_to_be_wrong_is_not_used(
    lamella: Lamella, volume: ThinVolume, tmp_path: Path
) -> None:
    backup(lamella, f"vm=lvm:{volume.text}")
    wrong = tmp_path / "bin" / "thin_delta"
    wrong.parent.mkdir()
    wrong.write_text('#!/bin/sh\n[ "$1" = --version ] && echo 1.0.4 && exit\nexit 1\n')
    wrong.chmod(0o755)
    done = Lamella({**lamella.env, "PATH": f"{wrong.parent}:{os.environ['PATH']}"}, lamella.options)
    row = backup(done, f"vm=lvm:{volume.text}")
    assert row["mode"] == "compare"
    assert row["reason"] == "thin_delta cannot be used: version 1.0.4 is known to be wrong; 1.0.6 is right"


# -- restore ---------------------------------------------------------------------------------------------------------


def test_a_new_volume_holds_data_and_nothing_else(lamella: Lamella, volume: ThinVolume, pool: Pool) -> None:
    backup(lamella, f"vm=lvm:{volume.text}", "--chunk-size", "64K")
    done = lamella.json("restore", "vm", "--to", "lvm:vg/vm-new-private")
    assert done["target"] == "/dev/vg/vm-new-private"
    assert Path("/dev/vg/vm-new-private").read_bytes() == volume.content()
    assert mapped("vg/vm-new-private") == mapped(volume.text) == [*range(16), *range(96, 112)]
    assert pool.volumes()["vm-new-private"] == ""
    again = lamella.run("restore", "vm", "--to", "lvm:vg/vm-new-private")
    assert (again.code, "exists already" in again.err) == (2, True)


def uuid(text: str) -> str:
    return run("lvs", "--noheadings", "-o", "lv_uuid", text).strip()


@pytest.mark.parametrize(
    ("how", "size"),
    [
        ("--overwrite", 4 * MIB),
        ("--in-place", 12 * MIB + 4096),
        pytest.param("--overwrite", 12 * MIB + 4096, marks=pytest.mark.long),
        pytest.param("--in-place", 4 * MIB, marks=pytest.mark.long),
        pytest.param("--overwrite", 8 * MIB, marks=pytest.mark.long),
    ],
)
def test_an_existing_volume_keeps_its_name_and_uuid_and_gets_the_size(
    lamella: Lamella, volume: ThinVolume, pool: Pool, how: str, size: int
) -> None:
    backup(lamella, f"vm=lvm:{volume.text}", "--chunk-size", "64K")
    wanted, moments = volume.content(), set(pool.volumes()) - {volume.name}
    volume.resize(size)
    volume.write(0, b"other" * (size // 5))
    before = uuid(volume.text)
    lamella.ok("restore", "vm", "--to", f"lvm:{volume.text}", how, "-y")
    assert volume.content() == wanted
    assert uuid(volume.text) == before
    # The kernel gives back whole blocks only: one that was in part behind the old end stays.
    last = {size // GRAIN} if size % GRAIN else set()
    assert set(mapped(volume.text)) - last == {*range(16), *range(96, 112)}
    assert pool.volumes()[volume.name] == ""
    assert set(pool.volumes()) - {volume.name} == moments, "kept snapshots stay"
    volume.write(20 * GRAIN, b"x")
    row = backup(lamella, f"vm=lvm:{volume.text}")
    assert row["changed_chunks"] == 1


def test_a_volume_in_use_is_not_restored_to(lamella: Lamella, volume: ThinVolume, pool: Pool) -> None:
    backup(lamella, f"vm=lvm:{volume.text}")
    names = set(pool.volumes())
    with volume.path.open("rb") as file:
        for how in ("--overwrite", "--in-place"):
            done = lamella.run("restore", "vm", "--to", f"lvm:{volume.text}", how)
            assert (done.code, "in use" in done.err) == (2, True), done.err
        assert file.read(1) == pattern(1, 1)
    assert set(pool.volumes()) == names


def test_the_device_of_a_thin_volume_is_emptied_and_written(lamella: Lamella, volume: ThinVolume, pool: Pool) -> None:
    backup(lamella, f"vm=lvm:{volume.text}", "--chunk-size", "64K")
    target = pool.volume("vm-target")
    target.fill(b"other" * (8 * MIB // 5))
    target.resize(9 * MIB)
    assert lamella.run("restore", "vm", "--to", target.path).code == 2
    lamella.ok("restore", "vm", "--to", target.path, "--overwrite")
    assert target.content()[: 8 * MIB] == volume.content()
    assert mapped(target.text)[:32] == mapped(volume.text)


def test_a_restore_that_is_broken_off_leaves_the_volume_as_it_was(
    lamella: Lamella, volume: ThinVolume, pool: Pool
) -> None:
    """A damaged repository stops it half way; what is left says what it is, and the next attempt removes it."""
    volume.write(MIB, os.urandom(MIB))
    backup(lamella, f"vm=lvm:{volume.text}", "--chunk-size", "64K")
    place = Path(lamella.env["LAMELLA_REPO"])
    packs = sorted((path for path in place.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    whole = packs[-1].read_bytes()
    packs[-1].chmod(0o600)
    middle = len(whole) // 2
    packs[-1].write_bytes(whole[:middle] + bytes(100) + whole[middle + 100 :])
    shutil.rmtree(os.environ["LAMELLA_CACHE_DIR"], ignore_errors=True)
    volume.write(0, b"later" + os.urandom(8 * MIB - 5))  # nothing that it holds is right
    before, identity = volume.content(), uuid(volume.text)
    done = lamella.run("restore", "vm", "--to", f"lvm:{volume.text}", "--overwrite")
    assert done.code == 20
    partial = f"{volume.name}+lampartial"
    assert f"/dev/vg/{partial}" in done.err
    assert (volume.content(), uuid(volume.text)) == (before, identity)
    assert partial in pool.volumes()
    found = lamella.json("doctor", code=1)
    assert [row["state"] for row in found["checkpoints"] if row["file"].endswith(partial)] == ["restore not ended"]
    packs[-1].write_bytes(whole)
    lamella.ok("restore", "vm", "--to", f"lvm:{volume.text}", "--overwrite")
    assert volume.content()[:5] != b"later"
    assert partial not in pool.volumes()


def test_a_pool_without_room_is_not_restored_to(lamella: Lamella, volume: ThinVolume, pool: Pool) -> None:
    backup(lamella, f"vm=lvm:{volume.text}")
    sizes = ["-L", "2M", "--chunksize", f"{BLOCK}b", "--poolmetadatasize", "2M", "--poolmetadataspare", "n"]
    run("lvcreate", "-q", "--type", "thin-pool", *sizes, "-n", "small", "vg")
    try:
        which = lamella.run("restore", "vm", "--to", "lvm:vg/vm-new-private")
        assert (which.code, "--pool" in which.err) == (2, True)
        done = lamella.run("restore", "vm", "--to", "lvm:vg/vm-new-private", "--pool", "small")
        assert (done.code, "would fill thin pool vg/small above 90 %" in done.err) == (22, True), done.err
        lamella.ok("restore", "vm", "--to", "lvm:vg/vm-new-private", "--pool", "pool")
        assert run("lvs", "--noheadings", "-o", "pool_lv", "vg/vm-new-private").strip() == "pool"
        assert lamella.run("restore", "vm", "--to", "lvm:vg/vm-other", "--pool", "none").code == 2
    finally:
        run("lvremove", "-ff", "-y", "-q", "vg/small")
    assert not [name for name in pool.volumes() if "partial" in name]


# -- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor_lists_pools_and_snapshots_and_mends_what_is_ours(
    lamella: Lamella, volume: ThinVolume, pool: Pool
) -> None:
    other = pool.volume()
    other.fill(pattern(MIB, 3))
    for one in (volume, other):
        backup(lamella, f"lvm:{one.text}")
    snapshots = [name for name in pool.volumes() if "+lam" in name]
    (first,) = [name for name in snapshots if name.startswith(volume.name)]
    (second,) = [name for name in snapshots if name.startswith(other.name)]
    owner = owner_in(first)
    tags = dict.fromkeys(pool.volumes()[first].split(","))
    words = [word for tag in tags for word in ("--addtag", tag)]
    leftover = first[:-1] + "8"
    run("lvcreate", "-q", "-s", "-pr", *words, "-n", leftover, volume.text)
    foreign = first.replace(owner, "0badcafe")
    words = ["--addtag", "lamella", "--addtag", "lamella:owner=0badcafe"]
    run("lvcreate", "-q", "-s", "-pr", *words, "-n", foreign, volume.text)
    run("lvcreate", "-q", "-s", "-pr", "-n", f"{volume.name}.tick", volume.text)
    run("dmsetup", "message", pool.device, "0", "reserve_metadata_snap")
    other.remove()
    found = lamella.json("doctor", code=1)
    states = {Path(row["file"]).name: row["state"] for row in found["checkpoints"]}
    assert states == {first: "needed", leftover: "leftover", second: "volume removed", foreign: "other owner"}
    checks = {row["name"]: row for row in found["checks"]}
    assert checks["thin pool"]["message"].startswith("vg/pool: data ")
    assert "release_metadata_snap" in checks["reservation"]["message"]
    fixed = lamella.json("doctor", "--fix", code=1)
    assert {Path(row["file"]).name for row in fixed["removed"]} == {leftover, second}
    assert pool.status()[3] != "-", "it is not known to be ours"
    run("dmsetup", "message", pool.device, "0", "release_metadata_snap")
    fixed = lamella.json("doctor", "--fix", "--owner", "0badcafe")
    assert [Path(row["file"]).name for row in fixed["removed"]] == [foreign]
    assert set(pool.volumes()) == {volume.name, first, f"{volume.name}.tick"}
    volume.write(20 * GRAIN, b"x")
    assert backup(lamella, f"lvm:{volume.text}")["mode"] == "incremental"


def owner_in(name: str) -> str:
    return name.rpartition("+lam")[2].partition("x")[0]


def test_verify_compares_with_the_live_volume(lamella: Lamella, volume: ThinVolume, pool: Pool) -> None:
    backup(lamella, f"vm=lvm:{volume.text}")
    names = set(pool.volumes())
    assert lamella.json("verify", "vm", "--level", "source")["findings"] == []
    assert set(pool.volumes()) == names
