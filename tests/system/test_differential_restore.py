"""Restoring with a moment that this host kept, on real XFS and Btrfs: what is fetched, compared and believed.

What the user fears: going back one day costs as much as a new machine; a copy on the same disk that is wrong is called
restored.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.errors import IntegrityError, SourceError
from lamella.base.extents import Extent
from lamella.memory.host import Host
from lamella.operations.backup.story import BackupOptions, Request, plan_backup
from lamella.operations.moments.monitor import delta_from
from lamella.operations.restore.restore import RestoreOptions, RestorePlan, RestoreResult, plan_restore
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.sources.base import FrozenVolume, Source
from lamella.sources.checkpoint_files import DIRECTORY, CheckpointFiles
from lamella.sources.local_target import PARTIAL_SUFFIX
from lamella.sources.registry import open_source
from lamella.stores.memory import MemoryStore
from tests.cli.program import Lamella
from tests.fault.test_restore_matrix import states
from tests.fault.test_restoring import LoggedStore
from tests.fault.world import CHUNK, SECRET, host_at, init
from tests.system import loop_fs

MIB = 1 << 20
FILE_SYSTEMS = ["xfs", "btrfs"]
TRUSTING = RestoreOptions(workers=2, overwrite=True, trust_local=True)
IN_PLACE = RestoreOptions(workers=2, in_place=True, trust_local=True)
BESIDE = RestoreOptions(workers=2, overwrite=True)


@dataclass
class World:
    """An image on a file system that shares blocks, and a repository in memory."""

    image: Path
    store: MemoryStore
    host: Host
    log: Path

    @classmethod
    def made(cls, top: Path, work: Path) -> World:
        found = cls(top / "vm.img", MemoryStore(), host_at(work / "host"), work / "log")
        init(found.store, found.host)
        return found

    def backup(self) -> str:
        """Back the image up and keep the moment; returns the snapshot's name."""
        source = open_source(str(self.image), machine=self.host.machine, owner=self.host.owner)
        with Repository.open(self.store, SECRET, self.host) as repo:
            options = BackupOptions(chunk_log2=16, workers=1)
            return plan_backup(repo, [Request("vm", source)], options).execute().snapshot

    def restore(
        self,
        snapshot: str,
        target: Path,
        options: RestoreOptions,
        before: Callable[[int], None] = lambda count: None,
    ) -> tuple[RestorePlan, RestoreResult]:
        self.log.unlink(missing_ok=True)
        with Repository.open(LoggedStore(self.store, self.log, before), SECRET, self.host) as repo:
            plan = plan_restore(repo, select(repo, [f"vm@{snapshot}"])[0], target, options)
            return plan, plan.execute()

    def fetched(self) -> int:
        """The bytes that the last restore read of packs."""
        reads = [line.split() for line in self.log.read_text().splitlines()]
        return sum(int(length) for name, _, length in reads if name.startswith("p/"))


@pytest.fixture(scope="module", params=FILE_SYSTEMS)
def top(request: pytest.FixtureRequest) -> Iterator[Path]:
    with loop_fs.make(request.param) as place:
        yield place


@pytest.fixture
def world(top: Path, tmp_path: Path) -> Iterator[World]:
    place = top / tmp_path.name
    place.mkdir()
    yield World.made(place, tmp_path)
    for made in (place, top / DIRECTORY):  # the file system is small
        shutil.rmtree(made, ignore_errors=True)


def two_days(world: World) -> tuple[str, str, bytes, bytes]:
    """Two snapshots of 24 MiB of which three chunks differ, and a live image that differs in one more."""
    first = bytearray(random.Random(1).randbytes(24 * MIB + 777))
    world.image.write_bytes(first)
    one = world.backup()
    second = bytearray(first)
    for chunk in (5, 100, 300):
        second[chunk * CHUNK + 7] ^= 1
    with world.image.open("r+b") as file:
        for chunk in (5, 100, 300):
            os.pwrite(file.fileno(), second[chunk * CHUNK :][:CHUNK], chunk * CHUNK)
    two = world.backup()
    with world.image.open("r+b") as file:
        os.pwrite(file.fileno(), b"live", 200 * CHUNK)
    return one, two, bytes(first), bytes(second)


@pytest.mark.parametrize("where", ["new", "over the live image", "the image is gone"])
def test_going_back_a_day_fetches_only_the_difference(world: World, where: str) -> None:
    one, two, first, second = two_days(world)
    target = world.image if where != "new" else world.image.with_name("other.img")
    if where == "the image is gone":
        world.image.unlink()
    plan, result = world.restore(one, target, BESIDE)
    assert target.read_bytes() == first
    assert result.bytes_written == 3 * CHUNK and world.fetched() < 6 * CHUNK
    assert result.compared_bytes >= len(first), "nothing is believed"
    assert plan.use_of_kept() == {"kept": two, "trusted": False, "sampled_bytes": 0, "reason": ""}
    plan, result = world.restore(two, target, BESIDE)
    assert target.read_bytes() == second and result.bytes_written == 0
    assert [path for path in target.parent.iterdir() if path.name.endswith(PARTIAL_SUFFIX)] == []


@pytest.mark.parametrize("how", [TRUSTING, IN_PLACE], ids=["beside", "in place"])
def test_trusting_compares_what_differs_and_a_sample(world: World, how: RestoreOptions) -> None:
    one, two, first, second = two_days(world)
    plan, result = world.restore(one, world.image, how)
    assert world.image.read_bytes() == first
    use = plan.use_of_kept()
    assert (use["kept"], use["trusted"], use["reason"]) == (two, True, "")
    differing = 4 if how is IN_PLACE else 3
    assert result.bytes_written == differing * CHUNK and world.fetched() < 8 * CHUNK
    assert result.compared_bytes <= 8 * CHUNK < use["sampled_bytes"] <= 64 * CHUNK  # type: ignore[operator]
    _, result = world.restore(two, world.image, how)
    assert world.image.read_bytes() == second


def test_a_copy_on_the_same_disk_that_is_wrong(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that changed the checkpoint by itself: never believed, and with --trust-local found by the sample."""
    one, _, first, _ = two_days(world)
    wrong = world.image.with_name("wrong")
    rotten = random.Random(9).randbytes(len(first))
    wrong.write_bytes(rotten[: 12 * MIB] + first[12 * MIB :])
    target = world.image.with_name("other.img")

    @contextmanager
    def opened(self: CheckpointFiles, text: str) -> Iterator[tuple[int, int]]:
        fd = os.open(wrong, os.O_RDONLY)
        try:
            yield fd, -1
        finally:
            os.close(fd)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFiles, "opened", opened)
        for options in (BESIDE, TRUSTING):
            plan, result = world.restore(one, target, options)
            assert target.read_bytes() == first
            assert result.compared_bytes >= len(first) and result.bytes_written >= 12 * MIB
            assert not plan.use_of_kept()["trusted"]
        assert "a sample shows" in str(plan.use_of_kept()["reason"])


@pytest.mark.parametrize("options", [BESIDE, TRUSTING, IN_PLACE], ids=["default", "trusting", "in place"])
def test_blocks_that_the_disk_cannot_read_any_more(
    world: World, options: RestoreOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Often why there is a restore at all. They are fetched, and once written they lie elsewhere, or are mended."""
    one, _, first, _ = two_days(world)
    bad = set(range(150, 290))
    read, write = os.preadv, os.pwrite

    def pwrite(fd: int, part: memoryview, offset: int) -> int:
        bad.difference_update(range(offset // CHUNK, (offset + len(part)) // CHUNK))
        return write(fd, part, offset)

    def preadv(fd: int, parts: list[memoryview], offset: int) -> int:
        touched = range(offset // CHUNK, (offset + len(parts[0]) - 1) // CHUNK + 1)
        if os.fstat(fd).st_size == len(first) and not bad.isdisjoint(touched):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(fd, parts, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", preadv)
        patch.setattr(os, "pwrite", pwrite)
        _, result = world.restore(one, world.image, options)
    assert world.image.read_bytes() == first and not bad
    assert result.bytes_written >= 140 * CHUNK


def test_a_change_map_that_lies(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place without --trust-local no map is asked; with it a map that hides much is refuted by the sample."""
    one, _, first, _ = two_days(world)

    def lying(host: Host, source: Source, frozen: FrozenVolume, base: str, grain: int) -> Delta:
        delta = delta_from(host, source, frozen, base, grain)
        return Delta.bounded(grain, delta.base_size, delta.size, ChunkSet(), ChunkSet())

    monkeypatch.setattr("lamella.operations.restore.kept.delta_from", lying)
    for options in (RestoreOptions(workers=2, in_place=True), IN_PLACE):
        with world.image.open("r+b") as file:
            file.write(random.Random(3).randbytes(10 * MIB))
        world.restore(one, world.image, options)
        assert world.image.read_bytes() == first


@pytest.mark.parametrize("options", [BESIDE, TRUSTING], ids=["default", "trusting"])
def test_a_checkpoint_that_somebody_edited_is_not_used(world: World, options: RestoreOptions) -> None:
    one, _, first, _ = two_days(world)
    for path in world.image.parent.parent.rglob(".lamella/*"):
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.write(b"edited")
    plan, result = world.restore(one, world.image.with_name("other.img"), options)
    assert world.image.with_name("other.img").read_bytes() == first
    assert result.bytes_written == len(first) and not plan.use_of_kept()["trusted"]
    assert plan.use_of_kept()["kept"] is None and plan.use_of_kept()["reason"]


@pytest.mark.parametrize("options", [BESIDE, TRUSTING, IN_PLACE], ids=["default", "trusting", "in place"])
def test_a_moment_whose_own_snapshot_is_damaged(world: World, options: RestoreOptions) -> None:
    """The wanted snapshot is whole: that another one is not must not keep anybody from it."""
    first = random.Random(1).randbytes(8 * MIB)
    world.image.write_bytes(first)
    one, before = world.backup(), set(world.store.objects())
    with world.image.open("r+b") as file:
        file.write(b"later")
    world.backup()
    for name in set(world.store.objects()) - before:
        if name.startswith("p/"):
            world.store.delete(name)
    shutil.rmtree(world.host.cache_dir)
    _, result = world.restore(one, world.image, options)
    assert world.image.read_bytes() == first and result.compared_bytes >= len(first)


def test_a_broken_attempt_is_not_believed_by_the_next(world: World) -> None:
    """What lies in an unfinished file may be anything: a later --trust-local compares all of it."""
    one, _, first, _ = two_days(world)
    target = world.image.with_name("other.img")
    partial = target.with_name(target.name + PARTIAL_SUFFIX)

    def fail(count: int) -> None:
        if partial.exists() and partial.stat().st_size:
            raise IntegrityError("the repository is gone")

    with pytest.raises(IntegrityError, match="is gone"):
        world.restore(one, target, TRUSTING, before=fail)
    with partial.open("r+b") as file:
        os.pwrite(file.fileno(), b"somebody else's", 250 * CHUNK)
    plan, result = world.restore(one, target, TRUSTING)
    assert target.read_bytes() == first and result.compared_bytes >= len(first)
    assert not plan.use_of_kept()["trusted"] and "earlier attempt" in str(plan.use_of_kept()["reason"])


def test_space_for_the_difference_is_enough(tmp_path: Path) -> None:
    with loop_fs.make("xfs") as place:
        world = World.made(place, tmp_path)
        first = random.Random(1).randbytes(24 * MIB)
        world.image.write_bytes(first)
        one = world.backup()
        with world.image.open("r+b") as file:
            file.write(random.Random(2).randbytes(6 * MIB))
        world.backup()
        leave(place, 12 * MIB)
        world.restore(one, world.image, TRUSTING)
        assert world.image.read_bytes() == first
        leave(place, 3 * MIB)
        with pytest.raises(SourceError, match=r"not enough space .* [23]\.\d MiB too few"):
            world.restore(one, place / "other.img", TRUSTING)
        assert not list(place.glob("other*")), "nothing is left of what was not begun"
        with pytest.raises(SourceError, match=r"not enough space .* 2[01]\.\d MiB too few"):
            # Another machine has no moment, and needs space for everything.
            world.host = host_at(tmp_path / "other", "two")
            world.restore(one, place / "other.img", BESIDE)


def leave(place: Path, free: int) -> None:
    """Fill a file system but for so many bytes."""
    os.sync()
    there = os.statvfs(place)
    with (place / f"filler-{free}").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, there.f_bavail * there.f_frsize - free)


def test_any_state_from_any_kept_moment(world: World) -> None:
    """Grown, shrunk, holes, zeros: whatever the moment holds, whatever the live image holds by now."""
    every = states()
    chosen = {name: every[name] for name in ("first", "holes", "grown", "shrunk", "all zeros")}
    names = {}
    for name, (content, extents) in chosen.items():
        put(world.image, content, extents)
        names[name] = world.backup()
    used = 0
    for moment, (content, extents) in chosen.items():
        put(world.image, content, extents)
        world.backup()
        for number, (wanted, snapshot) in enumerate(names.items()):
            length = len(list(chosen.values())[(number + 3) % len(chosen)][0])
            for options in (BESIDE, TRUSTING, IN_PLACE):
                # It shares blocks with the moment or with what was restored last, and ends where another state does.
                os.truncate(world.image, length)
                with world.image.open("r+b") as file:
                    file.write(b"live")
                plan, _ = world.restore(snapshot, world.image, options)
                found = world.image.read_bytes()
                assert found == chosen[wanted][0], f"{wanted} from {moment} with {options}"
                use = plan.use_of_kept()
                assert "a sample shows" not in str(use["reason"]), "what differs was known, without luck"
                used += use["kept"] is not None
    assert used > len(chosen) ** 2, "checkpoints were used"


def put(image: Path, content: bytes, extents: list[Extent]) -> None:
    """Write a state into the image where it lies, holes as holes."""
    with image.open("r+b" if image.exists() else "w+b") as file:
        file.truncate(0)
        file.truncate(len(content))
        for extent in extents:
            os.pwrite(file.fileno(), content[extent.start : extent.end], extent.start)
        os.fsync(file.fileno())


def test_the_command_says_what_was_believed(tmp_path: Path) -> None:
    with loop_fs.make("xfs") as top:
        the_command_says(top, tmp_path)


def the_command_says(top: Path, tmp_path: Path) -> None:
    image, key = top / "vm.img", tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    lamella = Lamella({"LAMELLA_REPO": str(tmp_path / "repository")}, ["--keyfile", str(key)])
    lamella.ok("init", "-q")
    content = os.urandom(16 * MIB)
    image.write_bytes(content)
    lamella.ok("backup", image, "-q")
    first = lamella.json("list", "vm")["snapshots"][0]["snapshot"]
    with image.open("r+b") as file:
        file.write(b"later")
    lamella.ok("backup", image, "-q")
    done = lamella.ok("restore", f"vm@{first}", "--to", image, "--overwrite", "--trust-local")
    assert "and trusted the rest" in done.out and image.read_bytes() == content
    done = lamella.ok("restore", f"vm@{first}", "--to", image, "--overwrite")
    assert "began as a clone of the checkpoint of" in done.out and image.read_bytes() == content
    found = lamella.json("restore", f"vm@{first}", "--to", image, "--in-place", "--trust-local")
    assert found["trusted"] and found["kept"] and found["sampled_bytes"] > 0 and image.read_bytes() == content
    done = lamella.ok("restore", "vm", "--to", tmp_path / "elsewhere", "--trust-local")
    assert "everything was compared: " in done.out
    found = lamella.json("restore", "--all", "--to", image.parent, "--overwrite", "--trust-local")
    assert found["volumes"][0]["trusted"] and image.read_bytes() == b"later" + content[5:]
