"""Chunks stored as differences, through the real operations: what they save, what they need, and what damage costs.

Feared: a base goes that a difference needs; a difference makes another chunk than the one that was saved; damage hits
more or fewer chunks than verify names; a reader that knows no differences takes one for data.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lamella import rescue
from lamella.base.ids import ChunkId
from lamella.base.names import pack_hash
from lamella.format.container import Kind
from lamella.format.node import DeltaChunk
from lamella.memory.host import Host
from lamella.operations.backup.story import BackupOptions, Request, plan_backup
from lamella.operations.look.sizes import sizes_of
from lamella.operations.prune.plan import PruneOptions
from lamella.operations.prune.prune import run_prune
from lamella.operations.repair.repair import RepairOptions, repair
from lamella.operations.shared.selection import select
from lamella.operations.verify.verify import examine_all
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from lamella_kit.crash_store import WRITING_CALLS, CrashStore, PowerCut, crash_points
from lamella_kit.tracked_source import TrackedDisk
from tests.fault.copies import copy
from tests.fault.lockless import LocklessStore, Turned
from tests.fault.world import (
    CHUNK,
    SECRET,
    Truth,
    backup,
    check_rescue,
    check_sound,
    fresh_host,
    host_at,
    init,
    short_rescue,
    verified,
)

DELTAS = BackupOptions(chunk_log2=16, workers=1, deltas=True)
CHUNKS = 12


@dataclass
class World:
    """A repository, a tracked volume that is saved with differences, and what must come back."""

    place: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    truth: Truth = field(default_factory=Truth)
    disk: TrackedDisk = field(
        default_factory=lambda: TrackedDisk("disk", bytearray(random.Random(1).randbytes(CHUNKS * CHUNK - 5000)))
    )

    @property
    def host(self) -> Host:
        return host_at(self.place / "host")

    def save(self, options: BackupOptions = DELTAS) -> int:
        """One run; returns how many chunks became differences."""
        result = backup(self.store, self.host, self.disk.source(), options=options)
        assert result.complete, result
        self.truth.learn(result, {"disk": bytes(self.disk.content)})
        return result.volumes[0].delta_chunks

    def write(self, chunk: int, at: int = 9000, length: int = 600) -> None:
        """Change a few bytes of a chunk."""
        start = chunk * CHUNK + at
        self.disk.content[start : start + length] = random.Random(f"{chunk} {at} {len(self.truth.volumes)}").randbytes(
            length
        )

    def slots(self, number: int = -1) -> dict[int, DeltaChunk]:
        """The chunks of a snapshot that are differences."""
        with Repository.open(self.store, SECRET, self.host) as repo:
            one = select(repo, [])[number]
            runs = repo.tree_reader(one.snapshot.added.domain_id).runs(repo.tree(one.snapshot))
            return {run.first: run.slot for run in runs if isinstance(run.slot, DeltaChunk)}

    def places(self, ids: Sequence[ChunkId]) -> dict[ChunkId, tuple[str, int]]:
        """Pack and offset of some chunks."""
        with Repository.open(self.store, SECRET, self.host) as repo:
            repo.refresh_map()
            found = repo.blobs.find_many(Kind.CHUNK, list(ids))
            return {
                id_: (f"p/{one[0].pack.hex()[:2]}/{one[0].pack.hex()}", one[0].blob.offset)
                for id_, one in found.items()
            }

    def damaged(self, id_: ChunkId) -> MemoryStore:
        """A copy of the repository in which a chunk does not open."""
        name, offset = self.places([id_])[id_]
        objects = self.store.objects()
        content = bytearray(objects[name])
        content[offset + 3] ^= 1
        return MemoryStore({**objects, name: bytes(content)})

    def prune(self, *keep: int) -> None:
        """Remove all snapshots but those of these numbers."""
        with Repository.open(self.store, SECRET, self.host, exclusive=True) as repo:
            rows = select(repo, [])
            kept = {rows[number].text for number in keep}
            self.truth.volumes = {text: one for text, one in self.truth.volumes.items() if text in kept}
            run_prune(repo, [one.snapshot.ref for one in rows if one.text not in kept], PruneOptions(max_unused=0))

    def check(self) -> None:
        """Sound for a host that knows nothing, and for the emergency reader."""
        check_sound(self.store, fresh_host(self.place / "fresh"), self.truth, self.place)
        check_rescue(self.store.objects(), self.truth, self.place / "rescue")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path)
    with short_rescue(monkeypatch):
        init(made.store, made.host)
    yield made
    shutil.rmtree(tmp_path, ignore_errors=True)


def stored_bytes(store: MemoryStore) -> int:
    return sum(len(content) for name, content in store.objects().items() if name.startswith("p/"))


def test_a_small_change_is_stored_small_and_comes_back(world: World) -> None:
    assert world.save() == 0, "there is nothing to differ from"
    before = stored_bytes(world.store)
    for chunk in (2, 7, CHUNKS - 1):
        world.write(chunk)
    assert world.save() == 3
    assert stored_bytes(world.store) - before < CHUNK, "three chunks were written again"
    assert set(world.slots()) == {2, 7, CHUNKS - 1}
    world.check()


def test_without_being_asked_for_nothing_is_stored_as_a_difference(world: World) -> None:
    plain = BackupOptions(chunk_log2=16, workers=1)
    world.save(plain)
    world.write(3)
    assert world.save(plain) == 0
    with Repository.open(world.store, SECRET, world.host) as repo:
        assert not any(one.snapshot.added.has_deltas for one in select(repo, []))


def test_differences_are_from_full_chunks_alone(world: World) -> None:
    """What is a difference already is stored in full when it changes again, and is a base from then on."""
    world.save()
    kinds = []
    for _ in range(4):
        world.write(4)
        kinds.append(world.save())
    assert kinds == [1, 0, 1, 0]
    world.check()


def test_a_chunk_that_changed_as_a_whole_is_stored_in_full(world: World) -> None:
    world.save()
    world.write(5, at=0, length=CHUNK * 6 // 10)
    assert world.save() == 0
    world.check()


def test_a_resized_volume_has_no_difference_where_the_length_is_another(world: World) -> None:
    world.save()
    world.disk.content += bytes(100)
    world.write(CHUNKS - 1)
    world.write(1)
    assert world.save() == 1
    world.check()


def test_a_kept_moment_that_is_not_what_the_base_says_is_no_base(world: World) -> None:
    world.save()
    (checkpoint,) = world.disk.moments
    moment = bytearray(world.disk.moments[checkpoint])
    moment[6 * CHUNK + 20000] ^= 1
    world.disk.moments[checkpoint] = bytes(moment)
    world.write(6)
    world.write(8)
    assert world.save() == 1, "chunk 6 was another one in the moment than in the snapshot"
    world.check()


def test_old_programs_refuse_the_snapshot_by_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that does not know the feature: the snapshots without it are there, the one with it is refused."""
    world.save()
    world.write(2)
    world.save()
    monkeypatch.setattr(rescue, "DELTAS", 0xFFFF)
    monkeypatch.setattr("lamella.format.records.DELTAS", 0xFFFF)
    with Repository.open(world.store, SECRET, world.host) as repo:
        assert [one.snapshot.added.usable for one in select(repo, [])] == [True, False]
    old, new = world.truth.volumes
    check_rescue(world.store.objects(), Truth({old: world.truth.volumes[old]}), world.place / "rescue")
    with pytest.raises(AssertionError, match="needs feature 0x0002"):
        check_rescue(world.store.objects(), Truth({new: world.truth.volumes[new]}), world.place / "rescue")


# -- bases stay as long as they are needed ----------------------------------------------------------------------------


def test_a_base_stays_when_its_own_snapshot_goes(world: World) -> None:
    world.save()
    world.write(2)
    world.write(9)
    world.save()
    for chunk in range(CHUNKS - 1):
        if chunk not in (2, 9):
            world.disk.content[chunk * CHUNK : (chunk + 1) * CHUNK] = random.Random(chunk + 50).randbytes(CHUNK)
    world.save()
    world.prune(-1)
    assert set(world.slots()) == {2, 9}, "only what they differ from is left of the first snapshot"
    assert stored_bytes(world.store) < (CHUNKS + 3) * CHUNK
    world.check()


def test_many_histories_keep_every_base_that_is_needed(world: World) -> None:
    """Random changes, runs with and without differences, and prunes that keep any of the snapshots."""
    chance = random.Random(7)
    for _ in range(10):
        for _ in range(chance.randrange(4)):
            world.write(chance.randrange(CHUNKS - 1), at=chance.randrange(60000), length=chance.choice((10, 5000)))
        world.save(BackupOptions(chunk_log2=16, workers=1, deltas=chance.random() < 0.8))
        if chance.random() < 0.3 and len(world.truth.volumes) > 1:
            numbers = range(len(world.truth.volumes))
            world.prune(*chance.sample(numbers, chance.randrange(1, len(numbers))))
            check_sound(world.store, fresh_host(world.place / "fresh"), world.truth, world.place)
    world.check()


# -- damage -----------------------------------------------------------------------------------------------------------


def troubles(store: MemoryStore, place: Path, level: str = "restore") -> dict[str, list[str]]:
    """By snapshot, the findings of verify about chunks."""
    with Repository.open(store, SECRET, fresh_host(place / "verifier")) as repo:
        found: dict[str, list[str]] = {}
        for finding in verified(repo, level).findings:
            if finding.kind == "chunk":
                found.setdefault(finding.obj, []).append(finding.message.partition(":")[0])
        return found


@pytest.mark.parametrize("level", ["full", "restore"])
@pytest.mark.parametrize("part", ["base", "difference"])
def test_damage_names_exactly_the_chunks_that_need_it(world: World, part: str, level: str) -> None:
    world.save()
    for chunk in (2, 7):
        world.write(chunk)
    world.save()
    world.write(1)
    world.save()
    first, second, third = world.truth.volumes
    slot = world.slots()[7]
    left = world.damaged(slot.base if part == "base" else slot.difference)
    here = [f"bytes {7 * CHUNK} to {8 * CHUNK}"]
    # What a snapshot shares with the one before is told there, but that one is no comparison once it is damaged.
    expected = {second: here, third: here} | ({first: here} if part == "base" else {})
    assert troubles(left, world.place, level) == expected


@pytest.mark.parametrize("part", ["base", "difference"])
def test_repair_finds_what_depends_on_a_lost_blob(world: World, part: str) -> None:
    """From the live source: the chunk is stored in full again, and its slot leads there."""
    world.save()
    for chunk in (2, 7):
        world.write(chunk)
    world.save()
    world.prune(-1)
    slot = world.slots()[7]
    world.store = world.damaged(slot.base if part == "base" else slot.difference)
    with Repository.open(world.store, SECRET, world.host, whole=True, may_be_lost=True) as repo:
        result = repair(repo, examine_all, RepairOptions(sources={"disk": world.disk.source()}, workers=1))
    assert "stored anew" in {one.did for one in result.actions}, result
    world.check()
    world.write(3)
    world.save()
    world.prune(-1)
    world.check()


@pytest.mark.parametrize("part", ["base", "difference"])
def test_repair_finds_what_depends_on_a_lost_blob_in_another_repository(world: World, part: str) -> None:
    """The other repository holds a copy, with other keys and whole chunks."""
    world.save()
    for chunk in (2, 7):
        world.write(chunk)
    world.save()
    target = MemoryStore()
    init(target, world.host, id_alg=2)
    copy(world.store, target, world.host)
    slot = world.slots()[7]
    world.store = world.damaged(slot.base if part == "base" else slot.difference)
    with Repository.open(target, SECRET, world.host) as other:
        with Repository.open(world.store, SECRET, world.host, whole=True, may_be_lost=True) as repo:
            result = repair(repo, examine_all, RepairOptions(others=(other,), workers=1))
        assert "stored anew" in {one.did for one in result.actions}, result
    world.check()


# -- power cuts, copies, places without a lock -------------------------------------------------------------------------


def test_power_cuts_while_differences_are_stored_and_bases_are_kept(world: World) -> None:
    """Before and after each writing call of a run and of the prune after it; what was not synced is left, or is not."""
    world.save()
    world.write(2)
    world.save()
    before, moments = world.store.objects(), dict(world.disk.moments)
    shutil.copytree(world.place / "host", world.place / "kept")
    world.write(8)
    world.disk.content[CHUNK : 2 * CHUNK] = random.Random(99).randbytes(CHUNK)
    content, old = bytes(world.disk.content), list(world.truth.volumes.values())
    cases = 0
    whole = CrashStore(before, counted=WRITING_CALLS)
    again_and_prune(whole, world, moments)
    # Before every second call and after it: the others are alike.
    for number, point in enumerate(one for one in crash_points(whole.calls) if one.call % 2):
        store = CrashStore(before, point, counted=WRITING_CALLS)
        with pytest.raises(PowerCut):
            again_and_prune(store, world, moments)
        left = store.after_crash(frozenset(range(len(store.unsynced) if number % 4 < 2 else 0)))
        check_sound(left.connect(), fresh_host(world.place / "fresh"), Truth(), world.place, others=(*old, content))
        cases += 1
    assert cases >= 8
    world.store = MemoryStore(left.objects())
    check_rescue(world.store.objects(), Truth(), world.place / "rescue")


def again_and_prune(store: CrashStore, world: World, moments: dict[str, bytes]) -> None:
    """A run with differences, then a prune that keeps only its snapshot; the host is as it was before."""
    shutil.rmtree(world.place / "host")
    shutil.copytree(world.place / "kept", world.place / "host")
    world.disk.moments = dict(moments)
    result = backup(store, world.host, world.disk.source(), options=DELTAS)
    assert result.volumes[0].delta_chunks == 1
    with Repository.open(store, SECRET, world.host, exclusive=True) as repo:
        gone = [one.snapshot.ref for one in select(repo, []) if one.snapshot.name != result.snapshot]
        run_prune(repo, gone, PruneOptions(max_unused=0))


def test_a_copy_holds_whole_chunks(world: World) -> None:
    world.save()
    world.write(2)
    world.save()
    target = MemoryStore()
    init(target, world.host, id_alg=2)
    copy(world.store, target, world.host)
    with Repository.open(target, SECRET, world.host) as repo:
        for one in select(repo, []):
            assert not one.snapshot.added.has_deltas
            runs = repo.tree_reader(one.snapshot.added.domain_id).runs(repo.tree(one.snapshot))
            assert not any(isinstance(run.slot, DeltaChunk) for run in runs)
    check_sound(target, fresh_host(world.place / "fresh"), world.truth, world.place)


def test_a_condemned_base_is_no_base(world: World) -> None:
    """In a place without a lock, what a collector is about to delete is relied on by nothing new."""
    world.save()
    world.write(5)
    with Repository.open(world.store, SECRET, world.host) as repo:
        repo.refresh_map()
        packs = frozenset(pack for entry in repo.blobs.packs() if (pack := pack_hash(entry.name)) is not None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(repo.blobs), "reusable", lambda blobs, kind, id_: [
                place for place in blobs.find(kind, id_) if place.pack not in packs
            ])  # fmt: skip
            assert world.save() == 0
    world.check()


def test_sizes_and_differences_of_snapshots_count_bases(world: World) -> None:
    world.save()
    world.write(2)
    world.save()
    world.prune(-1)
    with Repository.open(world.store, SECRET, world.host) as repo:
        (one,) = select(repo, [])
        found = sizes_of(repo, [one])
        assert found.stored_bytes == found.unique_bytes > CHUNKS * CHUNK - 6000, "the base is counted, too"


def test_prunes_without_a_lock_keep_bases(world: World) -> None:
    """The snapshot that the bases came with goes, in two steps and days apart, while runs with differences go on."""
    clock = Turned()
    store = LocklessStore(MemoryStore(world.store.objects()))

    def save(*chunks: int) -> None:
        for chunk in chunks:
            world.write(chunk)
        with Repository.open(store, SECRET, world.host, clock=clock) as repo:
            result = plan_backup(repo, [Request("disk", world.disk.source())], DELTAS).execute()
        assert result.volumes[0].delta_chunks == len(chunks)
        world.truth.learn(result, {"disk": bytes(world.disk.content)})

    save()
    save(2, 9)
    for chunk in range(CHUNKS - 1):
        if chunk not in (2, 9):
            world.disk.content[chunk * CHUNK : (chunk + 1) * CHUNK] = random.Random(chunk + 50).randbytes(CHUNK)
    save()
    last = list(world.truth.volumes)[-1]
    world.truth.volumes = {last: world.truth.volumes[last]}
    before = stored_bytes(store.memory)
    for _ in range(3):
        with Repository.open(store, SECRET, world.host, clock=clock) as repo:
            gone = [one.snapshot.ref for one in select(repo, []) if one.text != last]
            run_prune(repo, gone, PruneOptions(max_unused=0))
        clock.days(40)
    assert stored_bytes(store.memory) < before - 5 * CHUNK, "what nothing needs is gone"
    world.store = store.memory
    assert set(world.slots()) == {2, 9}
    world.check()
