"""`lamella repair`: what it brings back, from where, what it records, and that doing it twice is doing it once."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamella import rescue
from lamella.base.errors import RolledBack
from lamella.base.names import pack_name
from lamella.format.container import Kind
from lamella.format.inner import was_rebuilt
from lamella.history.acceptance import accept_history
from lamella.memory.host import Host
from lamella.operations.backup.story import BackupOptions
from lamella.operations.look.listing import snapshots
from lamella.operations.repair.repair import RepairOptions, repair
from lamella.operations.repair.result import ASIDE, BACK, LEFT, REBUILT, RECORDED, STORED, RepairResult
from lamella.operations.shared.selection import Selected, select
from lamella.operations.verify.verify import VerifyOptions, examine_all, verify
from lamella.repository.repository import Repository
from lamella.sources.base import Source
from lamella.stores.base import Abilities
from lamella.stores.memory import MemoryStore
from lamella_kit.scripted_source import ScriptedSource
from tests.fault.damage import DOCUMENT, Objects, Small, a_host, build, sparse
from tests.fault.world import (
    CHUNK,
    KEY,
    SECRET,
    SMALL_RESCUE,
    Truth,
    as_directory,
    backup,
    check_rescue,
    fresh_host,
    host_at,
    init,
    restored,
)

DISK = sparse(50 * CHUNK + 77, {0: b"a", 1: b"B", 40: b"c"})
"""The volume as it was at its last backup."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    with pytest.MonkeyPatch.context() as patch:
        yield build(tmp_path_factory.mktemp("small"), patch)


def mend(
    store: MemoryStore,
    host: Host,
    *,
    sources: dict[str, Source] | None = None,
    copies: tuple[Repository, ...] = (),
    dry: bool = False,
    level: str = "full",
) -> RepairResult:
    with Repository.open(store, SECRET, host, whole=True, may_be_lost=True) as repo:
        options = RepairOptions(level, sources or {}, copies, dry, workers=1)
        return repair(repo, examine_all, options)


def did(result: RepairResult) -> set[str]:
    return {one.did for one in result.actions}


def check_whole(store: MemoryStore, truth: Truth, tmp_path: Path) -> None:
    """Everything restores for a stranger, by both readers, and a full verification finds nothing."""
    host = fresh_host(tmp_path / "judge")
    with Repository.open(store, SECRET, host) as repo:
        for one in select(repo, []):
            assert restored(repo, one, tmp_path / "out.img") == truth.volumes[one.text], one.text
        found = verify(repo, select(repo, []), VerifyOptions("full", workers=1))
        assert not found.findings, found.findings
    check_rescue(store.objects(), truth, tmp_path)


def place_of(small: Small, host: Host, pick: Callable[[Repository, Selected], tuple[Kind, bytes]]) -> tuple[str, int]:
    """The pack of a blob of the newest snapshot of `disk`, and the middle of the blob in it."""
    with Repository.open(MemoryStore(small.objects), SECRET, host) as repo:
        repo.refresh_map()
        one = [one for one in select(repo, []) if one.volume_name == "disk"][-1]
        kind, id_ = pick(repo, one)
        (place, *_) = repo.blobs.find(kind, id_)  # type: ignore[arg-type]
        return pack_name(place.pack), place.blob.offset + place.blob.sealed_length // 2


def chunk_number(number: int) -> Callable[[Repository, Selected], tuple[Kind, bytes]]:
    def pick(repo: Repository, one: Selected) -> tuple[Kind, bytes]:
        (run,) = repo.tree_reader(one.snapshot.added.domain_id).runs(repo.tree(one.snapshot), number, number + 1)
        assert isinstance(run.slot, bytes)
        return Kind.CHUNK, run.slot

    return pick


def root(repo: Repository, one: Selected) -> tuple[Kind, bytes]:
    return Kind.LEAF, one.snapshot.added.root


def flipped(objects: Objects, name: str, offset: int) -> Objects:
    content = bytearray(objects[name])
    content[offset] ^= 1
    return {**objects, name: bytes(content)}


def without(objects: Objects, *names: str) -> Objects:
    return {name: content for name, content in objects.items() if name not in names}


def twin(small: Small, tmp_path: Path) -> Repository:
    """A sound copy of the repository, opened."""
    return Repository.open(MemoryStore(small.objects), SECRET, fresh_host(tmp_path / "twin"))


def rescue_list(store: MemoryStore, tmp_path: Path) -> list[str]:
    """What the emergency reader lists."""
    place = as_directory(store.objects(), tmp_path / f"rescue-{len(store.objects())}")
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "key").chmod(0o600)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        rescue.main(["list", "--repo", str(place), "--keyfile", str(tmp_path / "key")])
    return said.getvalue().splitlines()


def test_a_sound_repository_needs_nothing(small: Small, tmp_path: Path) -> None:
    store = MemoryStore(small.objects)
    result = mend(store, a_host(small, tmp_path, warm=True))
    assert (result.actions, result.damaged, result.problems) == ([], False, [])
    assert store.objects() == small.objects


@pytest.mark.parametrize("pick", [chunk_number(1), chunk_number(40), root])
def test_a_bad_blob_comes_back_from_the_live_source(
    small: Small, tmp_path: Path, pick: Callable[[Repository, Selected], tuple[Kind, bytes]]
) -> None:
    name, offset = place_of(small, a_host(small, tmp_path, warm=True), pick)
    store = MemoryStore(flipped(small.objects, name, offset))
    bad = store.get(name)
    host = a_host(small, tmp_path, warm=True)
    result = mend(store, host, sources={"disk": DISK})
    assert did(result) >= {ASIDE, STORED}
    assert not result.damaged
    (aside,) = [one for one in store.objects() if one.startswith("quarantine/")]
    assert store.get(aside) == bad, "its bytes are kept"
    check_whole(store, small.truth, tmp_path)
    objects = store.objects()
    again = mend(store, host, sources={"disk": DISK})
    assert not again.actions
    assert store.objects() == objects


def test_without_any_donor_the_rest_is_saved_and_the_loss_recorded_for_ever(small: Small, tmp_path: Path) -> None:
    name, offset = place_of(small, a_host(small, tmp_path, warm=True), chunk_number(1))
    store = MemoryStore(flipped(small.objects, name, offset))
    host = a_host(small, tmp_path, warm=True)
    result = mend(store, host)
    (gone,) = result.gone
    assert (gone.ranges, gone.lost_bytes) == (((CHUNK, 2 * CHUNK),), CHUNK)
    assert did(result) >= {RECORDED, ASIDE, STORED}
    assert result.damaged
    objects = store.objects()
    again = mend(store, host)
    assert again.gone == result.gone
    assert not again.actions, "twice is once"
    assert store.objects() == objects
    with Repository.open(store, SECRET, fresh_host(tmp_path / "stranger")) as repo:
        rows = {row["snapshot"]: (row["result"], row["lost"]) for row in snapshots(repo)}
        assert [line for line in rescue_list(store, tmp_path) if "parts-lost" in line and gone.obj[5:] in line]
        assert [state for state in rows.values() if state[1]] == [("incomplete", ["disk"])]
        unrestorable = verify(repo, select(repo, []), VerifyOptions("full", workers=1)).unrestorable
        assert unrestorable == [gone.obj]
    # Much later the source turns up after all.
    healed = mend(store, host, sources={"disk": DISK})
    assert not healed.damaged
    assert did(healed) == {STORED, RECORDED}
    with Repository.open(store, SECRET, fresh_host(tmp_path / "stranger")) as repo:
        assert not any(row["lost"] for row in snapshots(repo))
    assert not any("parts-lost" in line for line in rescue_list(store, tmp_path))
    check_whole(store, small.truth, tmp_path)


def test_a_pack_of_which_only_the_hint_is_damaged_is_stored_anew_whole(small: Small, tmp_path: Path) -> None:
    """The emergency reader does without the hint, so what it can read a repair must not move out of its reach."""
    damaged: Objects = small.objects
    for name in small.objects:
        damaged = flipped(damaged, name, 56) if name.startswith("p/") else damaged
    store = MemoryStore(damaged)
    assert not mend(store, a_host(small, tmp_path, warm=False)).gone
    check_whole(store, small.truth, tmp_path)


def test_a_loss_that_somebody_with_the_prune_key_records_counts_for_deletion(small: Small, tmp_path: Path) -> None:
    """Whoever repairs: the snapshot's own host, or another one of an admin. Said once, it is not said again."""
    host = a_host(small, tmp_path, warm=True)
    name, offset = place_of(small, host, chunk_number(1))
    store = MemoryStore(flipped(small.objects, name, offset))
    for repairer in (fresh_host(tmp_path / "other"), host):
        result = mend(store, repairer)
        assert result.gone
        assert (RECORDED in did(result)) == (repairer is not host)
        with Repository.open(store, SECRET, fresh_host(tmp_path / "judge")) as repo:
            assert [one.given_up for one in repo.catalogue.snapshots if one.lost is not None]
            assert all(one.given_up for one in repo.catalogue.snapshots if one.lost is not None)


@pytest.mark.parametrize("warm", [True, False])
def test_every_lost_pack_comes_back_from_a_copy(small: Small, tmp_path: Path, warm: bool) -> None:
    packs = [name for name in small.objects if name.startswith("p/")]
    for gone in ([packs[0]], [packs[-1]], packs):
        store = MemoryStore(without(small.objects, *gone))
        with twin(small, tmp_path) as copy:
            result = mend(store, a_host(small, tmp_path, warm=warm), copies=(copy,))
        assert not result.damaged, result
        assert did(result) == {BACK}
        assert store.objects() == small.objects
    check_whole(store, small.truth, tmp_path)


def test_a_bad_pack_comes_back_from_a_copy_although_its_name_is_taken(small: Small, tmp_path: Path) -> None:
    for name in [name for name in small.objects if name.startswith("p/")]:
        for offset in (10, 60, 100, len(small.objects[name]) - 5):
            store = MemoryStore(flipped(small.objects, name, offset))
            with twin(small, tmp_path) as copy:
                result = mend(store, a_host(small, tmp_path, warm=False), copies=(copy,))
            assert not result.damaged, (name, offset, result)
            check_whole(store, small.truth, tmp_path)


def test_another_repository_with_other_keys_and_chunks_gives_what_it_has(small: Small, tmp_path: Path) -> None:
    other_host = host_at(tmp_path / "other-host", "one")
    other = MemoryStore()
    init(other, other_host, id_alg=2)
    backup(other, other_host, DISK, options=BackupOptions(chunk_log2=17, workers=1, documents={"settings": DOCUMENT}))
    for pick in (chunk_number(1), root):
        name, offset = place_of(small, a_host(small, tmp_path, warm=True), pick)
        store = MemoryStore(flipped(small.objects, name, offset))
        with Repository.open(other, SECRET, other_host) as donor:
            result = mend(store, a_host(small, tmp_path, warm=True), copies=(donor,))
        assert not result.damaged, result
        check_whole(store, small.truth, tmp_path)


def test_a_source_that_changed_gives_only_what_is_the_same(small: Small, tmp_path: Path) -> None:
    packs = [name for name in small.objects if name.startswith("p/")]
    content = bytearray(DISK.content)
    content[5] ^= 1
    changed = ScriptedSource("disk", bytes(content), DISK.extents)
    store = MemoryStore(without(small.objects, *packs))
    host = a_host(small, tmp_path, warm=True)
    # The trees are gone with the packs: of what changed nothing can be had.
    result = mend(store, host, sources={"disk": changed})
    assert {one.lost_bytes for one in result.gone} == {len(one) for one in small.truth.volumes.values()}
    again = mend(store, host, sources={"disk": DISK})
    assert len(again.gone) == len(result.gone) - 1, "the newest snapshot is back as a whole"


def test_a_dry_run_writes_nothing_and_says_what_would_come(small: Small, tmp_path: Path) -> None:
    name, offset = place_of(small, a_host(small, tmp_path, warm=True), chunk_number(1))
    store = MemoryStore(flipped(small.objects, name, offset))
    before = store.objects()
    result = mend(store, a_host(small, tmp_path, warm=True), sources={"disk": DISK}, dry=True)
    assert did(result) == {ASIDE, STORED}
    assert not result.gone
    assert result.stored_blobs > 0
    assert store.objects() == before
    alone = mend(store, a_host(small, tmp_path, warm=True), dry=True)
    assert [gone.lost_bytes for gone in alone.gone] == [CHUNK]
    assert store.objects() == before


class Lockless(MemoryStore):
    """A store that cannot prove that nobody else is there."""

    @property
    def abilities(self) -> Abilities:
        return Abilities(exclusive_lock=False, delete=True, write=True)


def test_where_no_lock_proves_it_nothing_is_moved_and_content_still_comes_back(small: Small, tmp_path: Path) -> None:
    name, offset = place_of(small, a_host(small, tmp_path, warm=True), chunk_number(1))
    store = Lockless(flipped(small.objects, name, offset))
    host = a_host(small, tmp_path, warm=True)
    result = mend(store, host, sources={"disk": DISK})
    assert did(result) == {STORED, LEFT}
    assert store.objects().items() >= flipped(small.objects, name, offset).items()
    assert mend(store, host, level="structure").actions == []
    check_rescue(store.objects(), small.truth, tmp_path)


# -- history and clear files -------------------------------------------------------------------------------------------


def test_commits_come_back_from_this_hosts_cache(small: Small, tmp_path: Path) -> None:
    for name in [name for name in small.objects if name.startswith("w/")]:
        for objects in (without(small.objects, name), flipped(small.objects, name, 100)):
            store = MemoryStore(objects)
            result = mend(store, a_host(small, tmp_path, warm=True))
            assert not result.damaged, (name, result)
            assert not result.problems
            assert store.objects().items() >= small.objects.items()


def test_all_commits_come_back_from_this_hosts_cache(small: Small, tmp_path: Path) -> None:
    commits = [name for name in small.objects if name.startswith("w/")]
    store = MemoryStore(without(small.objects, *commits))
    assert not mend(store, a_host(small, tmp_path, warm=True)).damaged
    assert store.objects() == small.objects


def test_when_all_commits_are_lost_volumes_are_rebuilt_from_notes(small: Small, tmp_path: Path) -> None:
    commits = [name for name in small.objects if name.startswith("w/")]
    store = MemoryStore(without(small.objects, *commits))
    host = fresh_host(tmp_path / "stranger")
    dry = mend(store, host, dry=True)
    assert sum(one.did == REBUILT for one in dry.actions) == 3
    assert store.objects() == without(small.objects, *commits)
    result = mend(store, host)
    assert sum(one.did == REBUILT for one in result.actions) == 3
    assert not result.damaged, result
    truth = Truth()
    contents = [small.content(text.partition("@")[2]) for text in small.truth.volumes]
    for who in (host, fresh_host(tmp_path / "another")):
        with Repository.open(store, SECRET, who) as repo:
            chosen = select(repo, [])
            assert sorted({one.volume_name for one in chosen}) == ["disk", "other"]
            assert all(was_rebuilt(one.snapshot.added) for one in chosen)
            assert all(row["rebuilt"] for row in snapshots(repo))
            for one in chosen:
                truth.volumes[one.text] = restored(repo, one, tmp_path / "out.img")
            assert sorted(truth.volumes.values()) == sorted(contents)
            assert select(repo, ["disk@latest"])[0].snapshot.added.size == len(DISK.content)
            assert not verify(repo, chosen, VerifyOptions("full", workers=1)).damaged
    check_rescue(store.objects(), truth, tmp_path)
    assert sum("rebuilt" in line for line in rescue_list(store, tmp_path)) == 3
    objects = store.objects()
    assert not mend(store, host).actions
    assert store.objects() == objects
    # The host goes on.
    adopted = backup(store, host, DISK, names=("disk2",))
    assert adopted.complete


def test_a_history_that_lacks_a_part_is_not_published_upon_before_it_is_accepted(small: Small, tmp_path: Path) -> None:
    commits = sorted(name for name in small.objects if name.startswith("w/"))
    writers = {name.split("/")[1] for name in commits}
    longest = max(writers, key=lambda writer: sum(writer in name for name in commits))
    middle = [name for name in commits if longest in name][1]
    name, offset = place_of(small, a_host(small, tmp_path, warm=True), chunk_number(1))
    store = MemoryStore(without(flipped(small.objects, name, offset), middle))
    host = fresh_host(tmp_path / "stranger")
    result = mend(store, host)
    assert result.problems
    assert LEFT in did(result)
    with Repository.open(store, SECRET, host, whole=True, may_be_lost=True) as repo:
        with pytest.raises(RolledBack):
            repo.require_sound_history()
        accept_history(repo.log)
        accepted = repair(repo, examine_all, RepairOptions(rebuild=True, workers=1))
    assert REBUILT in did(accepted), "the first snapshot of the disk was only known to the lost commit"
    assert RECORDED in did(accepted)
    assert not accepted.problems


def test_clear_files_and_slots_come_back(small: Small, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lamella.operations.repair.objects.rescue_source", lambda: SMALL_RESCUE)
        for name in ("readme.txt", "restore.py"):
            for objects in (without(small.objects, name), flipped(small.objects, name, 3)):
                store = MemoryStore(objects)
                result = mend(store, fresh_host(tmp_path / "stranger"))
                assert not result.damaged
                assert store.objects()[name] == small.objects[name]
    (slot,) = [name for name in small.objects if name.startswith("keys/")]
    store = MemoryStore(small.objects)
    host = fresh_host(tmp_path / "stranger")
    with Repository.open(store, SECRET, host, whole=True, may_be_lost=True) as repo, twin(small, tmp_path) as copy:
        store.delete(slot)  # while it is open: nobody could open it any more
        alone = repair(repo, examine_all, RepairOptions(workers=1))
        assert [(one.did, one.obj) for one in alone.actions] == [(LEFT, slot)]
        result = repair(repo, examine_all, RepairOptions(others=(copy,), workers=1))
    assert not result.damaged
    assert store.objects() == small.objects
