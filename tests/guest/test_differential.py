"""Restoring thin volumes with a checkpoint that this host kept: what is written, what stays shared, what is believed.

What the user fears: going back one day costs as much as a new machine, fills the pool, or spoils the checkpoint that it
began as; and a volume that is not what the snapshot holds is called restored.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from lamella.base.errors import SourceAtRisk
from lamella.operations.restore.restore import RestoreOptions
from lamella.sources.base import PoolLimits
from lamella_kit.source_reading import MIB
from tests.cli.program import Lamella
from tests.fault.world import CHUNK
from tests.guest.lvm import BLOCK, Pool, ThinChanges, ThinVolume, run
from tests.system.test_differential_restore import World

assert CHUNK == BLOCK
BESIDE = RestoreOptions(workers=2, overwrite=True)
IN_PLACE = RestoreOptions(workers=2, in_place=True)
TRUSTING = RestoreOptions(workers=2, overwrite=True, trust_local=True)
IN_PLACE_TRUSTING = RestoreOptions(workers=2, in_place=True, trust_local=True)
ROUNDS = int(os.environ.get("LAMELLA_GUEST_CYCLES", "4"))


@dataclass
class Days:
    """A volume of 8 MiB with data in 5 of them, two days of it, and what it holds now."""

    world: World
    pool: Pool
    volume: ThinVolume
    one: str
    two: str
    first: bytes
    second: bytes
    live: bytes

    def restore(self, snapshot: str, name: str, options: RestoreOptions) -> tuple[dict[str, object], int]:
        """Returns what is said of the checkpoint, and the bytes that were written."""
        plan, result = self.world.restore(snapshot, Path(f"lvm:vg/{name}"), options)
        assert result.compared_bytes >= 5 * MIB or options.trust_local, "nothing is believed"
        return plan.use_of_kept(), result.bytes_written

    def checkpoint(self) -> bytes:
        """What the kept snapshot holds."""
        (name,) = (name for name in self.pool.volumes() if "+lam" in name)
        run("lvchange", "-ay", "-K", f"vg/{name}")
        content = (Path("/dev/vg") / name).read_bytes()
        run("lvchange", "-an", f"vg/{name}")
        return content


def written(volume: ThinVolume, content: bytearray, chunks: dict[int, bytes]) -> bytes:
    """Write these at the beginning of these chunks, into the volume and the copy of what it holds."""
    for chunk, text in chunks.items():
        volume.write(chunk * CHUNK, text)
        content[chunk * CHUNK : chunk * CHUNK + len(text)] = text
    return bytes(content)


@pytest.fixture
def days(tmp_path: Path, pool: Pool) -> Days:
    volume = pool.volume()
    volume.fill(random.Random(1).randbytes(5 * MIB))
    volume.resize(8 * MIB)
    world = World.made(Path("lvm:vg"), tmp_path)
    world.image = Path(f"lvm:{volume.text}")
    content = bytearray(volume.content())
    first, one = bytes(content), world.backup()
    second = written(volume, content, {5: b"two", 40: b"two", 100: b"data where a hole was"})
    two = world.backup()
    volume.discard(60 * CHUNK, CHUNK)
    content[60 * CHUNK : 61 * CHUNK] = bytes(CHUNK)
    live = written(volume, content, {20: b"live", 110: b"live where a hole was"})
    assert volume.content() == live
    return Days(world, pool, volume, one, two, first, second, live)


def used_blocks(pool: Pool) -> int:
    return int(pool.status()[2].partition("/")[0])


@pytest.mark.parametrize("trust", [pytest.param(False, marks=pytest.mark.long), True], ids=["compared", "trusting"])
def test_a_new_volume_begins_as_the_checkpoint(days: Days, trust: bool) -> None:
    before = used_blocks(days.pool)
    use, count = days.restore(days.one, "new", TRUSTING if trust else BESIDE)
    assert (Path("/dev/vg/new").read_bytes(), count) == (days.first, 2 * CHUNK)
    assert (use["kept"], use["trusted"], use["reason"]) == (days.two, trust, "")
    assert used_blocks(days.pool) <= before + 2, "everything else is shared"
    assert days.checkpoint() == days.second and days.pool.volumes()["new"] == ""
    assert days.volume.content() == days.live

    # Without its checkpoint the volume comes from the repository.
    (kept,) = (name for name in days.pool.volumes() if "+lam" in name)
    run("lvremove", "-f", "-y", "-q", f"vg/{kept}")
    use, count = days.restore(days.one, "again", TRUSTING if trust else BESIDE)
    assert (Path("/dev/vg/again").read_bytes(), count) == (days.first, 5 * MIB)
    assert (use["kept"], use["trusted"], use["reason"]) == (None, False, "the checkpoint is gone")


@pytest.mark.parametrize(
    "options",
    [
        BESIDE,
        IN_PLACE_TRUSTING,
        pytest.param(IN_PLACE, marks=pytest.mark.long),
        pytest.param(TRUSTING, marks=pytest.mark.long),
    ],
    ids=["beside", "in place, trusting", "in place", "beside, trusting"],
)
def test_the_volume_itself_loses_only_what_differs(days: Days, options: RestoreOptions) -> None:
    before = used_blocks(days.pool)
    use, count = days.restore(days.one, days.volume.name, options)
    assert days.volume.content() == days.first
    assert count == 4 * CHUNK, "two days ago, and what was written, or discarded, since"
    assert used_blocks(days.pool) <= before + 4
    assert (use["trusted"], use["reason"]) == (options.trust_local, "")
    assert days.checkpoint() == days.second
    # What is restored is what the next backup compares with the checkpoint.
    _, count = days.restore(days.two, days.volume.name, options)
    assert (days.volume.content(), count) == (days.second, 3 * CHUNK)


@pytest.mark.long
def test_any_state_of_any_size_over_any_other(tmp_path: Path, pool: Pool) -> None:
    """Random days: each is restored over, in place of, and beside another one, however it was resized."""
    chance = random.Random(11)
    volume = pool.volume()
    world = World.made(Path("lvm:vg"), tmp_path)
    world.image = Path(f"lvm:{volume.text}")
    kept: dict[str, bytes] = {}
    used = 0
    with ThinChanges(volume, chance, 3 * MIB) as changes:
        for number in range(ROUNDS):
            changes.change(4)
            kept[world.backup()] = volume.content()
            changes.change(2)
            snapshot = chance.choice(list(kept))
            options = [BESIDE, IN_PLACE_TRUSTING, TRUSTING, IN_PLACE][number % 4]
            world.restore(snapshot, world.image, options)
            assert volume.content() == kept[snapshot], (number, options)
            plan, _ = world.restore(snapshot, Path("lvm:vg/beside"), TRUSTING if number % 2 else BESIDE)
            assert Path("/dev/vg/beside").read_bytes() == kept[snapshot], (number, "beside")
            assert "a sample shows" not in str(plan.use_of_kept()["reason"]), "what differs was known, without luck"
            used += plan.use_of_kept()["kept"] is not None
            run("lvremove", "-f", "-y", "-q", "vg/beside")
    assert used >= ROUNDS // 4, "checkpoints were used"


def test_a_checkpoint_that_is_wrong_does_not_fill_the_pool(days: Days, monkeypatch: pytest.MonkeyPatch) -> None:
    """Much more differs than was expected: the restore ends at the pool's limit, with the volume as it was."""
    days.volume.write(0, random.Random(2).randbytes(5 * MIB))
    monkeypatch.setattr("lamella.sources.lvm.held_target._LOOK_AGAIN_BYTES", MIB)
    total = int(days.pool.status()[2].partition("/")[2])
    limits = PoolLimits(data_percent=100 * (used_blocks(days.pool) + 40) / total)
    live, volumes = days.volume.content(), set(days.pool.volumes())
    with pytest.raises(SourceAtRisk, match="full") as failed:
        days.restore(days.one, days.volume.name, RestoreOptions(workers=1, overwrite=True, pool_limits=limits))
    partial = f"{days.volume.name}+lampartial"
    assert partial in str(failed.value.hint) or "lvextend" in failed.value.hint
    assert days.volume.content() == live
    assert set(days.pool.volumes()) - volumes == {partial}
    _, count = days.restore(days.one, days.volume.name, BESIDE)
    assert (days.volume.content(), count) == (days.first, 5 * MIB)


@pytest.mark.long  # the words are those of file systems (tests/system/test_differential_restore.py)
def test_the_command_says_so(tmp_path: Path, pool: Pool) -> None:
    key, volume = tmp_path / "key", pool.volume()
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    lamella = Lamella({"LAMELLA_REPO": str(tmp_path / "repository")}, ["--keyfile", str(key)])
    lamella.ok("init", "-q")
    volume.fill(content := os.urandom(2 * MIB))
    first = lamella.json("backup", f"vm=lvm:{volume.text}", "--chunk-size", "64K")["snapshot"]
    volume.write(0, b"later")
    lamella.ok("backup", f"vm=lvm:{volume.text}", "-q")
    done = lamella.ok("restore", f"vm@{first}", "--to", "lvm:vg/new")
    assert "began as a clone of the checkpoint of" in done.out and Path("/dev/vg/new").read_bytes() == content
    found = lamella.json("restore", f"vm@{first}", "--to", f"lvm:{volume.text}", "--in-place", "-y", "--trust-local")
    assert found["trusted"] and found["bytes_written"] == BLOCK and volume.content() == content
