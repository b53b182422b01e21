"""Pruning under the exclusive lock: what goes, what stays, what it costs, and when it refuses."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, dataclass, field, replace
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from lamella.base.errors import Locked, RepositoryError, RolledBack, StoreFull, StoreUnavailable
from lamella.base.ids import ChunkId, WriterId
from lamella.base.names import pack_name
from lamella.base.trust import Sealed
from lamella.crypto.slots import Secret
from lamella.format.commit import Head
from lamella.format.container import Kind
from lamella.format.lost import Address, Bad, Lost
from lamella.format.records import AddSnap, RawRecord, raw
from lamella.history.acceptance import accept_seen
from lamella.memory.pins import Problem
from lamella.operations.backup.story import BackupOptions, BackupResult, Request, plan_backup
from lamella.operations.prune import health
from lamella.operations.prune.health import Health
from lamella.operations.prune.needed import DAY_MS, Needed, Survey
from lamella.operations.prune.plan import (
    Fate,
    PlannedPack,
    PruneOptions,
    PrunePlan,
    PruneResult,
    plan_packs,
    plan_prune,
)
from lamella.operations.prune.prune import run_prune
from lamella.operations.restore.restore import RestoreOptions, plan_restore
from lamella.operations.shared.auditing import compact_log
from lamella.operations.shared.selection import select
from lamella.operations.verify.verify import VerifyOptions, verify
from lamella.packs import census
from lamella.repository.repository import Repository
from lamella.stores.base import Abilities, Store
from lamella_kit.fault_store import FaultStore
from lamella_kit.quota_store import QuotaStore
from lamella_kit.scripted_source import ScriptedSource
from tests.unit.small_repository import ADMIN, CHUNK, WRITER, Small, tick

OPTIONS = BackupOptions(chunk_log2=16, workers=1)


@dataclass
class Pruned:
    """A small repository and what its snapshots must restore to."""

    small: Small
    place: Path
    kept: dict[str, bytes] = field(default_factory=dict)

    def backup(self, content: bytes, name: str = "disk", options: BackupOptions = OPTIONS) -> str:
        with self.small.opened() as repo:
            result: BackupResult = plan_backup(repo, [Request(name, ScriptedSource(name, content))], options).execute()
        assert result.complete
        self.kept[f"{name}@{result.snapshot}"] = content
        return f"{name}@{result.snapshot}"

    @contextmanager
    def alone(self, secret: Secret = ADMIN, store: Store | None = None) -> Iterator[Repository]:
        host = self.small.host()
        with Repository.open(store or self.small.store, secret, host, clock=tick, exclusive=True) as repo:
            yield repo

    def prune(self, *names: str, options: PruneOptions | None = None, store: Store | None = None) -> PruneResult:
        with self.alone(store=store) as repo:
            refs = [one.snapshot.ref for one in select(repo, list(names))] if names else []
            result = run_prune(repo, refs, options)
        for name in names:
            del self.kept[name]
        return result

    def check(self) -> None:
        """Every snapshot that should be there restores, no other is listed, and verification finds nothing."""
        with self.small.opened() as repo:
            everything = {one.text: one for one in select(repo, [])} if self.kept else {}
            assert set(everything) == set(self.kept)
            for text, content in self.kept.items():
                target = self.place / "out.img"
                plan_restore(repo, everything[text], target, RestoreOptions(workers=1)).execute()
                assert target.read_bytes() == content
                target.unlink()
            found = verify(repo, list(everything.values()), VerifyOptions("full", percent=100, workers=1))
            assert not found.damaged, found.findings

    def packs(self) -> dict[str, int]:
        return {name: len(content) for name, content in self.small.store.objects().items() if name.startswith("p/")}


@pytest.fixture
def world(tmp_path: Path) -> Pruned:
    return Pruned(Small.make(tmp_path / "r"), tmp_path)


def noise(seed: int, chunks: int) -> bytes:
    return random.Random(seed).randbytes(chunks * CHUNK)


def test_what_only_a_removed_snapshot_needed_is_deleted(world: Pruned) -> None:
    first = world.backup(noise(1, 40))
    before = world.packs()
    second = noise(2, 40)
    world.backup(second)
    result = world.prune(first)
    assert [ref.seq for ref in result.removed] == [2]
    assert result.freed_bytes == sum(before.values()) and result.deleted_packs == len(before)
    assert not set(before) & set(world.packs()) and not result.blocked
    world.check()
    again = world.prune()
    assert (again.freed_bytes, again.deleted_packs, again.repacked_bytes, again.removed) == (0, 0, 0, [])


def test_shared_chunks_stay(world: Pruned) -> None:
    content = noise(3, 40)
    first = world.backup(content)
    world.backup(content[: 39 * CHUNK] + noise(4, 1))
    result = world.prune(first)
    assert result.deleted_packs == 0 and result.repacked_bytes == 0 and result.dead_bytes > CHUNK
    world.check()


def test_wasteful_packs_are_rewritten(world: Pruned) -> None:
    content = noise(5, 60)
    first = world.backup(content)
    world.backup(content[: 10 * CHUNK] + noise(6, 50))
    before = sum(world.packs().values())
    result = world.prune(first)
    assert 10 * CHUNK < result.repacked_bytes < 11 * CHUNK
    assert result.freed_bytes == before - sum(world.packs().values()) > 49 * CHUNK
    assert result.dead_bytes == 0
    world.check()
    again = world.prune()
    assert (again.freed_bytes, again.repacked_bytes) == (0, 0), "rewriting ends"


def test_how_much_may_stay_unused_is_a_choice(world: Pruned) -> None:
    content = noise(7, 100)
    first = world.backup(content)
    world.backup(content[: 80 * CHUNK] + noise(8, 20))
    assert world.prune(first, options=PruneOptions(repack=False)).repacked_bytes == 0
    assert world.prune().repacked_bytes == 0
    result = world.prune(options=PruneOptions(max_unused=5))
    assert result.repacked_bytes >= 80 * CHUNK and result.dead_bytes <= 0.05 * result.live_bytes
    world.check()


def test_documents_and_tree_notes_of_what_stays_stay(world: Pruned) -> None:
    content = noise(9, 30)
    documented = BackupOptions(chunk_log2=16, workers=1, documents={"settings": b"s" * 1000})
    first = world.backup(content, options=documented)
    world.backup(content[: 5 * CHUNK] + noise(10, 25), options=documented)
    world.prune(first, options=PruneOptions(max_unused=0))
    world.check()
    with world.small.opened() as repo:
        repo.refresh_map()
        rows = repo.cache.connection.execute("SELECT content FROM blobs WHERE kind = ?", (Kind.DOCUMENT,)).fetchall()
        assert len([row for row in rows if row[0] > 900]) == 1 and len(rows) == 2, "one document, one note"


def test_what_a_killed_run_left_goes_at_once(world: Pruned) -> None:
    world.backup(noise(11, 5))
    before = dict(world.small.store.objects())
    world.backup(noise(12, 30), "other")
    for name in list(world.small.store.objects()):
        if name.startswith("w/") and name not in before:
            world.small.store.delete(name)
    del world.kept[next(text for text in world.kept if text.startswith("other"))]
    (world.small.host().state_dir / "repo").rename(world.place / "forgotten")
    result = world.prune()
    assert result.freed_bytes > 30 * CHUNK
    assert {name for name in before if name.startswith("p/")} == set(world.packs())
    world.check()


@pytest.mark.parametrize("times", [1, 2])
def test_without_room_to_shorten_the_log_space_comes_back_first(
    world: Pruned, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    said: list[int] = []

    def compact(repo: Repository, remove_delay_ms: int, *, delete: bool) -> tuple[int, list[Problem]]:
        said.append(len(world.packs()))
        if len(said) <= times:
            raise StoreFull("no space left")
        return compact_log(repo, remove_delay_ms, delete=delete)

    monkeypatch.setattr("lamella.operations.prune.prune.compact_log", compact)
    first = world.backup(noise(40, 20))
    world.backup(noise(41, 20))
    result = world.prune(first)
    assert result.deleted_packs >= 1 and len(said) == 2
    assert said[1] < said[0], "what nothing needs went before the second try"
    assert any("not shortened" in note for note in result.notes) == (times == 2)
    assert not result.blocked
    world.check()


def test_a_writer_may_not_delete(world: Pruned) -> None:
    world.backup(noise(13, 3))
    before = world.small.store.objects()
    with world.alone(WRITER) as repo, pytest.raises(RepositoryError, match="not delete anything"):
        run_prune(repo, [], None)
    assert world.small.store.objects() == before


def test_no_data_is_read_and_cost_follows_what_is_removed(world: Pruned) -> None:
    content = noise(14, 200)
    first = world.backup(content)
    for number in range(3):
        world.backup(content[: 199 * CHUNK] + noise(20 + number, 1))
    read: list[int] = []

    class Counting(FaultStore):
        def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
            found = super().get(name, offset, length)
            read.append(len(found) if name.startswith("p/") else 0)
            return found

    names = list(world.kept)[1:3]
    result = world.prune(*names, store=Counting(world.small.store))
    assert result.deleted_packs == 2 and first in world.kept
    # Nodes of the trees that stay, and the heads of two packs.
    assert sum(read) < 6 * 1600 * 2 + 2 * 32768
    world.check()


def rot(world: Pruned, kind: Kind, id_: bytes) -> None:
    """Flip one bit of a blob, wherever it lies."""
    objects = world.small.store.objects()
    with world.small.opened() as repo:
        repo.refresh_map()
        places = repo.blobs.find(kind, ChunkId(id_))
    for place in places:
        name = pack_name(place.pack)
        content = bytearray(objects[name])
        content[place.blob.offset + 5] ^= 1
        world.small.store.delete(name)
        world.small.store.put(name, Sealed(bytes(content)))


def added(world: Pruned, text: str) -> AddSnap:
    with world.small.opened() as repo:
        return select(repo, [text])[0].snapshot.added


def test_an_unreadable_tree_keeps_everything_of_its_domain(world: Pruned) -> None:
    first = world.backup(noise(15, 30))
    world.backup(noise(16, 30))
    bad = world.backup(noise(31, 30))
    other = world.backup(noise(17, 30), "other")
    world.backup(noise(18, 30), "other")
    rot(world, Kind.LEAF, added(world, bad).root)
    before = set(world.packs())
    result = world.prune(first, other)
    assert [error.exit_code for error in result.blocked] == [20]
    assert [error.obj for error in result.damaged] == [bad]
    gone = before - set(world.packs())
    assert len(result.removed) == 2 and len(gone) == result.deleted_packs == 1, "the other domain is pruned"


def test_the_last_whole_snapshot_stays_whatever_is_asked_for(world: Pruned) -> None:
    whole = world.backup(noise(32, 30))
    bad = world.backup(noise(33, 30))
    rot(world, Kind.LEAF, added(world, bad).root)
    result = world.prune(whole)
    assert result.removed == [] and {error.obj for error in result.blocked} == {"disk", bad}
    assert world.prune(bad).removed, "what is not whole may go"
    world.kept[whole] = noise(32, 30)
    world.check()
    result = world.prune(whole, options=PruneOptions(last=True))
    assert result.removed and not world.packs()
    assert world.prune().revived == [], "who said that nothing need be left gets nothing back"


def test_a_few_absent_chunks_do_not_stop_a_prune(world: Pruned) -> None:
    content = noise(34, 300)
    first = world.backup(noise(35, 40))
    world.backup(content)
    # The chunk lies in one pack and the nodes that lead to it in another one, so that the manifest can be read.
    before = set(world.packs())
    with world.small.opened() as repo, mock.patch("lamella.packs.packer.INCREMENTAL_TARGET", CHUNK):
        plan_backup(repo, [Request("disk", ScriptedSource("disk", content + noise(37, 1)))], OPTIONS).execute()
    (name,) = (name for name in set(world.packs()) - before if world.packs()[name] > CHUNK)
    world.small.store.delete(name)
    result = world.prune(first)
    assert len(result.removed) == 1 and not result.blocked and result.deleted_packs
    assert ["chunk 300" in error.message for error in result.damaged] == [True]


def test_much_that_is_gone_stops_everything(world: Pruned) -> None:
    first = world.backup(noise(39, 30))
    world.backup(noise(40, 30))
    last = set(world.packs())
    world.backup(noise(41, 30))
    before = world.small.store.objects()
    (name,) = set(world.packs()) - last
    world.small.store.delete(name)
    result = world.prune(first)
    assert result.removed == [] and max(error.exit_code for error in result.blocked) == 21
    assert set(world.small.store.objects()) == set(before) - {name}


def test_missing_history_keeps_everything(world: Pruned) -> None:
    first = world.backup(noise(19, 5))
    world.backup(noise(20, 5))
    last = max(name for name in world.small.store.objects() if name.startswith("w/"))
    second_last = sorted(name for name in world.small.store.objects() if name.startswith("w/"))[-2]
    assert last != second_last
    world.small.store.delete(second_last)
    before = world.small.store.objects()
    stranger = Repository.open(world.small.store, ADMIN, world.small.host("stranger"), clock=tick, exclusive=True)
    with stranger as repo, pytest.raises(Exception, match="missing") as raised:
        run_prune(repo, [], None)
    assert getattr(raised.value, "exit_code", 0) == 21
    assert world.small.store.objects() == before and first


def test_a_record_that_cannot_be_read_keeps_everything(world: Pruned) -> None:
    one = world.backup(b"a" * CHUNK)
    world.backup(b"b" * CHUNK)
    with world.small.opened() as repo:
        repo.publish([RawRecord(AddSnap.TYPE, b"not a snapshot")])
    packs = world.packs()
    with world.alone() as repo:
        refs = [one.snapshot.ref for one in select(repo, [one])]
        result = run_prune(repo, refs)
    assert [error.exit_code for error in result.blocked] == [20]
    assert (result.removed, world.packs()) == ([], packs)


def test_what_a_writer_saw_and_is_lost_can_be_accepted(world: Pruned) -> None:
    """Another host's chain goes back: who saw more of it holds deletion up until somebody says that it is lost."""
    world.backup(b"a" * CHUNK)
    one = world.backup(b"b" * CHUNK)
    with world.small.opened("two") as repo:
        repo.publish([])
        repo.publish([])
        other = repo.own_writer
    assert other is not None
    world.backup(b"c" * CHUNK)  # has seen both
    for name in [entry.name for entry in world.small.store.list(f"w/{other.hex()}/")]:
        world.small.store.delete(name)
    with world.alone() as repo:
        assert [problem.kind for problem in repo.problems] == ["gone"]  # the same commit is told once
        repo.pins.accept([head for head in repo.history.heads if head.writer != other], [])  # a host that never saw it
        repo.log.place.heads.pop(other)
        repo.reload(whole=True)
        (problem,) = repo.problems
        assert problem.lacks is not None
        assert (problem.kind, problem.writer, problem.lacks) == ("seen", other, Head(other, 2, problem.lacks.sha256))
        refs = [found.snapshot.ref for found in select(repo, [one])]
        with pytest.raises(RolledBack):
            run_prune(repo, refs)
        writer = problem.message.split()[1]
        assert accept_seen(repo.log, "00000000") == []
        assert accept_seen(repo.log, writer)
        assert not run_prune(repo, refs).blocked
    del world.kept[one]
    world.check()


def test_prune_and_backup_keep_each_other_out(world: Pruned) -> None:
    world.backup(noise(21, 3))
    with world.small.opened(), pytest.raises(Locked):
        world.prune()
    with world.alone(), pytest.raises(Locked), world.small.opened():
        pass
    with world.small.opened() as repo, pytest.raises(Locked):
        run_prune(repo, [])


def test_where_nothing_may_be_deleted_it_is_left_to_others(world: Pruned) -> None:
    class AppendOnly(FaultStore):
        @property
        def abilities(self) -> Abilities:
            return Abilities(exclusive_lock=True, delete=False, write=True, immutable=True)

    first = world.backup(noise(22, 20))
    before = set(world.packs())
    world.backup(noise(23, 20))
    result = world.prune(first, store=AppendOnly(world.small.store))
    assert len(result.removed) == 1 and result.condemned_bytes > 20 * CHUNK and not result.blocked
    assert (result.freed_bytes, result.deleted_packs, before <= set(world.packs())) == (0, 0, True)
    assert world.prune().deleted_packs == len(before), "whoever may deletes"
    world.check()


def test_a_removal_may_count_only_days_after_it_was_first_seen(world: Pruned) -> None:
    first = world.backup(noise(24, 20))
    world.backup(noise(25, 20))
    patient = PruneOptions(remove_delay_ms=60_000)
    result = world.prune(first, options=patient)
    assert result.deleted_packs == 0 and "kept until" in result.notes[0]
    for _ in range(60):
        tick()
    assert world.prune(options=patient).deleted_packs == 1
    world.check()


def test_a_full_disk_is_no_obstacle(world: Pruned) -> None:
    content = noise(26, 60)
    first, second = world.backup(content), world.backup(noise(27, 30))
    world.backup(content[: 10 * CHUNK] + noise(28, 50))
    used = sum(map(len, world.small.store.objects().values()))
    quota = QuotaStore(world.small.store, used)
    with pytest.raises(StoreFull):
        world.prune(first, second, store=quota)
    world.check()
    quota.limit_bytes = used + 4096
    result = world.prune(first, second, store=quota)
    assert result.deleted_packs == 2 and result.repacked_bytes > 0, "what was dead made room for copies"
    world.check()


def test_without_room_for_copies_nothing_is_rewritten_and_nothing_left(world: Pruned) -> None:
    content = noise(29, 60)
    first = world.backup(content)
    world.backup(content[: 10 * CHUNK] + noise(30, 50))
    used = sum(map(len, world.small.store.objects().values()))
    before = set(world.packs())
    result = world.prune(first, store=QuotaStore(world.small.store, used + 4096))
    assert result.repacked_bytes == 0 and "not rewritten" in result.notes[0]
    assert set(world.packs()) == before, "what was copied is taken back"
    world.check()


def test_an_object_that_may_have_been_a_commit_delays_deletion(world: Pruned) -> None:
    """A commit of which nothing is left looks like junk: what it may need stays for a month; junk blocks nothing."""
    first = world.backup(noise(42, 20))
    world.backup(noise(43, 20))
    with world.small.opened() as repo:
        name = Head(WriterId(b"w" * 16), 3, b"h" * 32).name
        assert repo.history.unexplained == []
    world.small.store.put(name, Sealed(b"nothing"))
    result = world.prune(first)
    assert len(result.removed) == 1 and not result.blocked and result.deleted_packs == 0
    assert ["may have been a commit" in note for note in result.notes] == [True]
    now = tick()
    later = world.small.host()
    for days, deleted in ((29, 0), (31, 1)):
        clock = partial(int, now + days * DAY_MS)
        with Repository.open(world.small.store, ADMIN, later, clock=clock, exclusive=True) as repo:
            assert run_prune(repo, []).deleted_packs == deleted, days
    world.check()


def test_a_false_alarm_larger_than_the_budget_dies_in_several_runs(
    world: Pruned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody reported everything bad: what was read again counts, and the next run reads the rest."""
    text = world.backup(noise(44, 8))
    with world.small.opened("two") as repo:
        repo.refresh_map()
        every = [
            Address(pack, blob.kind, blob.id)
            for pack in sorted(census.known(repo.blobs, added(world, text).packs))
            if (directory := repo.blobs.directory(pack)) is not None
            for blob in directory.blobs
        ]
        repo.publish([raw(Bad(tuple(every)))])
    monkeypatch.setattr(health, "REREAD_BYTES", 3 * CHUNK + 5000)
    found = [len(world.prune().damaged) for _ in range(4)]
    assert found[0] == 1 and found[-1] == 0
    world.check()


def test_what_is_given_up_does_not_count_as_gone(world: Pruned) -> None:
    """Also when the same prune looks a second time, because the disk was full at the first."""
    lost = world.backup(noise(45, 30))
    packs = set(world.packs())
    world.backup(noise(46, 30))
    for name in packs:
        world.small.store.delete(name)
    assert 21 in [error.exit_code for error in world.prune().blocked]
    with world.small.opened() as repo:
        one = select(repo, [lost])[0].snapshot
        repo.publish([Lost.of(one.ref, [(0, 30 * CHUNK)])])
    with world.alone() as repo, Health(repo) as judged:
        for _ in range(2):
            result = run_prune(repo, [], None, judged)
            assert not result.blocked and not result.damaged


class Flaky(FaultStore):
    """A store that cannot give a part of one object for a moment."""

    bad: tuple[str, int, int] = ("", 0, 0)
    left = 0

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes asked for, or fail."""
        bad, start, end = self.bad
        if self.left and name == bad and offset < end and start < offset + (length or 1 << 30):
            self.left -= 1
            raise StoreUnavailable("no answer", obj=name)
        return super().get(name, offset, length)


@pytest.mark.parametrize("times", range(1, 5))
@pytest.mark.parametrize("given_up", [False, True])
def test_a_node_that_cannot_be_read_for_a_moment_costs_nothing(world: Pruned, times: int, given_up: bool) -> None:
    """What lies below it is not marked; that it opens when damage is traced must not make it look unneeded."""
    first = world.backup(noise(47, 70))
    kept = world.backup(noise(48, 70))
    with world.small.opened() as repo:
        repo.refresh_map()
        one = select(repo, [kept])[0].snapshot
        (place,) = repo.blobs.find(Kind.INNER, one.added.root)
        if given_up:
            repo.publish([Lost.of(one.ref, [(0, CHUNK)])])
    needed = {pack_name(pack) for pack in added(world, kept).packs}
    store = Flaky(world.small.store)
    store.bad = (pack_name(place.pack), place.blob.offset, place.blob.offset + place.blob.sealed_length)
    store.left = times
    result = world.prune(*([] if given_up else [first]), store=store)
    assert needed <= set(world.packs())
    if not result.removed:
        world.kept[first] = noise(47, 70)
    if not given_up:
        world.check()


# -- the plan as a value -----------------------------------------------------------------------------------------------


def planned(world: Pruned, *names: str, options: PruneOptions | None = None) -> PrunePlan:
    with world.small.opened() as repo:
        refs = {one.snapshot.ref: "as asked" for one in select(repo, list(names))} if names else {}
        return plan_prune(repo, refs, options)


def test_a_plan_names_snapshots_and_packs_and_writes_nothing(world: Pruned) -> None:
    content = noise(50, 60)
    first = world.backup(content)
    world.backup(content[: 10 * CHUNK] + noise(51, 50))
    gone = world.backup(noise(52, 20), "other")
    world.backup(noise(53, 5), "other")
    before, state = world.small.store.objects(), tree(world.small.host().state_dir)
    plan = planned(world, first, gone)
    assert (world.small.store.objects(), tree(world.small.host().state_dir)) == (before, state)
    assert [(one.name, one.reason, one.last) for one in plan.removals] == [
        (first, "as asked", False),
        (gone, "as asked", False),
    ]
    assert [pack.fate for pack in plan.packs] == [Fate.DELETE, Fate.REWRITE]
    assert [pack.reason for pack in plan.packs] == ["nothing in it is needed", "17 % of it is needed"]
    with pytest.raises(FrozenInstanceError):
        plan.live_bytes = 0  # type: ignore[misc]
    result = world.prune(first, gone)
    assert abs(plan.freed_bytes - result.freed_bytes) * 100 < result.freed_bytes
    assert (plan.live_bytes, plan.dead_bytes, len(plan.gone)) == (
        result.live_bytes,
        result.dead_bytes,
        result.deleted_packs,
    )
    world.check()


def tree(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_a_plan_says_what_cannot_be_decided(world: Pruned) -> None:
    first = world.backup(noise(54, 30))
    bad = world.backup(noise(55, 30))
    world.backup(noise(56, 30))
    rot(world, Kind.LEAF, added(world, bad).root)
    plan = planned(world, first)
    assert [error.exit_code for error in plan.undecided] == [20] and [error.obj for error in plan.damaged] == [bad]
    assert not plan.packs and plan.freed_bytes == 0, "nothing is deleted where a snapshot cannot be read"
    (whole,) = (text for text in world.kept if text not in (first, bad))
    refused = planned(world, first, whole)
    assert not refused.removals and refused.undecided[0].obj == "disk", "the last whole snapshot stays"
    final = planned(world, first, bad, whole, options=PruneOptions(last=True))
    assert [one.last for one in final.removals] == [True] * 3 and not final.undecided
    assert final.freed_bytes == sum(world.packs().values())
    with world.small.opened() as repo, pytest.raises(RepositoryError, match="not in the repository"):
        plan_prune(repo, [repo.catalogue.snapshots[0].ref._replace(seq=999)])


def test_a_plan_keeps_what_was_removed_too_lately(world: Pruned) -> None:
    first = world.backup(noise(57, 30))
    world.backup(noise(58, 30))
    options = PruneOptions(remove_delay_ms=DAY_MS)
    assert planned(world, first).freed_bytes > 30 * CHUNK
    plan = planned(world, first, options=options)
    assert len(plan.removals) == 1 and plan.freed_bytes == 0 and "old enough" in plan.notes[0]
    assert world.prune(first, options=options).freed_bytes == 0


def test_a_pack_in_the_plan_that_a_fresh_head_needs_stays(world: Pruned, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan names every pack, as if it were older than every head: the executor reads each directory again."""
    first = world.backup(noise(59, 20))
    world.backup(noise(60, 20))

    def stale(survey: Survey, needed: Needed, options: PruneOptions) -> PrunePlan:
        plan = plan_packs(survey, needed, options)
        more = [PlannedPack(use, Fate.DELETE, "stale") for use in survey.health.usage().packs() if use.held]
        assert more
        return replace(plan, packs=(*plan.packs, *more))

    monkeypatch.setattr("lamella.operations.prune.prune.plan_packs", stale)
    assert world.prune(first, options=PruneOptions(repack=False)).deleted_packs == 1
    world.check()
