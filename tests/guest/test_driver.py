"""What is special about thin volumes: names, what is compared with what, pools at their limits, kills, a long fuzz."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from lamella.base.errors import CheckpointLost, SourceAtRisk, SourceError, UsageError
from lamella.sources.base import FrozenVolume, Keeping, PoolLimits, Source
from lamella.sources.editing import Change, can_be_edited, edited
from lamella.sources.lvm import reservation
from lamella.sources.places import place_of
from lamella.sources.registry import open_kept_source
from lamella_kit.source_changes import SIZE
from lamella_kit.source_reading import GRAIN, MIB, check_delta, pattern, whole
from tests.guest.lvm import BLOCK, MACHINE, OWNER, Pool, ThinChanges, ThinVolume, run

CYCLES = int(os.environ.get("LAMELLA_GUEST_CYCLES", "50"))


@pytest.fixture
def volume(pool: Pool) -> ThinVolume:
    """A thin volume with data in its first MiB."""
    found = pool.volume()
    found.fill(pattern(MIB, 1))
    found.resize(4 * MIB)
    return found


def kept(source: Source) -> str:
    """Keep the present moment of a source."""
    with source.freeze() as frozen:
        source.keep(frozen.checkpoint)
        return frozen.checkpoint


def changed(frozen: FrozenVolume, base: str) -> list[tuple[int, int]]:
    return list(frozen.delta_since(base, GRAIN).changed.runs())


def lost(source: Source, base: str, why: str) -> None:
    """Fail unless no delta can be had from this moment, for this reason."""
    with source.freeze() as frozen, pytest.raises(CheckpointLost, match=why):
        frozen.delta_since(base, GRAIN)


def row(text: str) -> dict[str, str]:
    """What LVM says of a logical volume."""
    columns = "lv_name,lv_attr,lv_tags,origin,lv_uuid,thin_id,lv_size,pool_lv"
    found = json.loads(run("lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", columns, text))
    fields: dict[str, str] = found["report"][0]["lv"][0]
    return fields


# -- clones that take changes -----------------------------------------------------------------------------------------


def some_changes(size: int, chance: Random) -> list[Change]:
    """Blocks of 4 KiB written, and ranges given back, in and across blocks of the pool."""
    found: list[Change] = []
    for number in range(40):
        offset = chance.randrange(size // 4096) * 4096
        length = min(chance.choice([4096, 8192, BLOCK, 3 * BLOCK + 4096]), size - offset)
        found.append((offset, length if number % 2 else chance.randbytes(min(length, 8192))))
    return found


def applied(content: bytes, changes: list[Change]) -> bytes:
    found = bytearray(content)
    for offset, new in changes:
        found[offset : offset + (new if isinstance(new, int) else len(new))] = bytes(new)
    return bytes(found)


def given_back(changes: list[Change]) -> set[int]:
    """The offsets of the blocks of the pool that were given back as a whole, and not touched afterwards."""
    found: set[int] = set()
    for offset, new in changes:
        end = offset + (new if isinstance(new, int) else len(new))
        found -= set(range(offset // BLOCK * BLOCK, end, BLOCK))
        if isinstance(new, int):
            found |= set(range(-(-offset // BLOCK) * BLOCK, end // BLOCK * BLOCK, BLOCK))
    return found


def test_a_clone_of_a_moment_takes_changes_and_is_kept_in_its_place(volume: ThinVolume, pool: Pool) -> None:
    chance = Random(7)
    volume.fill(chance.randbytes(4 * MIB))
    source = pool.source(volume.name)
    base, before = "", b""
    for _ in range(3):
        content = volume.content()
        changes = some_changes(len(content), chance)
        expected = applied(content, changes)
        with source.freeze() as frozen, ExitStack() as held:
            assert can_be_edited(source, frozen)
            clone = edited(source, frozen, iter(changes), held)
            assert whole(clone) == expected and clone.checkpoint != frozen.checkpoint
            assert whole(frozen) == content == volume.content(), "only the clone changed"
            given, mapped = given_back(changes), list(clone.allocated())
            assert given and not [at for at in given if any(one.start <= at < one.end for one in mapped)]
            if base:
                check_delta(clone.delta_since(base, GRAIN), before, expected, "from clone to clone")
            source.keep(clone.checkpoint)
            if base:
                source.drop(base)
            base, before = clone.checkpoint, expected
        (left,) = [name for name in pool.volumes() if "+lam" in name]
        assert row(f"vg/{left}")["lv_attr"].startswith("Vri---"), "read-only and not active"
        with pool.source(volume.name).kept_bytes(base) as bytes_of_it:  # type: ignore[attr-defined]
            assert whole(bytes_of_it) == expected
        volume.write(chance.randrange(3 * MIB), chance.randbytes(100_000))
    with source.freeze() as frozen, ExitStack() as held:
        edited(source, frozen, iter([(0, b"x" * 4096)]), held)
    assert source.kept() == [base], "what nobody kept is gone"


def test_a_clone_is_not_changed_where_the_pool_has_no_room(volume: ThinVolume, pool: Pool) -> None:
    content = volume.content()
    used, total = map(int, pool.status()[2].split("/"))
    keeping = Keeping(OWNER, records=pool.records, limits=PoolLimits(data_percent=100 * used / total + 8))
    source = open_kept_source(str(volume.path), MACHINE, keeping)
    volume.resize(128 * MIB)
    many: list[Change] = [(at, b"y" * 4096) for at in range(0, 128 * MIB, BLOCK)]
    with source.freeze() as frozen, ExitStack() as held:
        with pytest.raises(SourceAtRisk, match="full"):
            edited(source, frozen, iter(many), held)
        assert whole(frozen)[: len(content)] == content
    assert list(pool.volumes()) == [volume.name], "nothing is left"


# -- snapshots -------------------------------------------------------------------------------------------------------


def test_a_snapshot_says_whose_it_is_and_has_a_device_only_while_it_is_read(volume: ThinVolume, pool: Pool) -> None:
    source = pool.source(volume.name)
    name = f"{volume.name}+lam{OWNER}x1"
    node = Path(f"/dev/mapper/vg-{name.replace('-', '--')}")
    with source.freeze() as frozen:
        assert stat.S_ISBLK(node.stat().st_mode)
        assert json.loads(frozen.checkpoint)["name"] == name
        source.keep(frozen.checkpoint)
    assert not node.exists()
    found = row(f"vg/{name}")
    assert found["lv_attr"].startswith("Vri---"), "read-only and not active"
    assert found["lv_attr"].endswith("k"), "activation is skipped"
    assert set(found["lv_tags"].split(",")) > {"lamella", f"lamella:owner={OWNER}"}
    token = json.loads(frozen.checkpoint)
    assert (token["volume"], token["thin"]) == (found["lv_uuid"], int(found["thin_id"]))
    run("lvchange", "-ay", f"vg/{name}")
    assert not node.exists(), "nobody activates it by accident"


def test_the_device_of_a_thin_volume_is_the_volume(volume: ThinVolume, pool: Pool) -> None:
    source = pool.source(volume.name)
    keeping = Keeping(OWNER, records=pool.records)
    for text in (f"/dev/vg/{volume.name}", str(volume.path)):
        other = open_kept_source(text, MACHINE, keeping)
        assert (other.driver, other.identity, other.default_name) == ("lvm_thin", source.identity, volume.name)
    assert place_of(source.identity, MACHINE) == f"lvm:vg/{volume.name}"
    run("lvcreate", "-q", "-y", "-L", "4M", "-n", "plain", "vg")
    try:
        assert open_kept_source("/dev/vg/plain", MACHINE, keeping).driver == "file"
        with pytest.raises(UsageError, match="no thin volume but linear"):
            open_kept_source("lvm:vg/plain", MACHINE, keeping)
    finally:
        run("lvremove", "-ff", "-y", "-q", "vg/plain")
    for text, error in (("lvm:vg/none", SourceError), ("lvm:none/none", SourceError), ("lvm:vg/pool", UsageError)):
        with pytest.raises(error):
            open_kept_source(text, MACHINE, keeping)


def test_a_volume_that_is_not_active_is_read_too(volume: ThinVolume, pool: Pool) -> None:
    content = volume.content()
    run("lvchange", "-an", volume.text)
    source = pool.source(volume.name)
    with source.freeze() as frozen:
        assert whole(frozen) == content
    assert list(pool.volumes()) == [volume.name]


def test_a_long_name_is_cut_and_still_known(pool: Pool) -> None:
    volume = pool.volume("vm-" + "n" * 112)
    volume.fill(pattern(MIB, 1))
    base = kept(pool.source(volume.name))
    volume.write(3 * GRAIN, b"x")
    source = pool.source(volume.name)
    assert source.kept() == [base]
    with source.freeze() as frozen:
        assert changed(frozen, base) == [(3, 4)]


def test_what_reads_as_zero_is_not_allocated(volume: ThinVolume, pool: Pool) -> None:
    volume.discard(4 * BLOCK, 4 * BLOCK)
    with pool.source(volume.name).freeze() as frozen:
        assert [(one.start // BLOCK, one.end // BLOCK) for one in frozen.allocated()] == [(0, 4), (8, 16)]


def test_several_volumes_are_frozen_before_any_is_read(pool: Pool, volume: ThinVolume) -> None:
    other = pool.volume()
    other.fill(pattern(MIB, 2))
    contents = [volume.content(), other.content()]
    with pool.source(volume.name).freeze() as first, pool.source(other.name).freeze() as second:
        volume.write(0, b"later")
        other.write(0, b"later")
        assert [whole(first), whole(second)] == contents


# -- an external origin ----------------------------------------------------------------------------------------------


@contextmanager
def external(pool: Pool) -> Iterator[ThinVolume]:
    """A thin volume whose unmapped blocks are read from a plain volume."""
    run("lvcreate", "-q", "-y", "-L", f"{2 * MIB}b", "-n", "ext", "vg")
    Path("/dev/vg/ext").write_bytes(pattern(2 * MIB, 5))
    run("lvchange", "-q", "-pr", "vg/ext")
    run("lvchange", "-q", "-an", "vg/ext")
    volume = pool.volume()
    run("lvcreate", "-q", "-s", "--thinpool", pool.text, "-n", volume.name, "vg/ext")
    try:
        yield volume
    finally:
        pool.clean()


def test_an_external_origin_is_read_through_the_volume(pool: Pool) -> None:
    with external(pool) as volume:
        volume.write(5 * BLOCK, b"!" * BLOCK)
        source = pool.source(volume.name)
        before = volume.content()
        with source.freeze() as frozen:
            assert whole(frozen) == before
            assert before[:BLOCK] == pattern(2 * MIB, 5)[:BLOCK]
            assert [(one.start, one.end) for one in frozen.allocated()] == [(0, 2 * MIB)]
            source.keep(frozen.checkpoint)
        base = frozen.checkpoint
        assert json.loads(base)["external"].startswith("LVM-")
        assert source.kept() == [base]
        volume.discard(5 * BLOCK, BLOCK)
        volume.write(9 * BLOCK, b"x")
        with pool.source(volume.name).freeze() as frozen:
            delta = frozen.delta_since(base, GRAIN)
            check_delta(delta, before, whole(frozen))
            assert list(delta.changed.runs()) == [(5, 6), (9, 10)]
            assert not delta.zeroed, "what was given back shows the origin again"


def test_a_volume_without_the_external_origin_is_not_compared(pool: Pool) -> None:
    with external(pool) as volume:
        base = kept(pool.source(volume.name))
        volume.replace(pattern(2 * MIB, 6))
        lost(pool.source(volume.name), base, "another external origin")


# -- moments that are not what they were -----------------------------------------------------------------------------


def removed(pool: Pool, name: str) -> None:
    run("lvremove", "-ff", "-y", "-q", f"vg/{name}")


def made_anew(pool: Pool, name: str) -> None:
    tags = pool.volumes()[name].split(",")
    removed(pool, name)
    words = [word for tag in tags for word in ("--addtag", tag)]
    run("lvcreate", "-q", "-s", "-pr", "-ky", *words, "-n", name, f"vg/{name.partition('+')[0]}")


def writable(pool: Pool, name: str) -> None:
    run("lvchange", "-q", "-prw", f"vg/{name}")


def untagged(pool: Pool, name: str) -> None:
    run("lvchange", "-q", "--deltag", "lamella:owner=" + OWNER, f"vg/{name}")


def larger(pool: Pool, name: str) -> None:
    writable(pool, name)
    run("lvresize", "-q", "-L", "+1M", f"vg/{name}")
    run("lvchange", "-q", "-pr", f"vg/{name}")


@pytest.mark.parametrize(
    ("tamper", "why"),
    [
        (removed, "is gone|another snapshot"),
        (made_anew, "another snapshot than the one that was kept"),
        (writable, "made writable"),
        (untagged, "another source or owner"),
        (larger, "another snapshot than the one that was kept"),
    ],
)
def test_a_moment_tampered_with_is_lost(
    volume: ThinVolume, pool: Pool, tamper: Callable[[Pool, str], None], why: str
) -> None:
    base = kept(pool.source(volume.name))
    tamper(pool, json.loads(base)["name"])
    lost(pool.source(volume.name), base, why)


def test_a_volume_that_moved_to_another_pool_is_not_compared(volume: ThinVolume, pool: Pool) -> None:
    base = kept(pool.source(volume.name))
    other = Pool("vg", "other")
    sizes = ["-L", "16M", "--chunksize", f"{BLOCK}b", "--poolmetadatasize", "2M", "--poolmetadataspare", "n"]
    run("lvcreate", "-q", "--type", "thin-pool", *sizes, "-n", "other", "vg")
    try:
        volume.remove()
        ThinVolume(other, volume.name).fill(pattern(MIB, 2))
        source = pool.source(volume.name)
        lost(source, base, "another pool")
        source.drop(base)
    finally:
        run("lvremove", "-ff", "-y", "-q", "vg/other")


# -- the one metadata snapshot ---------------------------------------------------------------------------------------


def held(pool: Pool) -> bool:
    return pool.status()[3] != "-"


def test_the_reservation_is_released_whatever_happens(
    volume: ThinVolume, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = kept(pool.source(volume.name))

    def broken(*_: object) -> None:
        assert held(pool)
        raise KeyboardInterrupt

    monkeypatch.setattr("lamella.sources.lvm.thin_tools.delta", broken)
    with pool.source(volume.name).freeze() as frozen, pytest.raises(KeyboardInterrupt):
        frozen.delta_since(base, GRAIN)
    assert not held(pool)


def test_somebody_elses_reservation_is_left_alone(
    volume: ThinVolume, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = kept(pool.source(volume.name))
    run("dmsetup", "message", pool.device, "0", "reserve_metadata_snap")
    before = pool.status()[3]
    wait = reservation.Reservations.held
    monkeypatch.setattr(reservation.Reservations, "held", lambda self, wait_seconds=0.0: wait(self, 0.0))
    lost(pool.source(volume.name), base, "another program holds the metadata snapshot")
    with pool.source(volume.name).freeze() as frozen:
        assert [(one.start, one.end) for one in frozen.allocated()] == [(0, frozen.size)], "without the map: all of it"
    assert pool.status()[3] == before


def test_a_reservation_that_a_kill_left_is_ours_and_released(volume: ThinVolume, pool: Pool) -> None:
    base = kept(pool.source(volume.name))
    run("dmsetup", "message", pool.device, "0", "reserve_metadata_snap")
    uuid = row(pool.text)["lv_uuid"]
    for record in (None, int(pool.status()[3])):
        if not held(pool):
            run("dmsetup", "message", pool.device, "0", "reserve_metadata_snap")
        record = record if record is None else int(pool.status()[3])
        (pool.records / f"reserved-{uuid}").write_text(json.dumps({"held": record}))
        volume.write(3 * GRAIN, b"x")
        with pool.source(volume.name).freeze() as frozen:
            assert changed(frozen, base) == [(3, 4)]
        assert not held(pool)


# -- pools at their limits -------------------------------------------------------------------------------------------


def everything(pool: Pool) -> list[str]:
    """All that LVM and the kernel say of a pool and its volumes."""
    return [run("lvs", "-a", "-o", "+lv_uuid,thin_id,transaction_id,lv_tags", "vg"), *pool.status()]


def test_a_pool_above_a_limit_is_refused_and_left_as_it_is(volume: ThinVolume, pool: Pool) -> None:
    before = everything(pool)
    for limits, says in (
        (PoolLimits(data_percent=0.1), "the data of thin pool vg/pool is"),
        (PoolLimits(metadata_percent=0.1), "the metadata of thin pool vg/pool is"),
    ):
        source = open_kept_source(volume.text, MACHINE, Keeping(OWNER, records=pool.records, limits=limits), "lvm_thin")
        with pytest.raises(SourceAtRisk, match=says) as caught, source.freeze():
            pytest.fail("a snapshot was made in a pool that is too full")
        assert "lvextend" in caught.value.hint
        assert "MiB free" in caught.value.hint
    assert everything(pool) == before


def test_a_pool_out_of_space_is_refused_and_left_as_it_is(pool: Pool) -> None:
    small = Pool("vg", "small")
    sizes = ["-L", "8M", "--chunksize", f"{BLOCK}b", "--poolmetadatasize", "2M", "--poolmetadataspare", "n"]
    run("lvcreate", "-q", "--type", "thin-pool", *sizes, "-n", "small", "vg")
    run("lvchange", "-q", "--errorwhenfull", "y", "vg/small")
    try:
        volume = ThinVolume(small, "vm-full-private")
        run("lvcreate", "-q", "--type", "thin", "-V", "16M", "-n", volume.name, "--thinpool", small.text)
        with pytest.raises(OSError):
            volume.write(0, pattern(12 * MIB, 1))
        assert "out_of_data_space" in small.status()
        before = everything(small)
        limits = PoolLimits(100, 100)
        source = open_kept_source(volume.text, MACHINE, Keeping(OWNER, limits=limits), "lvm_thin")
        with pytest.raises(SourceAtRisk, match="out of data space"), source.freeze():
            pytest.fail("a snapshot was made in a pool without space")
        assert everything(small) == before
    finally:
        run("lvremove", "-ff", "-y", "-q", "vg/small")


# -- interrupts and kills --------------------------------------------------------------------------------------------

COMMANDS = (
    "lvs", "lvcreate", "lvremove", "lvchange", "lvconvert", "lvrename", "lvresize", "dmsetup", "thin_delta",
    "thin_dump",
)  # fmt: skip

SHIM = """#!/bin/sh
echo "$0 $*" >> {log}
n=$(wc -l < {log})
[ $n = "$SHIM_AT" ] && [ "$SHIM_WHEN" = before ] && kill -$SHIM_SIGNAL $PPID
{real} "$@"; s=$?
[ $n = "$SHIM_AT" ] && [ "$SHIM_WHEN" = after ] && kill -$SHIM_SIGNAL $PPID
exit $s
"""


@dataclass
class Shims:
    """LVM commands that write down that they were started, and signal whoever started them at the chosen one."""

    environment: dict[str, str]
    log: Path

    def cycle(self, volume: ThinVolume, at: int = 0, signal_name: str = "KILL", when: str = "after") -> tuple[int, str]:
        """One whole use of the driver in a process of its own; its exit code and output."""
        self.log.unlink(missing_ok=True)
        extra = {"SHIM_AT": str(at), "SHIM_SIGNAL": signal_name, "SHIM_WHEN": when}
        command = [sys.executable, "-c", CYCLE, f"lvm:{volume.text}", str(volume.pool.records)]
        done = subprocess.run(command, env={**self.environment, **extra}, capture_output=True, text=True, timeout=250)
        return done.returncode, done.stdout + done.stderr

    def started(self) -> list[str]:
        """The commands of the last cycle."""
        return self.log.read_text().splitlines()


@pytest.fixture
def shims(tmp_path: Path) -> Shims:
    place, log = tmp_path / "shims", tmp_path / "log"
    place.mkdir()
    for name in COMMANDS:
        real = run("sh", "-c", f"command -v {name}").strip()
        (place / name).write_text(SHIM.format(log=log, real=real))
        (place / name).chmod(0o755)
    source = Path(sys.modules["lamella"].__path__[0]).parent
    return Shims({**os.environ, "PATH": f"{place}:{os.environ['PATH']}", "PYTHONPATH": str(source)}, log)


CYCLE = """
import sys
from pathlib import Path
from lamella.sources.base import Keeping
from lamella.sources.registry import open_kept_source
source = open_kept_source(sys.argv[1], "0123456789abcdef", Keeping("00c0ffee", records=Path(sys.argv[2])))
base = source.kept()[0]
with source.freeze() as frozen:
    list(frozen.allocated())
    print(list(frozen.delta_since(base, 1 << 16).changed.runs()))
    source.keep(frozen.checkpoint)
    source.drop(base)
"""


CHANGING = ("lvcreate", "lvremove", "lvchange", "message")


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
def test_killed_after_a_command_the_next_run_is_clean(
    volume: ThinVolume, pool: Pool, shims: Shims, every: bool, record_property: Callable[[str, object], None]
) -> None:
    """Killed after each command that changes something, or after every one; the next run finds what changed."""
    contents = {kept(pool.source(volume.name)): volume.content()}
    assert shims.cycle(volume)[0] == 0
    started = shims.started()
    contents = {pool.source(volume.name).kept()[0]: volume.content()}
    deadly = [at for at, line in enumerate(started, 1) if every or any(word in line for word in CHANGING)]
    assert len(deadly) >= 5
    for at in deadly:
        volume.write(at % 60 * GRAIN, b"%d" % at)
        code, said = shims.cycle(volume, at)
        assert code == -signal.SIGKILL, said
        contents = {assert_clean(pool, volume, contents, f"killed after {shims.started()[-1]}"): volume.content()}
    record_property("killed after", f"{len(deadly)} of {len(started)} commands")


CLONING = """
import os, signal, sys
from contextlib import ExitStack
from pathlib import Path
from lamella.sources.base import Keeping
from lamella.sources.editing import edited
from lamella.sources.registry import open_kept_source
def changes():
    for number in range(9):
        if number == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        yield number * 65536, b"x" * 4096
source = open_kept_source(sys.argv[1], "0123456789abcdef", Keeping("00c0ffee", records=Path(sys.argv[2])))
with source.freeze() as frozen, ExitStack() as held:
    edited(source, frozen, changes(), held)
"""


def test_killed_in_the_middle_of_changing_a_clone_the_next_run_is_clean(
    volume: ThinVolume, pool: Pool, shims: Shims
) -> None:
    """A clone that is half changed is nobody's base, and goes as any other moment does that is not needed."""
    base = kept(pool.source(volume.name))
    content = volume.content()
    for at in (0, 5):
        volume.write(at * GRAIN, b"%d" % at)
        command = [sys.executable, "-c", CLONING, f"lvm:{volume.text}", str(pool.records), str(at)]
        done = subprocess.run(command, env=shims.environment, capture_output=True, text=True, timeout=250)
        assert done.returncode == -signal.SIGKILL, done.stderr
        source = pool.source(volume.name)
        for moment in source.kept():
            if moment != base:
                source.drop(moment)
        assert source.kept() == [base] and not held(pool)
        assert set(pool.volumes()) == {volume.name, json.loads(base)["name"]}
        with source.freeze() as frozen:
            check_delta(frozen.delta_since(base, GRAIN), content, volume.content(), f"killed at {at}")
        assert_nothing_suspended(f"killed at {at}")


def assert_clean(pool: Pool, volume: ThinVolume, contents: dict[str, bytes], when: str) -> str:
    """The next run: compares with what is known, keeps a checkpoint, leaves nothing else. Returns its checkpoint."""
    source = pool.source(volume.name)
    moments = source.kept()
    assert 1 <= len(moments) <= 2, when
    with source.freeze() as frozen:
        for moment in moments:
            if moment in contents:
                check_delta(frozen.delta_since(moment, GRAIN), contents[moment], volume.content(), when)
        source.keep(frozen.checkpoint)
    for moment in moments:
        source.drop(moment)
    assert not held(pool), when
    assert set(pool.volumes()) == {volume.name, json.loads(frozen.checkpoint)["name"]}, when
    assert_nothing_suspended(when)
    return frozen.checkpoint


def assert_nothing_suspended(when: str) -> None:
    assert "Suspended" not in run("dmsetup", "info", "-c", "--noheadings", "-o", "name,suspended"), when


def test_an_interrupt_in_the_middle_of_a_command_waits_for_it(volume: ThinVolume, pool: Pool, shims: Shims) -> None:
    kept(pool.source(volume.name))
    assert shims.cycle(volume)[0] == 0
    started = shims.started()
    for word in ("lvcreate", "reserve_metadata_snap", "lvremove"):
        at = next(number for number, line in enumerate(started, 1) if word in line)
        code, said = shims.cycle(volume, at, "INT", "before")
        assert (code, "KeyboardInterrupt" in said) == (-signal.SIGINT, True), said
        assert any(word in line for line in shims.started())
        assert not held(pool), word
        assert len(pool.volumes()) == 2, f"interrupted at {word}: one volume, one checkpoint"
        assert_nothing_suspended(word)


# -- fuzz ------------------------------------------------------------------------------------------------------------


def test_nothing_outside_a_delta_changed_over_many_cycles(
    pool: Pool, record_property: Callable[[str, object], None]
) -> None:
    """LAMELLA_GUEST_CYCLES says how many (50); each: changes by a guest, a snapshot, a delta, all bytes compared."""
    chance = Random(4)
    volume = pool.volume()
    volume.fill(chance.randbytes(SIZE // 2))
    source = pool.source(volume.name)
    base, content = kept(source), volume.content()
    marked = differing = 0
    with ThinChanges(volume, chance, 2 * SIZE) as changes:
        for number in range(CYCLES):
            changes.change(chance.choice([1, 3, 10]))
            with source.freeze() as frozen:
                delta = frozen.delta_since(base, GRAIN)
                now = whole(frozen)
                assert now == volume.content(), f"cycle {number}"
                check_delta(delta, content, now, f"cycle {number}, {dict(changes.done)}")
                marked += len(delta.changed)
                steps = range(0, max(len(now), len(content)), GRAIN)
                differing += sum(now[at : at + GRAIN] != content[at : at + GRAIN] for at in steps)
                source.keep(frozen.checkpoint)
            source.drop(base)
            base, content = frozen.checkpoint, now
    record_property("cycles, changed blocks, marked blocks", (CYCLES, differing, marked))
    assert marked <= 2 * differing + 2 * CYCLES, "a map that marks everything misses nothing either"
