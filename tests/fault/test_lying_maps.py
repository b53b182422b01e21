"""Drivers whose change maps are wrong, in real backups: found in time, and nothing wrong is stored when they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from lamella.base.events import Event, Warned
from lamella.base.ids import ChunkId
from lamella.format.inner import Refuted, Sampled
from lamella.memory.host import Host
from lamella.memory.ledger import Ledger
from lamella.operations.backup.story import BackupOptions, BackupResult, Request, plan_backup
from lamella.operations.look import listing
from lamella.operations.look.description import describe
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from lamella_kit.tracked_source import Faults, TrackedDisk
from tests.fault.world import CHUNK, SECRET, Truth, check_rescue, host_at, init, restored
from tests.sampling_bound import runs_to_see_all

CHUNKS = 256


class World:
    """A disk, a host and a repository with one snapshot."""

    def __init__(self, place: Path, chunks: int = CHUNKS) -> None:
        self.place = place
        self.host: Host = host_at(place)
        self.store = MemoryStore()
        self.chance = Random(7)
        self.disk = TrackedDisk("disk", bytearray(chunks * CHUNK))
        self.events: list[Event] = []
        init(self.store, self.host)
        for chunk in range(chunks):
            self.write(chunk)
        self.backup()

    def write(self, chunk: int) -> None:
        self.disk.content[chunk * CHUNK : chunk * CHUNK + 8] = self.chance.randbytes(8)

    def opened(self) -> Repository:
        return Repository.open(self.store, SECRET, self.host)

    def backup(self, reread_bytes: int = 0) -> BackupResult:
        with self.opened() as repo:
            options = BackupOptions(chunk_log2=16, workers=1, reread_bytes=reread_bytes)
            plan = plan_backup(repo, [Request(None, self.disk.source())], options)
            result = plan.execute(self.report)
        assert result.complete
        return result

    def report(self, event: Event) -> None:
        self.events.append(event)

    def restored(self, result: BackupResult) -> bytes:
        with self.opened() as repo:
            (one,) = select(repo, [f"disk@{result.snapshot}"])
            return restored(repo, one, self.place / "out.img")

    def refuted(self, result: BackupResult) -> Refuted | None:
        with self.opened() as repo:
            (one,) = select(repo, [f"disk@{result.snapshot}"])
            return Refuted.of(one.snapshot.added)

    def shown(self, result: BackupResult) -> tuple[listing.Row, listing.Row]:
        """The rows of `list` and `info`."""
        with self.opened() as repo:
            (row,) = [row for row in listing.snapshots(repo) if row["snapshot"] == result.snapshot]
            (one,) = select(repo, [f"disk@{result.snapshot}"])
            return row, describe(repo, one)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def check_found_out(world: World, result: BackupResult) -> None:
    """The refuted run restores right, says what happened, and the snapshot remembers it."""
    (row,) = result.volumes
    assert (row.mode, row.reason, row.result) == ("compare", "the change map was wrong", "complete")
    (warning,) = result.warnings
    assert "everything is compared instead" in warning
    assert Warned(warning) in world.events
    assert world.restored(result) == bytes(world.disk.content)
    where = world.refuted(result)
    assert where is not None
    assert where.offset % CHUNK == 0
    assert where.offset // CHUNK in world.disk.concealed
    assert where.length == CHUNK
    in_list, in_info = world.shown(result)
    assert in_list["map_refuted"] is True
    assert in_info["map_refuted"] == {"offset": where.offset, "length": where.length}
    assert in_info["mode"] == "compare"
    truth = Truth({f"disk@{result.snapshot}": bytes(world.disk.content)})
    check_rescue(world.store.objects(), truth, world.place)


def test_a_driver_that_hides_one_percent_is_found_in_real_backups(world: World) -> None:
    world.disk.faults.hidden = 0.01
    runs_since = 0
    while runs_since <= runs_to_see_all(CHUNKS, CHUNK):
        for chunk in world.chance.sample(range(CHUNKS), 100):
            world.write(chunk)
        result = world.backup()
        runs_since += bool(world.disk.concealed)
        if result.warnings:
            break
        if not world.disk.concealed:
            assert world.restored(result) == bytes(world.disk.content)
    assert world.disk.concealed, "nothing was hidden: the test shows nothing"
    check_found_out(world, result)
    # With an honest driver the next run is incremental again, and right.
    world.disk.faults = Faults()
    world.write(5)
    again = world.backup()
    assert (again.volumes[0].mode, again.warnings) == ("incremental", [])
    assert world.restored(again) == bytes(world.disk.content)
    assert world.refuted(again) is None
    assert world.shown(again)[0]["map_refuted"] is False
    assert world.shown(again)[1]["map_refuted"] is None
    assert world.shown(again)[1]["sampled_bytes"] == again.volumes[0].sampled_bytes > 0


def test_one_hidden_chunk_is_found_when_the_cursor_has_been_round(world: World) -> None:
    """Whatever chance does: one chunk, hidden once, nothing else ever changes."""
    world.backup()
    world.disk.faults.hidden = 1.0
    world.write(200)
    bound = runs_to_see_all(CHUNKS, CHUNK)
    for _ in range(bound):
        result = world.backup()
        if result.warnings:
            break
        world.disk.faults.hidden = 0.0
    check_found_out(world, result)


def test_a_driver_that_always_calls_a_chunk_zero_is_found(world: World) -> None:
    """Its delta names the chunk in every run, so it is never one of those that are called unchanged."""
    world.disk.faults.always_zero = frozenset({77})
    for _ in range(runs_to_see_all(CHUNKS, CHUNK)):
        result = world.backup()
        if result.warnings:
            break
    check_found_out(world, result)


def test_rereading_everything_finds_a_lie_at_once(world: World) -> None:
    world.disk.faults.hidden = 1.0
    world.write(131)
    check_found_out(world, world.backup(reread_bytes=CHUNKS * CHUNK))


def test_rereading_goes_on_where_it_stopped(world: World) -> None:
    cursors, read = [], 0
    for _ in range(4):
        result = world.backup(reread_bytes=64 * CHUNK)
        read += result.volumes[0].sampled_bytes
        with world.opened() as repo:
            (one,) = select(repo, ["disk"])
            sampled = Sampled.of(one.snapshot.added)
            assert sampled is not None
            assert sampled.sampled_bytes == result.volumes[0].sampled_bytes == result.volumes[0].read_bytes
            cursors.append(sampled.cursor)
    assert cursors == [64, 128, 192, 0]
    assert read >= CHUNKS * CHUNK


def test_lost_moments_are_compared_with_a_reason(world: World) -> None:
    world.disk.faults.lost = True
    world.write(9)
    result = world.backup()
    row = result.volumes[0]
    assert (row.mode, row.reason, row.changed_chunks) == ("compare", "the moment is gone", 1)
    assert world.restored(result) == bytes(world.disk.content)


def test_a_moment_that_cannot_be_kept_costs_only_a_comparison(world: World) -> None:
    world.disk.faults.refused = frozenset({"keep"})
    world.write(9)
    result = world.backup()
    assert [warning for warning in result.warnings if "keep is refused" in warning]
    world.disk.faults = Faults()
    world.write(10)
    again = world.backup()
    # The old moment still belongs to the snapshot it was kept for, so not even a comparison is needed.
    assert (again.volumes[0].mode, again.volumes[0].changed_chunks) == ("incremental", 2)
    assert world.restored(again) == bytes(world.disk.content)


def test_a_moment_that_cannot_be_dropped_is_dropped_later(world: World) -> None:
    world.disk.faults.refused = frozenset({"drop"})
    result = world.backup()
    assert [warning for warning in result.warnings if "drop is refused" in warning]
    assert len(world.disk.moments) == 2
    world.disk.faults = Faults()
    world.backup()
    assert len(world.disk.moments) == 1


def test_a_ledger_that_cannot_be_written_takes_nothing_from_the_snapshot(world: World) -> None:
    (ledger,) = world.host.state_dir.rglob("ledger.json")
    ledger.unlink()
    ledger.mkdir()
    world.write(9)
    result = world.backup()
    assert result.complete
    assert [warning for warning in result.warnings if "ledger.json" in warning]
    assert world.restored(result) == bytes(world.disk.content)


def test_a_frozen_source_that_cannot_be_read_fails_alone(world: World) -> None:
    world.disk.faults.refused = frozenset({"read_into"})
    world.write(9)
    with world.opened() as repo:
        result = plan_backup(repo, [Request(None, world.disk.source())], BackupOptions(workers=1)).execute()
    assert not result.complete
    assert result.volumes[0].error == "read_into is refused"
    assert len(world.disk.moments) == 1
    world.disk.faults = Faults()
    assert world.backup().volumes[0].mode == "incremental"


def test_a_source_that_cannot_be_frozen_keeps_its_moment(world: World) -> None:
    world.disk.faults.refused = frozenset({"freeze"})
    with world.opened() as repo:
        result = plan_backup(repo, [Request(None, world.disk.source())], BackupOptions(workers=1)).execute()
    assert (result.complete, result.snapshot) == (False, "")
    world.disk.faults = Faults()
    assert world.backup().volumes[0].mode == "incremental"


@pytest.mark.parametrize("field", ["ref", "root", "size"])
def test_a_genuine_record_of_a_snapshot_that_is_not_there_is_not_used(world: World, field: str) -> None:
    """As after a repository was set back to an older copy, and that was accepted."""
    with world.opened() as repo:
        ledger = Ledger(repo.memory, repo.keys)
        (volume_id,) = repo.catalogue.volumes
        entry, _ = ledger.entry(volume_id)
        assert entry is not None
        others = {
            "ref": replace(entry, ref=entry.ref._replace(seq=99)),
            "root": replace(entry, root=ChunkId(bytes(24))),
            "size": replace(entry, size=entry.size + CHUNK),
        }
        ledger.record(volume_id, others[field])
    world.write(3)
    result = world.backup()
    row = result.volumes[0]
    reason = "the snapshot that the checkpoint belongs to is not in the repository"
    assert (row.mode, row.reason, row.changed_chunks) == ("compare", reason, 1)
    assert world.restored(result) == bytes(world.disk.content)
