"""Runs that are broken off, and what the next one has to do again: reads and puts are counted, never timed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from lamella.base.chunkset import ChunkSet
from lamella.base.errors import SourceError, StoreFull, StoreUnavailable
from lamella.operations.backup import sampling
from lamella.operations.backup.sampling import Sample
from lamella.operations.backup.story import BackupOptions, Pace
from lamella.operations.moments.monitor import monitor
from lamella_kit.tracked_source import Killed, TrackedDisk, TrackedSource
from tests.fault.resuming import OPTIONS, PACK, RANGE, CountingStore, World, small_steps
from tests.fault.world import CHUNK, host_at

TOTAL = 40 * CHUNK
CHOOSE = sampling.choose


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # What is sampled is chosen at random; these tests count reads.
    monkeypatch.setattr(sampling, "choose", lambda *rest: Sample(ChunkSet(), 0))
    with small_steps():
        yield


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.make(tmp_path / "world")


def broken(world: World, packs: int, error: Exception | None = None) -> CountingStore:
    """A run that ends because the store fails at its pack number `packs` + 1, and goes on failing for packs."""
    store = world.store()
    store.fail("put", error or StoreUnavailable("the link is down"), after=packs)
    with pytest.raises(type(error or StoreUnavailable(""))):
        world.run(store)
    return store


@contextmanager
def failing_reads(disk: TrackedDisk, reads: int, error: BaseException) -> Iterator[None]:
    """Meanwhile the disk can be read so many times."""
    last, real = disk.log["read_into"] + reads, TrackedDisk.counted

    def counted(self: TrackedDisk, method: str) -> AbstractContextManager[None]:
        if self is disk and method == "read_into" and self.log[method] >= last:
            raise error
        return real(self, method)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrackedDisk, "counted", counted)
        yield


def interrupted(world: World, reads: int, disk: TrackedDisk | None = None, options: BackupOptions = OPTIONS) -> None:
    """A run that is stopped by Ctrl-C when it has read so many ranges."""
    with failing_reads(disk or world.disk, reads, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        world.run(options=options)


def check_goes_on(world: World, *, resumed: int) -> None:
    """The next run reads what was not resumed, sends nothing twice, and leaves nothing behind."""
    row = world.row()
    assert row.resumed_bytes >= resumed, row
    assert row.read_bytes - row.sampled_bytes == len(world.disk.content) - row.resumed_bytes
    world.check()
    world.check_nothing_left()


# -- the first backup --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packs", [2, 4, 6])
def test_a_broken_link(world: World, packs: int) -> None:
    broken(world, packs)
    (session,) = world.sessions()
    assert len(session.packs) >= packs - 2
    done = session.partial_roots[0].done if session.partial_roots else 0
    assert done >= (packs - 2) * 6 - 16
    check_goes_on(world, resumed=done * CHUNK)
    # What was on its way when the link broke, and the tree's nodes.
    assert world.sent <= TOTAL + 2 * PACK + 64 * 1024


def test_ctrl_c_leaves_a_point_to_go_on_from(world: World) -> None:
    interrupted(world, 7)
    (session,) = world.sessions()
    assert [one.done for one in session.partial_roots] == [28]
    check_goes_on(world, resumed=28 * CHUNK)
    assert world.sent <= TOTAL + 64 * 1024, "nothing is sent twice"


def test_a_source_that_cannot_say_what_changed_is_left_out_and_goes_on_later(world: World) -> None:
    interrupted(world, 7)
    world.add("other", 8)
    real = TrackedDisk.counted

    def counted(self: TrackedDisk, method: str) -> AbstractContextManager[None]:
        if self is world.disk and method == "delta_since":
            raise SourceError("no answer")
        return real(self, method)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrackedDisk, "counted", counted)
        result = world.run()
    assert [(row.volume, row.result, row.error) for row in result.volumes] == [
        ("disk", "failed", "no answer"),
        ("other", "complete", ""),
    ]
    later = world.run()
    assert [(row.result, row.resumed_bytes) for row in later.volumes] == [("complete", 28 * CHUNK), ("complete", 0)]
    world.check()


def test_ctrl_c_too_early_leaves_nothing(world: World) -> None:
    options = BackupOptions(chunk_log2=16, workers=1, pace=Pace(bytes=1 << 40, least_bytes=1 << 30))
    interrupted(world, 3, options=options)
    assert world.sessions() == [] and world.disk.moments == {}
    world.row()
    world.check()


def test_a_full_disk(world: World) -> None:
    broken(world, 4, StoreFull("no space left"))
    assert world.sessions()
    check_goes_on(world, resumed=RANGE)


def test_a_kill(world: World) -> None:
    world.disk.revive()
    world.disk.faults.kill_at = world.disk.calls + 15
    with pytest.raises(Killed):
        world.run()
    world.disk.revive()
    (session,) = world.sessions()
    done = session.partial_roots[0].done
    assert done >= 8
    check_goes_on(world, resumed=done * CHUNK)


def test_time_makes_points_too(world: World) -> None:
    ticks = iter(range(1_000_000))
    options = BackupOptions(chunk_log2=16, workers=1, pace=Pace(1 << 40, 4.0, 1, lambda: float(next(ticks))))
    store = world.store()
    world.run(store, options=options)
    session_commits = len([name for name in world.memory.objects() if name.startswith("w/")]) - 2
    assert 1 <= session_commits <= 3, "ten ranges, four ticks each"


# -- the machine goes on -----------------------------------------------------------------------------------------------


def test_what_was_done_is_read_again_only_where_it_changed(world: World) -> None:
    interrupted(world, 7)
    for chunk in (0, 5, 30):
        world.write(chunk)
    row = world.row()
    assert row.resumed_bytes == 28 * CHUNK
    assert row.read_bytes - row.sampled_bytes == (12 + 2) * CHUNK
    world.check()
    world.check_nothing_left()


@pytest.mark.parametrize("chunks", [10, 28, 29, 50])
@pytest.mark.parametrize("odd", [0, 1000])
def test_a_volume_that_was_resized_meanwhile(world: World, chunks: int, odd: int) -> None:
    interrupted(world, 7)
    size = chunks * CHUNK + odd
    world.disk.content[:] = bytes(world.disk.content[:size]).ljust(size, b"g")
    row = world.row()
    assert row.resumed_bytes == min(28 * CHUNK, size)
    world.check()
    world.check_nothing_left()


def test_broken_again_and_again(world: World) -> None:
    """Each run begins where the last one ended, whatever changed below; the work does not grow."""
    for attempt in range(4):
        interrupted(world, 3)
        world.write(attempt, seed=attempt + 10)
        (session,) = world.sessions()
        (root,) = session.partial_roots
        assert root.done >= (attempt + 1) * 4, "never less than before"
        assert len(world.disk.moments) <= 2
    read = world.disk.log["read_into"]
    row = world.row()
    assert row.resumed_bytes == session.partial_roots[0].done * CHUNK
    assert world.disk.log["read_into"] - read <= 12
    world.check()
    world.check_nothing_left()
    assert world.sent <= TOTAL + 4 * CHUNK + 4 * 64 * 1024


def test_less_than_before_does_not_take_its_place(world: World) -> None:
    """The second run has to read much again and is stopped early: the first one's point stays, and its moment."""
    interrupted(world, 9)
    first = world.sessions()[0].partial_roots
    assert first[0].done == 36
    for chunk in range(24):
        world.write(chunk, seed=chunk)
    interrupted(world, 3)
    (session,) = world.sessions()
    assert session.partial_roots == first
    row = world.row()
    assert row.resumed_bytes == 36 * CHUNK
    assert row.read_bytes - row.sampled_bytes == (24 + 4) * CHUNK
    world.check()
    world.check_nothing_left()
    assert world.sent <= TOTAL + 28 * CHUNK + 128 * 1024


# -- later backups -----------------------------------------------------------------------------------------------------


def test_an_incremental_run(world: World) -> None:
    world.row()
    for chunk in range(2, 38):
        world.write(chunk, seed=100 + chunk)
    interrupted(world, 5)
    (root,) = world.sessions()[0].partial_roots
    world.write(0, seed=7)
    world.write(39, seed=8)
    row = world.row()
    assert row.mode == "incremental" and row.resumed_bytes == root.done * CHUNK > 8 * CHUNK
    assert row.read_bytes - row.sampled_bytes == (38 - root.done + 2) * CHUNK
    world.check()
    world.check_nothing_left()


def test_bytes_that_come_back_after_the_broken_run_read_them(world: World) -> None:
    """Base A, broken run saw B, now A again: where the broken run had not come to, only the base may be believed."""
    world.row()
    old = bytes(world.disk.content)
    for chunk in range(40):
        world.write(chunk, seed=200 + chunk)
    interrupted(world, 5)
    (root,) = world.sessions()[0].partial_roots
    assert 0 < root.done < 38
    world.disk.content[:] = old
    row = world.row()
    assert row.mode == "incremental"
    world.check()
    world.check_nothing_left()


def test_a_run_that_compared_goes_on_comparing(world: World) -> None:
    world.row()
    world.write(1)
    world.disk.moments.clear()
    interrupted(world, 7)
    row = world.row()
    assert row.mode == "compare" and row.resumed_bytes == 24 * CHUNK, "what was read without a change since is lost"
    assert row.read_bytes - row.sampled_bytes == 16 * CHUNK
    world.check()
    world.check_nothing_left()


def test_an_unchanged_volume_that_is_compared(world: World) -> None:
    """Reading without finding a change is progress too."""
    world.row()
    world.disk.moments.clear()
    interrupted(world, 9)
    (root,) = world.sessions()[0].partial_roots
    assert root.done >= 24
    row = world.row()
    assert row.resumed_bytes == root.done * CHUNK
    assert (row.changed_chunks, row.new_chunks) == (0, 0)
    world.check()


@pytest.mark.parametrize("chunks", [30, 40, 60])
@pytest.mark.parametrize("back", [False, True])
def test_resized_before_and_after_the_broken_run(world: World, chunks: int, back: bool) -> None:
    world.row()
    size = len(world.disk.content)
    world.disk.content[:] = bytes(world.disk.content[: chunks * CHUNK]).ljust(chunks * CHUNK, b"x")
    for chunk in range(0, 28, 2):
        world.write(chunk, seed=chunk)
    interrupted(world, 4)
    if back:
        world.disk.content[:] = bytes(world.disk.content[:size]).ljust(size, b"y")
    world.row()
    world.check()
    world.check_nothing_left()


def test_monitor_between(world: World) -> None:
    interrupted(world, 7)
    world.write(3)
    assert monitor(world.host, world.disk.source()).intervals == 1
    assert len(world.disk.moments) == 1
    world.write(4)
    row = world.row()
    assert row.resumed_bytes == 28 * CHUNK
    assert row.read_bytes - row.sampled_bytes == (12 + 2) * CHUNK
    world.check()
    world.check_nothing_left()


# -- several volumes ---------------------------------------------------------------------------------------------------


def test_volumes_that_were_done_are_not_read_again(world: World) -> None:
    world.add("second", 20)
    interrupted(world, 3, world.disks["second"])
    assert {one.done for one in world.sessions()[0].partial_roots} == {40, 12}
    rows = {row.volume: row for row in world.run().volumes}
    assert rows["disk"].read_bytes - rows["disk"].sampled_bytes == 0
    assert rows["second"].read_bytes - rows["second"].sampled_bytes == 8 * CHUNK
    world.check()
    world.check_nothing_left()


def test_a_run_over_one_of_two_leaves_the_other_its_point(world: World) -> None:
    world.add("second", 20)
    interrupted(world, 3, world.disks["second"])
    result = world.run(None, "disk")
    assert result.volumes[0].resumed_bytes == 40 * CHUNK
    (session,) = world.sessions()
    assert {row.name for row in session.volumes} == {"disk", "second"}
    result = world.run(None, "second")
    assert result.volumes[0].resumed_bytes == 12 * CHUNK
    world.check()
    world.check_nothing_left()


def test_a_volume_that_fails_keeps_its_point_while_the_others_are_published(world: World) -> None:
    world.add("second", 20)
    with failing_reads(world.disk, 7, SourceError("a bad block")):
        result = world.run()
    assert not result.complete and result.snapshot
    assert len(world.sessions()) == 1
    rows = {row.volume: row for row in world.run().volumes}
    assert rows["disk"].resumed_bytes == 24 * CHUNK
    assert rows["second"].mode == "incremental"
    world.check()
    world.check_nothing_left()


# -- what may not be believed ------------------------------------------------------------------------------------------


def check_reads_all(world: World, reason: str = "") -> None:
    """Everything is read again, and nothing is sent again."""
    sent = world.sent
    row = world.row()
    assert (row.resumed_bytes, row.read_bytes) == (0, TOTAL)
    assert reason in row.reason
    assert world.sent - sent <= TOTAL - 28 * CHUNK + 64 * 1024
    world.check()
    world.check_nothing_left()


def test_a_lost_moment(world: World) -> None:
    interrupted(world, 7)
    world.disk.moments.clear()
    check_reads_all(world, "cannot be continued: the moment is gone")


def test_lost_memory(world: World) -> None:
    interrupted(world, 7)
    for path in world.host.state_dir.glob("repo/*/unfinished.json"):
        path.unlink()
    check_reads_all(world)


def test_a_lost_cache_costs_nothing(world: World) -> None:
    interrupted(world, 7)
    shutil.rmtree(world.host.cache_dir)
    check_goes_on(world, resumed=28 * CHUNK)
    assert world.sent <= TOTAL + 64 * 1024


EDITS: dict[str, Callable[[object], object]] = {
    "session_id": lambda value: "00" * 16,
    "root": lambda value: "11" * 24,
    "done": lambda value: 40,
    "size": lambda value: TOTAL + 1,
    "checkpoint": lambda value: "disk#2",
    "base_root": lambda value: "22" * 24,
    "compared": lambda value: not value,
    "identity": lambda value: "33",
}


@pytest.mark.parametrize("name", EDITS)
def test_memory_that_was_edited(world: World, name: str) -> None:
    interrupted(world, 7)
    world.disk.new_moment()
    (path,) = world.host.state_dir.glob("repo/*/unfinished.json")
    content = json.loads(path.read_text())
    for rows in content["volumes"].values():
        for row in rows:
            row["entry"][name] = EDITS[name](row["entry"][name])
    path.write_text(json.dumps(content))
    check_reads_all(world)


def test_lost_packs(world: World) -> None:
    """What the point needs is looked for before it is relied on."""
    interrupted(world, 7)
    pack = next(name for name in world.memory.objects() if name.startswith("p/"))
    world.memory.delete(pack)
    row = world.row()
    assert (row.resumed_bytes, row.read_bytes) == (0, TOTAL)
    world.check()
    world.check_nothing_left()


def test_a_map_that_lies_about_the_time_since(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "choose", CHOOSE)
    interrupted(world, 7)
    for chunk in range(20):
        world.write(chunk)
    world.disk.faults.hidden = 1.0
    result = world.run()
    assert "everything is compared instead" in result.warnings[0]
    assert result.volumes[0].resumed_bytes == 0
    world.disk.faults.hidden = 0.0
    world.check()
    world.check_nothing_left()


def test_a_map_found_lying_is_not_gone_on_with(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lie is found out, everything is compared, and that run is broken off: the next one must not skip anything."""
    monkeypatch.setattr(sampling, "choose", CHOOSE)
    world.row()
    for chunk in range(10, 40):
        world.write(chunk, seed=chunk)
    disk = world.disk
    disk.faults.hidden = 1.0
    interrupted(world, 8)
    assert disk.log["delta_since"] == 1
    (root,) = world.sessions()[0].partial_roots
    disk.faults.hidden = 0.0
    row = world.row()
    assert row.mode == "compare"
    assert row.read_bytes - row.sampled_bytes >= TOTAL - root.done * CHUNK
    world.check()
    world.check_nothing_left()


# -- copies of a host --------------------------------------------------------------------------------------------------


def test_a_copy_on_another_machine_reads_everything(world: World, tmp_path: Path) -> None:
    interrupted(world, 7)
    clone = world.copied(tmp_path / "clone")
    row = clone.row(host=host_at(tmp_path / "clone", "two"))
    assert (row.resumed_bytes, row.read_bytes) == (0, TOTAL)
    clone.check()


def test_a_copy_of_the_host_with_an_old_session_compares_everything(world: World, tmp_path: Path) -> None:
    interrupted(world, 7)
    clone = world.copied(tmp_path / "clone")
    check_goes_on(world, resumed=28 * CHUNK)
    clone.memory, clone.truth = world.memory, world.truth
    clone.write(2)
    row = clone.row()
    assert (row.mode, row.resumed_bytes, row.read_bytes) == ("compare", 0, TOTAL)
    clone.check()
    clone.check_nothing_left()


def test_a_host_that_went_back_in_time_compares_everything(world: World, tmp_path: Path) -> None:
    """The state of the first break beside the repository after the second: another point is open now."""
    interrupted(world, 5)
    saved = world.copied(tmp_path / "saved")
    interrupted(world, 3)
    old = saved.copied(tmp_path / "old")
    old.memory, old.disks = world.memory, world.disks
    row = old.row()
    assert (row.resumed_bytes, row.read_bytes) == (0, TOTAL)
    old.check()


# -- moments -----------------------------------------------------------------------------------------------------------


def test_a_moment_is_given_up_after_a_week(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from lamella.memory import ledger

    interrupted(world, 7)
    monkeypatch.setattr(ledger, "KEPT_MS", -1)
    source = TrackedSource(world.disk)
    assert monitor(world.host, source).dropped == 1
    assert world.disk.moments == {}
    check_reads_all(world)
