"""A volume whose last whole snapshot was removed gets it back before anything is deleted (FORMAT 8 REVIVE, 15)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.base.errors import IntegrityError, StoreError, StoreFull, StoreRefused, StoreUnavailable
from lamella.base.names import pack_name
from lamella.base.trust import Clear, Sealed
from lamella.format.container import Kind
from lamella.format.deletion import Remove, RemoveLast, Revive
from lamella.format.records import Ref, raw
from lamella.history import publish
from lamella.operations.prune.needed import Survey
from lamella.operations.prune.plan import PlannedRemoval, PruneOptions, PruneResult, plan_removals
from lamella.operations.prune.prune import run_prune
from lamella.operations.shared.auditing import audit, publish_audits
from lamella.operations.shared.selection import Selected, select
from lamella.repository.repository import Repository
from lamella.stores.base import Store
from lamella.stores.memory import MemoryStore
from lamella_kit.crash_store import WRITING_CALLS, CrashStore, PowerCut, crash_points
from lamella_kit.fault_store import FaultStore
from tests.fault.test_prune_grace import Fleet
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
    volume,
)

OLD, NEW = (random.Random(seed).randbytes(9 * CHUNK) for seed in (1, 2))


def rot(store: MemoryStore, repo: Repository, kind: Kind, ids: list[bytes]) -> None:
    """Flip one bit in each of these blobs, wherever it lies."""
    repo.refresh_map(again=True)
    objects = store.objects()
    for id_ in ids:
        for place in repo.blobs.find(kind, id_):  # type: ignore[arg-type]
            name = pack_name(place.pack)
            content = bytearray(objects[name])
            content[place.blob.offset + 3] ^= 1
            objects[name] = bytes(content)
            store.delete(name)
            store.put(name, Sealed(objects[name]))


class Story:
    """A volume with two snapshots, of which the older one was removed and not deleted, and the newer one rots."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.store = MemoryStore()
        init(self.store, host_at(place / "host"))
        self.old = self.saved(OLD)
        self.new = self.saved(NEW)

    def saved(self, content: bytes) -> str:
        result = backup(self.store, host_at(self.place / "host"), volume(content))
        return f"disk@{result.snapshot}"

    def opened(self, store: Store | None = None, host: str = "host") -> Repository:
        return Repository.open(store or self.store, SECRET, host_at(self.place / host), exclusive=True)

    def one(self, repo: Repository, text: str) -> Selected:
        return select(repo, [text])[0]

    def removed(self, text: str, kind: type[Remove] = Remove) -> Ref:
        """As a prune that was killed right after it published."""
        with self.opened() as repo:
            ref = self.one(repo, text).snapshot.ref
            repo.publish([kind((ref,))])
        return ref

    def packs_of(self, text: str) -> set[str]:
        """The packs that were written for a snapshot that was removed."""
        name = text.partition("@")[2]
        with self.opened() as repo:
            added = [one.added for one in repo.catalogue.removed.values() if one.added is not None]
        return {pack_name(pack) for one in added if one.name == name for pack in one.packs}

    def rots(self, text: str) -> None:
        with self.opened() as repo:
            rot(self.store, repo, Kind.LEAF, [self.one(repo, text).snapshot.added.root])

    def prune(self, store: Store | None = None, host: str = "host") -> PruneResult:
        with self.opened(store, host) as repo:
            return run_prune(repo, [])

    def restores(self, store: MemoryStore | None = None) -> None:
        """The old content is what both readers give, under its name."""
        truth = Truth({self.old: OLD})
        with self.opened(store, "looks") as repo:
            assert self.old in {one.text for one in select(repo, [])}
        check_rescue((store or self.store).objects(), truth, self.place)


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    with short_rescue(monkeypatch):
        yield Story(tmp_path)


def test_what_was_removed_comes_back_when_the_other_one_rots(story: Story) -> None:
    gone = story.removed(story.old)
    story.rots(story.new)
    result = story.prune()
    assert result.revived == [story.old]
    assert [error.obj for error in result.damaged] == [story.new] and result.blocked
    story.restores()
    with story.opened() as repo:
        back = story.one(repo, story.old).snapshot
        assert back.ref != gone and repo.catalogue.removed[gone].revived
    again = story.prune()
    assert again.revived == [] and [error.obj for error in again.damaged] == [story.new]
    with story.opened() as repo:
        refs = [story.one(repo, story.new).snapshot.ref]
        assert run_prune(repo, refs).blocked == []
    story.restores()


def test_nothing_comes_back_while_a_whole_one_is_there(story: Story) -> None:
    story.removed(story.old)
    result = story.prune()
    assert result.revived == [] and result.deleted_packs and not result.damaged
    check_sound(story.store, fresh_host(story.place / "fresh"), Truth({story.new: NEW}), story.place)


def test_who_gives_up_the_last_one_gets_nothing_back(story: Story) -> None:
    """Neither the one that is named, nor what was removed before it and is still there."""
    story.removed(story.old)
    with story.opened() as repo:
        refs = [story.one(repo, story.new).snapshot.ref]
        result = run_prune(repo, refs, PruneOptions(last=True))
    assert (result.revived, result.removed) == ([], refs) and result.deleted_packs
    assert story.prune().revived == []
    with story.opened() as repo:
        assert select(repo, []) == []


def test_what_a_remove_last_names_stays_away(story: Story) -> None:
    story.removed(story.old, RemoveLast)
    story.removed(story.new)
    assert story.prune().revived == [story.new]
    story.removed(story.new, RemoveLast)
    assert story.prune().revived == []


class Refusing(FaultStore):
    """A store that takes no commit."""

    error: StoreError = StoreFull("no space left")

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store, or fail."""
        if name.startswith("w/"):
            raise self.error
        super().put(name, content)


@pytest.mark.parametrize("error", [StoreFull("no space left"), StoreUnavailable("no answer"), StoreRefused("no")])
@pytest.mark.parametrize("both", [True, False])
def test_what_cannot_come_back_now_is_not_deleted(story: Story, error: StoreError, both: bool) -> None:
    """On a full disk, for example: nothing of it goes before it is back."""
    story.removed(story.old)
    if both:
        story.removed(story.new)
    else:
        story.rots(story.new)
    before = {name for name in story.store.objects() if name.startswith("p/")}
    needed = story.packs_of(story.new if both else story.old)
    assert needed
    store = Refusing(story.store)
    store.error = error
    try:
        result = story.prune(store)
    except StoreError as raised:
        assert raised is error
    else:
        assert not both and ["brought back" in one.message for one in result.blocked][-1]
    left = {name for name in story.store.objects() if name.startswith("p/")}
    assert needed <= left and (both or left == before)
    assert story.prune().revived == [story.new if both else story.old]


@pytest.mark.parametrize("both", [True, False])
def test_the_log_does_not_forget_what_may_come_back(story: Story, monkeypatch: pytest.MonkeyPatch, both: bool) -> None:
    """Checkpoints were made and audited between the removal and the prune that finds nothing whole."""
    monkeypatch.setattr(publish, "CHECKPOINT_EVERY", 3)
    story.removed(story.old)
    if both:
        story.removed(story.new)
    for number in range(8):
        backup(story.store, host_at(story.place / "host"), volume(bytes([number]) * CHUNK, "other"))
    with story.opened(host="looks") as repo:
        assert audit(repo).passed
        publish_audits(repo, audit(repo).passed)
    if not both:
        story.rots(story.new)
    assert story.prune().revived == [story.new if both else story.old]
    if not both:
        story.restores()


def test_only_the_prune_key_revives(story: Story) -> None:
    ref = story.removed(story.old)
    with story.opened() as repo:
        added = repo.catalogue.removed[ref].added
        assert added is not None
        repo.publish([raw(Revive(ref, added))])
        repo.reload()
        assert [one.text for one in select(repo, [])] == [story.new]
        assert any("REVIVE without the prune key's signature" in note for note in repo.catalogue.notes)


def test_a_revived_snapshot_outlives_the_log(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "CHECKPOINT_EVERY", 3)
    story.removed(story.old)
    story.rots(story.new)
    assert story.prune().revived
    for number in range(12):
        with story.opened() as repo:
            repo.publish([])
            if number % 4 == 3:
                assert audit(repo).problems == []
        story.prune()
    with story.opened() as repo:
        assert all(chain.begin is not None for chain in repo.history.chains.values())
    story.restores()


def test_power_cuts_while_one_comes_back(story: Story, tmp_path: Path) -> None:
    story.removed(story.old)
    story.rots(story.new)
    start = story.store.objects()
    whole = CrashStore(start, counted=WRITING_CALLS)
    assert story.prune(whole, "whole").revived
    cases = 0
    for point in crash_points(whole.calls):
        store = CrashStore(start, point, counted=WRITING_CALLS)
        with pytest.raises(PowerCut):
            story.prune(store, f"crashed-{point}")
        for surviving in (frozenset[int](), frozenset(range(len(store.unsynced)))):
            left = store.after_crash(surviving)
            story.prune(left.connect(), f"next-{cases}")
            story.restores(left)
            cases += 1
    assert cases >= 4


# -- without a lock ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    made = Fleet(tmp_path)
    with short_rescue(monkeypatch):
        init(made.store, host_at(tmp_path / "a", "a"))
    return made


def test_two_prunes_that_each_kept_another_one(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = fleet.backup("a", OLD), fleet.backup("a", NEW)
    judged = plan_removals

    def meanwhile(
        survey: Survey, wanted: dict[Ref, str], options: PruneOptions
    ) -> tuple[tuple[PlannedRemoval, ...], tuple[IntegrityError, ...]]:
        monkeypatch.setattr("lamella.operations.prune.prune.plan_removals", judged)
        found = judged(survey, wanted, options)
        fleet.prune("a", old)
        return found

    monkeypatch.setattr("lamella.operations.prune.prune.plan_removals", meanwhile)
    result = fleet.prune("b", new)
    assert result.revived == [new], "the newest of what both removed"
    fleet.truth.volumes[new] = NEW
    fleet.check()
    for _ in range(3):
        fleet.clock.days(2)
        for host in "ab":
            assert fleet.prune(host).revived == []
    fleet.check()
    assert len(fleet.packs()) <= 3, "what the older one needed is gone"


def test_what_comes_back_relies_on_no_condemned_pack(fleet: Fleet) -> None:
    old = fleet.backup("a", OLD)
    first = fleet.packs()
    new = fleet.backup("a", NEW)
    assert fleet.prune("a", old).condemned_bytes
    with fleet.opened("a") as repo:
        assert {pack_name(pack) for pack in repo.log.condemned.packs} == first
        rot(fleet.store.memory, repo, Kind.LEAF, [select(repo, [new])[0].snapshot.added.root])
    result = fleet.prune("b")
    assert result.revived == [old]
    fleet.truth.volumes = {old: OLD}
    left = {name: content for name, content in fleet.store.memory.objects().items() if name not in first}
    check_rescue(left, fleet.truth, fleet.place)
    for _ in range(4):
        fleet.clock.days(2)
        for host in "ab":
            assert [error.obj for error in fleet.prune(host).damaged] == [new]
    fleet.prune("b", new)
    for _ in range(4):
        fleet.clock.days(2)
        for host in "ab":
            assert not fleet.prune(host).blocked
    fleet.truth.volumes = {old: OLD}
    fleet.check()
