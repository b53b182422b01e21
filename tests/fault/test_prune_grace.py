"""Pruning a store without a lock, with the real programs: what the model proves is what they do."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from lamella.base.errors import RepositoryError
from lamella.base.names import pack_name
from lamella.base.trust import Clear, Sealed
from lamella.format.container import Kind
from lamella.format.owners import Join
from lamella.format.records import Ref
from lamella.operations.backup import story
from lamella.operations.backup.story import BackupOptions, Request, plan_backup
from lamella.operations.prune.needed import Needed, Survey
from lamella.operations.prune.plan import Fate, PlannedPack, PruneOptions, PrunePlan, PruneResult, plan_packs
from lamella.operations.prune.prune import run_prune
from lamella.operations.prune.rewrite import Rewriting
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from lamella_kit.scripted_source import ScriptedSource
from tests.fault.lockless import LocklessStore, Turned
from tests.fault.world import CHUNK, SECRET, SMALL_RESCUE, Truth, check_rescue, check_sound, fresh_host, host_at, init
from tests.fault.world import short_rescue as short

OPTIONS = BackupOptions(chunk_log2=16, workers=1, domain="shared")


@dataclass
class Fleet:
    """Hosts that share one repository without a lock."""

    place: Path
    store: LocklessStore = field(default_factory=lambda: LocklessStore(MemoryStore()))
    clock: Turned = field(default_factory=Turned)
    truth: Truth = field(default_factory=Truth)

    def opened(self, host: str) -> Repository:
        return Repository.open(self.store, SECRET, host_at(self.place / host, host), clock=self.clock, exclusive=True)

    def join(self, *hosts: str) -> None:
        """Let hosts act for the first one, and the first one for them: only then do their volumes share a domain."""
        with self.opened("a") as repo:
            first, rows = repo.memory.creator().id, []
            for host in hosts:
                with Repository.open(self.store, SECRET, host_at(self.place / host, host)) as other:
                    one = other.memory.creator().id
                rows += [Join(one, first), Join(first, one)]
            repo.publish(rows)

    def backup(self, host: str, content: bytes, during: Callable[[], object] | None = None) -> str:
        """A run of a host's one volume; `during` happens when it has read everything and not yet published."""
        name = f"disk-{host}"
        source = ScriptedSource(name, content)
        with self.opened(host) as repo:
            plan = plan_backup(repo, [Request(name, source)], OPTIONS)
            if during is not None:
                self._between(during)
            result = plan.execute()
        self.truth.learn(result, {name: content})
        return f"{name}@{result.snapshot}"

    @staticmethod
    def _between(during: Callable[[], object]) -> None:
        module = vars(story)
        inner = module["attach"]

        def attached(*arguments: object) -> object:
            module["attach"] = inner
            during()
            return inner(*arguments)

        module["attach"] = attached

    def prune(self, host: str, *names: str, options: PruneOptions | None = None) -> PruneResult:
        with self.opened(host) as repo:
            refs: list[Ref] = [one.snapshot.ref for one in select(repo, list(names))] if names else []
            result = run_prune(repo, refs, options)
        for name in names:
            self.truth.volumes.pop(name, None)
        return result

    def packs(self) -> set[str]:
        return {name for name in self.store.memory.objects() if name.startswith("p/")}

    def check(self) -> None:
        check_sound(self.store, fresh_host(self.place / "fresh"), self.truth, self.place)
        check_rescue(self.store.memory.objects(), self.truth, self.place)


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    fleet = Fleet(tmp_path)
    with short(monkeypatch):
        init(fleet.store, host_at(tmp_path / "a", "a"))
    fleet.join("b", "c")
    assert SMALL_RESCUE
    return fleet


def noise(seed: int, chunks: int) -> bytes:
    return random.Random(seed).randbytes(chunks * CHUNK)


def test_condemned_packs_go_after_the_grace_time_and_not_before(fleet: Fleet) -> None:
    old = fleet.backup("a", noise(1, 20))
    first = fleet.packs()
    fleet.backup("a", noise(2, 20))
    result = fleet.prune("a", old)
    assert (result.freed_bytes, result.deleted_packs, fleet.packs() >= first) == (0, 0, True)
    assert result.condemned_bytes > 20 * CHUNK and result.condemned_until_ms > fleet.clock.now
    fleet.clock.days(0.9)
    assert fleet.prune("a").deleted_packs == 0
    fleet.clock.days(0.2)
    result = fleet.prune("a")
    assert result.deleted_packs == len(first) and not first & fleet.packs()
    assert (result.condemned_bytes, result.condemned_until_ms, result.waiting) == (0, 0, [])
    fleet.check()
    assert fleet.prune("a").deleted_packs == 0


def test_every_writer_must_have_written_since(fleet: Fleet) -> None:
    old = fleet.backup("a", noise(3, 20))
    fleet.backup("b", noise(4, 3))
    fleet.backup("a", noise(5, 20))
    fleet.prune("a", old)
    fleet.clock.days(3)
    result = fleet.prune("a")
    assert result.deleted_packs == 0 and "box-b" in result.waiting[0]
    fleet.backup("b", noise(6, 3))
    result = fleet.prune("a")
    assert result.deleted_packs > 0 and not result.waiting
    fleet.check()


def test_a_silent_writer_may_be_given_up_after_thirty_days(fleet: Fleet) -> None:
    old = fleet.backup("a", noise(7, 20))
    fleet.backup("b", noise(8, 3))
    fleet.backup("a", noise(9, 20))
    fleet.prune("a", old)
    with fleet.opened("b") as repo:
        silent = repo.own_writer
    assert silent is not None
    with pytest.raises(RepositoryError, match="within the last 30 days"):
        fleet.prune("a", options=PruneOptions(retire=(silent,)))
    fleet.clock.days(31)
    assert fleet.prune("a", options=PruneOptions(retire=(silent,))).deleted_packs > 0
    fleet.check()
    fleet.backup("b", noise(10, 3))
    with fleet.opened("b") as repo:
        assert repo.own_writer != silent, "who was given up comes back as another"
    fleet.check()


def test_what_is_condemned_is_not_used_again(fleet: Fleet) -> None:
    content = noise(11, 20)
    old = fleet.backup("a", content)
    fleet.backup("a", noise(12, 20))
    fleet.prune("a", old)
    before = fleet.packs()
    fleet.backup("b", content)
    stored = sum(len(fleet.store.memory.objects()[name]) for name in fleet.packs() - before)
    assert stored > 20 * CHUNK, "nothing was found in what is condemned"
    fleet.clock.days(2)
    result = fleet.prune("a")
    assert (result.deleted_packs, result.condemned_bytes) == (0, 0), "needed again: rescued, not deleted"
    fleet.check()


def test_a_run_that_found_what_is_condemned_meanwhile_stores_it_anew(fleet: Fleet) -> None:
    content = noise(13, 20)
    old = fleet.backup("a", content)
    fleet.backup("a", noise(14, 20))
    fleet.backup("b", noise(15, 1))
    before = fleet.packs()
    fleet.backup("b", content, during=lambda: fleet.prune("a", old))
    stored = sum(len(fleet.store.memory.objects()[name]) for name in fleet.packs() - before)
    assert stored > 20 * CHUNK, "all of it was found, condemned, and stored anew before it was published"
    fleet.check()
    fleet.clock.days(2)
    fleet.backup("a", noise(16, 20))
    fleet.prune("a")
    fleet.check()


def test_a_running_backup_holds_everything_up(fleet: Fleet) -> None:
    content = noise(17, 20)
    old = fleet.backup("a", content)
    fleet.backup("a", noise(18, 20))
    fleet.backup("b", noise(19, 1))

    def days_pass() -> None:
        fleet.prune("a", old)
        fleet.clock.days(3)
        result = fleet.prune("a")
        assert result.deleted_packs == 0 and any("open" in reason for reason in result.waiting)

    fleet.backup("b", content, during=days_pass)
    fleet.check()
    fleet.prune("a")
    fleet.check()


@pytest.mark.parametrize("commit", [1, 2, 3])
def test_a_backup_that_ends_within_a_prune_is_no_damage(fleet: Fleet, commit: int) -> None:
    """It ends just before one of the prune's commits: its packs are newer than the prune's listing of packs."""
    old = fleet.backup("a", noise(61, 20))
    fleet.backup("b", noise(62, 3))
    fleet.backup("a", noise(63, 20))
    store, puts = fleet.store, 0
    put = store.put

    def put_later(name: str, content: Sealed | Clear) -> None:
        nonlocal puts
        puts += name.startswith("w/")
        if puts == commit:
            puts = 99
            fleet.backup("b", noise(64 + commit, 5))
        put(name, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "put", put_later)
        result = fleet.prune("a", old)
    assert (result.damaged, result.blocked, result.revived) == ([], [], [])
    fleet.clock.days(1.1)
    assert fleet.prune("a").damaged == []
    fleet.check()


def test_what_another_collector_deletes_at_the_same_moment_is_no_failure(fleet: Fleet) -> None:
    """Both may delete what was condemned: one deletes a pack after the other has read its head."""
    old = fleet.backup("a", noise(71, 3))
    condemned = fleet.packs()
    fleet.backup("a", noise(72, 20))
    assert fleet.prune("a", old).condemned_bytes
    fleet.clock.days(1.1)
    store, get, gone = fleet.store, fleet.store.get, set[str]()

    def get_later(name: str, offset: int = 0, length: int | None = None) -> bytes:
        if name in condemned and offset and not gone:
            gone.add(name)
            store.memory.delete(name)
        return get(name, offset, length)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "get", get_later)
        result = fleet.prune("a")
    assert gone and not result.blocked and not result.damaged
    assert not gone & fleet.packs()
    fleet.check()


def test_a_second_collector_and_a_lagging_listing(fleet: Fleet) -> None:
    content = noise(20, 20)
    old = fleet.backup("a", content)
    fleet.backup("b", noise(21, 20))
    fleet.backup("a", noise(22, 20))
    fleet.prune("a", old)
    fleet.prune("b")
    fleet.store.lag()
    fleet.store.shown = None
    fleet.clock.days(2)
    for host in ("a", "b", "a", "b"):
        fleet.prune(host)
        fleet.check()
    assert fleet.prune("a").condemned_bytes == 0


def test_a_stale_listing_never_makes_a_collector_delete_what_is_new(fleet: Fleet) -> None:
    """The collector condemned the pack; the writer used it again because of a rescue; the collector's view lags."""
    content = noise(23, 20)
    old = fleet.backup("a", content)
    fleet.backup("a", noise(24, 20))
    fleet.prune("a", old)
    fleet.clock.days(2)
    fleet.store.lag()
    shown = fleet.store.shown
    fleet.store.shown = None
    fleet.backup("b", content)
    fleet.store.shown = shown
    result = fleet.prune("a")
    assert result.deleted_packs > 0, "the writer did not use the condemned pack, so it may go"
    fleet.store.shown = None
    fleet.check()
    fleet.prune("a")
    fleet.check()


def test_rewriting_ends_in_a_condemnation(fleet: Fleet) -> None:
    content = noise(25, 60)
    old = fleet.backup("a", content)
    fleet.backup("a", content[: 10 * CHUNK] + noise(26, 50))
    before = fleet.packs()
    result = fleet.prune("a", old)
    assert result.repacked_bytes > 10 * CHUNK and fleet.packs() > before
    fleet.clock.days(2)
    result = fleet.prune("a")
    assert result.deleted_packs == 1 and result.freed_bytes > 59 * CHUNK
    fleet.check()
    again = fleet.prune("a")
    assert (again.deleted_packs, again.repacked_bytes, again.condemned_bytes) == (0, 0, 0)


def test_a_copy_that_was_lost_rescues_the_old_pack(fleet: Fleet) -> None:
    content = noise(27, 60)
    old = fleet.backup("a", content)
    fleet.backup("a", content[: 10 * CHUNK] + noise(28, 50))
    before = fleet.packs()
    fleet.prune("a", old)
    for name in fleet.packs() - before:
        fleet.store.delete(name)
    fleet.clock.days(2)
    result = fleet.prune("a")
    assert result.deleted_packs == 0
    fleet.check()


def test_a_copy_that_another_writer_made_is_nothing_to_rely_on(fleet: Fleet) -> None:
    """Two collectors that each rely on what the other one condemns would delete both: a batch relies on its own."""
    content = noise(30, 60)
    shared = content[: 10 * CHUNK]
    fleet.backup("a", noise(32, 1))  # which makes their domain
    earlier = fleet.store.memory.objects()
    old = fleet.backup("a", content)
    first = fleet.packs()
    # A listing that lags: the other writer does not find these chunks.
    fleet.store.shown = earlier
    fleet.backup("b", shared)
    fleet.store.shown = None
    assert sum(fleet.store.stat(name) for name in fleet.packs() - first) > 10 * CHUNK, "a twin"
    fleet.backup("a", shared + noise(31, 50))
    before = fleet.packs()
    result = fleet.prune("a", old)
    assert result.repacked_bytes >= 10 * CHUNK, "there is a twin, and it is copied all the same"
    copies = fleet.packs() - before
    assert copies
    for name in copies:
        fleet.store.delete(name)
    fleet.clock.days(2)
    fleet.backup("b", shared)
    result = fleet.prune("a")
    assert result.deleted_packs == 0, "the other writer's copy does not count"
    fleet.check()


def test_packs_of_a_run_that_nobody_heard_of_are_left_alone_for_a_week(fleet: Fleet) -> None:
    fleet.backup("a", noise(29, 5))
    with fleet.opened("a") as repo:
        repo.refresh_map()
        domain_id = repo.catalogue.snapshots[0].added.domain_id
        rewriting = Rewriting(repo, lambda event: None)
        packer = rewriting._packer(domain_id)
        body = b"\x00" + (7).to_bytes(4, "little") + b"unknown"
        packer.store_blob(Kind.CHUNK, packer.identify(Kind.CHUNK)(b"unknown"), 7, lambda: body)
        rewriting.run([])
    assert fleet.prune("a").condemned_bytes == 0
    fleet.clock.days(8)
    assert fleet.prune("a").condemned_bytes > 0
    fleet.clock.days(2)
    assert fleet.prune("a").deleted_packs == 1
    fleet.check()


def test_a_pack_in_the_plan_that_a_fresh_head_needs_is_not_condemned(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan names every pack, as if it were older than every head: the executor reads each directory again."""
    old = fleet.backup("a", random.Random(90).randbytes(20 * CHUNK))
    doomed = fleet.packs()
    fleet.backup("a", random.Random(91).randbytes(20 * CHUNK))

    def stale(survey: Survey, needed: Needed, options: PruneOptions) -> PrunePlan:
        plan = plan_packs(survey, needed, options)
        more = [PlannedPack(use, Fate.CONDEMN, "stale") for use in survey.health.usage().packs() if use.held]
        assert more
        return replace(plan, packs=(*plan.packs, *more))

    monkeypatch.setattr("lamella.operations.prune.lockless.plan_packs", stale)
    fleet.prune("a", old, options=PruneOptions(repack=False))
    with fleet.opened("a") as repo:
        assert {pack_name(pack) for pack in repo.log.condemned.packs} == doomed
    fleet.check()
