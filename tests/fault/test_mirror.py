"""Mirrors: byte for byte, safe against a source that changes and a power that goes, told from a rollback."""

from __future__ import annotations

import functools
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lamella.base.errors import Locked, NoRepository, RepositoryError, RolledBack, StoreError
from lamella.base.names import pack_hash, pack_name
from lamella.base.trust import Clear, Sealed
from lamella.format.commit import parse_name
from lamella.format.deletion import Remove
from lamella.history.acceptance import accept_history
from lamella.memory.host import Host
from lamella.operations.mirror import comparing
from lamella.operations.mirror.mirror import MirrorResult, mirror, plan_mirror
from lamella.operations.mirror.resync import Resynced, resync_corrupt
from lamella.operations.prune.prune import run_prune
from lamella.operations.shared.selection import select
from lamella.packs.building import raw_body
from lamella.packs.packer import Packer
from lamella.repository.repository import Repository
from lamella.run.pipeline import Outbox
from lamella.stores.base import Entry, Store
from lamella.stores.held import Held
from lamella.stores.memory import MemoryStore
from lamella.stores.pipe.client import PipeStore
from lamella.stores.pipe.frames import Hello
from lamella.stores.pipe.link import Route
from lamella_kit.crash_store import WRITING_CALLS, CrashStore, PowerCut, crash_points, surviving_subsets
from tests.fault.copies import copy, letters
from tests.fault.world import (
    SECRET,
    Truth,
    backup,
    check_rescue,
    check_sound,
    fresh_host,
    host_at,
    init,
    restored,
    short_rescue,
    volume,
)


class At(MemoryStore):
    """A store that is somewhere."""

    def __init__(self, place: str, objects: Mapping[str, bytes] | None = None) -> None:
        super().__init__(objects)
        self._place = place

    @property
    def url(self) -> str:
        return self._place


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path)


class Life:
    """A repository at one place, and the host that writes there."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.store = At("/primary")
        self.host = host_at(place / "host")
        self.truth = Truth()
        init(self.store, self.host)
        self.save("abc")
        self.save("abX")

    def save(self, text: str, store: Store | None = None, host: Host | None = None) -> None:
        result = backup(store or self.store, host or self.host, volume(letters(text)))
        self.truth.learn(result, {"disk": letters(text)})

    def mirror(self, target: Store, host: Host | None = None) -> MirrorResult:
        return mirror(self.store, target, host or self.host, workers=1)


def test_the_same_bytes_and_both_readers_restore_it(life: Life) -> None:
    target = At("/mirror")
    result = life.mirror(target)
    assert target.objects() == life.store.objects()
    assert (result.copied_objects, result.present_objects, result.extra_objects) == (len(target.objects()), 0, 0)
    assert result.copied_bytes == sum(map(len, target.objects().values()))
    check_rescue(target.objects(), life.truth, life.place)
    check_sound(target, life.host, life.truth, life.place)
    life.save("abXd")
    before = len(target.objects())
    again = life.mirror(target)
    assert (again.copied_objects, again.present_objects) == (len(target.objects()) - before, before)
    assert target.objects() == life.store.objects()
    assert life.mirror(target).copied_objects == 0
    plan = plan_mirror(life.store, At("/nowhere"))
    assert (plan.missing_objects, plan.present_objects) == (len(target.objects()), 0)


def test_it_needs_no_key_and_no_state(life: Life) -> None:
    target = At("/mirror")
    life.mirror(target, fresh_host(life.place / "courier"))
    assert target.objects() == life.store.objects()


def test_what_is_in_the_way_is_left_alone(life: Life) -> None:
    other = At("/other")
    init(other, life.host)
    before = other.objects()
    with pytest.raises(RepositoryError, match="another repository"):
        life.mirror(other)
    files = At("/files", {"holiday/photo.jpg": b"x"})
    with pytest.raises(RepositoryError, match="something else"):
        life.mirror(files)
    # The beginnings of another repository's mirror.
    torso = At("/torso", {name: content for name, content in before.items() if name != "lamella"})
    with pytest.raises(RepositoryError, match="something else"):
        life.mirror(torso)
    with pytest.raises(NoRepository):
        mirror(At("/empty"), At("/mirror"), life.host)
    assert (other.objects(), len(files.objects())) == (before, 1)


def test_it_is_a_union_in_both_directions(life: Life) -> None:
    target = At("/mirror")
    life.mirror(target)
    # The source loses something, and gets something.
    lost = next(name for name in life.store.objects() if name.startswith("p/"))
    life.store.delete(lost)
    life.save("new")
    assert life.mirror(target).extra_objects == 1
    assert lost in target.objects()
    back = mirror(target, life.store, life.host, workers=1)
    assert (back.copied_objects, back.extra_objects) == (1, 0)
    assert target.objects() == life.store.objects()
    check_sound(life.store, life.host, life.truth, life.place)


def test_bytes_that_are_not_what_their_name_says_are_never_copied(life: Life) -> None:
    objects = life.store.objects()
    for name, content in objects.items():
        if name in ("lamella", "readme.txt", "restore.py"):
            continue
        damaged = At("/damaged", {**objects, name: content[:-1] + bytes([content[-1] ^ 1])})
        target = At(f"/mirror-of-{name}")
        result = mirror(damaged, target, life.host, workers=1)
        assert [finding.obj for finding in result.findings] == [name] and result.damaged
        assert target.objects() == {other: bytes_ for other, bytes_ in objects.items() if other != name}
        # What a good source has is still taken later.
        assert life.mirror(target).copied_objects == 1
        assert target.objects() == objects


@pytest.mark.parametrize("at", [-1, -70, -130])
def test_a_commit_that_its_writer_did_not_sign_is_not_copied(life: Life, at: int) -> None:
    """Its name may well be the hash of its bytes: without the signature it is somebody's junk."""
    name, content = next((name, content) for name, content in life.store.objects().items() if name.startswith("w/"))
    head = parse_name(name)
    assert head is not None
    forged = bytes([*content[:at], content[at] ^ 1, *content[len(content) + at + 1 :]])
    junk = head._replace(seq=99, sha256=hashlib.sha256(forged).digest()).name
    life.store.put(junk, Clear(forged))
    target = At("/mirror")
    result = life.mirror(target)
    assert [finding.obj for finding in result.findings] == [junk] and junk not in target.objects()


def test_another_size_in_the_mirror_is_reported_and_not_overwritten(life: Life) -> None:
    target = At("/mirror")
    life.mirror(target)
    name = next(name for name in target.objects() if name.startswith("p/"))
    target.delete(name)
    target.put(name, Clear(b"cut off"))
    result = life.mirror(target)
    assert [finding.obj for finding in result.findings] == [name] and result.damaged
    assert target.objects()[name] == b"cut off"


# -- mending ----------------------------------------------------------------------------------------------------------


def _spoiled(target: At, kinds: Sequence[str]) -> dict[str, bytes]:
    """Damage one object of each kind at a place: flipped in the last byte, cut, emptied, grown."""
    bad: dict[str, bytes] = {}
    damages: list[Callable[[bytes], bytes]] = [
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content[:9],
        lambda content: content + b"x",
    ]
    for kind in kinds:
        for damage in damages:
            name = next((one for one in target.objects() if one.startswith(f"{kind}/") and one not in bad), None)
            if name is not None:
                bad[name] = damage(target.objects()[name])
                target.delete(name)
                target.put(name, Clear(bad[name]))
    return bad


def test_what_is_bad_in_the_mirror_is_mended_from_the_source_without_keys(life: Life) -> None:
    target = At("/mirror")
    life.mirror(target)
    bad = _spoiled(target, ("p", "w", "keys"))
    assert {name.partition("/")[0] for name in bad} == {"p", "w", "keys"}
    looked = resync_corrupt(life.store, target, dry=True)
    assert {one.obj for one in looked.findings} == bad.keys() and looked.mended == 0
    result = resync_corrupt(life.store, target)
    assert (result.bad, result.mended) == (len(bad), len(bad))
    assert {one.severity for one in result.findings} == {"note"}
    kept = {name: content for name, content in target.objects().items() if not name.startswith("quarantine/")}
    assert kept == life.store.objects()
    assert set(bad.values()) <= set(target.objects().values())  # nothing is thrown away
    assert not life.mirror(target).damaged
    assert resync_corrupt(life.store, target) == Resynced()


def test_what_is_bad_at_both_places_is_left_as_it_is_and_named(life: Life) -> None:
    target = At("/mirror")
    life.mirror(target)
    bad = _spoiled(target, ("p",))
    name = min(bad)
    life.store.delete(name)
    life.store.put(name, Clear(b"also bad"))
    result = resync_corrupt(life.store, target)
    assert result.mended == len(bad) - 1
    assert [one.obj for one in result.findings if one.severity == "damage"] == [name]
    assert target.objects()[name] == bad[name]


class Full(At):
    """A place that takes nothing more."""

    def put(self, name: str, content: Sealed | Clear) -> None:
        raise StoreError("No space left on device", obj=name)


def test_bad_bytes_that_can_be_read_stay_where_there_is_no_room_for_them_aside(life: Life) -> None:
    target = At("/mirror")
    life.mirror(target)
    _spoiled(target, ("p",))
    full = Full("/mirror", target.objects())
    result = resync_corrupt(life.store, full)
    assert (result.mended, {one.severity for one in result.findings}) == (0, {"damage"})
    assert full.objects() == target.objects(), "most of a bad pack is good"


def test_a_bad_source_spoils_no_good_mirror(life: Life) -> None:
    target = At("/mirror")
    life.mirror(target)
    before = target.objects()
    _spoiled(life.store, ("p", "w", "keys"))
    assert resync_corrupt(life.store, target) == Resynced()
    assert target.objects() == before


def test_power_cut_at_every_call_of_the_mending(life: Life) -> None:
    target = At("/mirror")
    life.mirror(target)
    _spoiled(target, ("p", "w"))
    begun, cases = target.objects(), 0
    whole = CrashStore(begun, counted=WRITING_CALLS)
    resync_corrupt(life.store, whole, workers=1)
    for point in crash_points(whole.calls):
        store = CrashStore(begun, point, counted=WRITING_CALLS)
        with pytest.raises(PowerCut):
            resync_corrupt(life.store, store, workers=1)
        for surviving in surviving_subsets(len(store.unsynced), every_up_to=3, random_subsets=3):
            left = At("/mirror", store.after_crash(surviving).objects())
            resync_corrupt(life.store, left)
            life.mirror(left)
            kept = {name: content for name, content in left.objects().items() if not name.startswith("quarantine/")}
            assert kept == life.store.objects()
            cases += 1
    assert cases > 20


# -- a source that changes ---------------------------------------------------------------------------------------------


class Changing(At):
    """Something happens to the source just before each of its calls."""

    def __init__(self, objects: Mapping[str, bytes], happens: Callable[[MemoryStore, int], None]) -> None:
        super().__init__("/primary", objects)
        self.calls = 0
        self._happens = happens
        self.quiet = False

    def _before(self) -> None:
        if not self.quiet:
            self.quiet = True  # what happens uses the store, too
            self.calls += 1
            self._happens(self, self.calls)
            self.quiet = False

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self._before()
        return super().get(name, offset, length)

    def stat(self, name: str) -> int:
        self._before()
        return super().stat(name)

    def list(self, prefix: str) -> Iterator[Entry]:
        self._before()
        return super().list(prefix)


def test_backups_between_every_two_calls(life: Life) -> None:
    """Whatever moment the mirror caught, everything that it lists restores."""
    counts: dict[int, Truth] = {}

    def happens(store: MemoryStore, call: int) -> None:
        if call <= 40:
            text = f"ab{'cdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'[call]}"
            life.truth.learn(backup(store, life.host, volume(letters(text))), {"disk": letters(text)})
        counts[call] = Truth(dict(life.truth.volumes))

    source = Changing(life.store.objects(), happens)
    target = At("/mirror")
    result = mirror(source, target, fresh_host(life.place / "courier"), workers=1)
    assert result.rounds > 1 and source.calls > 40
    assert_only_sound(target, life)
    source.quiet = True
    mirror(source, target, fresh_host(life.place / "courier"), workers=1)
    check_sound(target, fresh_host(life.place / "reader"), life.truth, life.place)


def assert_only_sound(target: MemoryStore, life: Life) -> None:
    """All that the mirror lists restores, and there is something."""
    with Repository.open(target, SECRET, fresh_host(life.place / "reader")) as repo:
        listed = {one.text for one in select(repo, [])}
        assert not repo.problems and not repo.catalogue.notes
    truth = Truth({text: content for text, content in life.truth.volumes.items() if text in listed})
    assert listed == set(truth.volumes) != set()
    check_sound(target, fresh_host(life.place / "reader"), truth, life.place)


def test_packs_rewritten_at_any_call(life: Life) -> None:
    """A collector on a store without locks puts everything into new packs, and removes the old ones."""
    begun = life.store.objects()
    rounds = []
    for when in range(1, 100):

        def happens(store: MemoryStore, call: int, when: int = when) -> None:
            if call == when:
                rewrite(store, life)

        source = Changing(begun, happens)
        target = At("/mirror")
        result = mirror(source, target, fresh_host(life.place / "courier"), workers=1)
        if source.calls < when:
            break
        rounds.append(result.rounds)
        assert_only_sound(target, life)
    assert len(rounds) > 10 and max(rounds) > 1


def rewrite(store: MemoryStore, life: Life) -> None:
    """Every blob into new packs, then the old packs go: what the living snapshots need is there at any moment."""
    old = [name for name in store.objects() if name.startswith("p/")]
    with Repository.open(store, SECRET, fresh_host(life.place / "collector")) as repo, Outbox() as outbox:
        repo.refresh_map()
        for name in old:
            sha256 = pack_hash(name)
            directory = repo.blobs.directory(sha256) if sha256 is not None else None
            assert directory is not None
            packer = Packer(repo.keys, directory.domain_id, store, repo.blobs, outbox)
            for blob in directory.blobs:
                content = repo.contents.get(directory.domain_id, blob.kind, blob.id)
                packer.store_blob(blob.kind, blob.id, len(content), functools.partial(raw_body, content))
            packer.finish()
        outbox.drain()
    for name in old:
        store.delete(name)


def test_a_prune_waits_for_the_mirror_and_the_mirror_keeps_what_it_had(life: Life) -> None:
    tried: list[int] = []

    def happens(store: MemoryStore, call: int) -> None:
        try:
            Repository.open(store, SECRET, life.host, exclusive=True).close()
        except Locked:
            tried.append(call)

    source = Changing(life.store.objects(), happens)
    target = At("/mirror")
    mirror(source, target, life.host, workers=1)
    assert tried == list(range(3, source.calls + 1))  # the marker is read before the lock is taken
    before = target.objects()
    with Repository.open(life.store, SECRET, life.host, exclusive=True) as repo:
        gone = select(repo, [])[-1]
        assert run_prune(repo, [gone.snapshot.ref]).deleted_packs
    del life.truth.volumes[gone.text]
    assert life.mirror(target).extra_objects > 0
    assert before.items() < target.objects().items()
    check_sound(target, life.host, life.truth, life.place)
    check_rescue(target.objects(), life.truth, life.place)
    with Repository.open(target, SECRET, life.host, exclusive=True) as repo, pytest.raises(Locked, match="mirror"):
        run_prune(repo, [])


class Slipping(Changing):
    """A store whose lock is lost with its connection, at one call."""

    @contextmanager
    def lock(self, *, exclusive: bool, wait_seconds: float = 0.0) -> Iterator[Held]:  # type: ignore[override]
        self.held = Held()
        yield self.held


def test_a_lock_that_was_lost_means_looking_at_everything_again(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile somebody removed a snapshot, with packs that were not copied yet."""
    monkeypatch.setattr(
        "lamella.operations.mirror.mirror._SETTLED_ROUNDS", 0
    )  # new commits alone ask for no other round
    begun = life.store.objects()
    rounds = []
    for when in range(3, 100):
        store = MemoryStore(begun)
        pruned: list[str] = []

        def happens(slipping: MemoryStore, call: int, when: int = when, pruned: list[str] = pruned) -> None:
            if call == when and isinstance(slipping, Slipping):
                slipping.held.lose()
                with Repository.open(slipping, SECRET, fresh_host(life.place / "collector")) as repo:
                    gone = select(repo, [])[-1]
                    repo.publish([Remove((gone.snapshot.ref,))])
                    pruned.append(gone.text)
                for pack in gone.snapshot.added.packs:
                    slipping.delete(pack_name(pack))

        source = Slipping(store.objects(), happens)
        target = At("/mirror")
        result = mirror(source, target, fresh_host(life.place / "courier"), workers=1)
        if not pruned:
            break
        rounds.append(result.rounds)
        assert_only_sound(target, life)
    assert len(rounds) > 5 and max(rounds) > 1


@pytest.mark.parametrize("way", ["to", "from"])
def test_over_a_pipe(life: Life, way: str) -> None:
    """The serving side checks what it can by itself; a mirror's order must suit it."""
    place = life.place / "served"
    argv = (sys.executable, "-m", "lamella", "serve", str(place))
    with closing(PipeStore(f"pipe:{place}", Route(argv), Hello(str(place), True, False, True))) as served:
        if way == "to":
            life.mirror(served)
            life.save("abXd")
            assert life.mirror(served).copied_objects > 0
        else:
            for name, content in life.store.objects().items():
                served.put(name, Clear(content))
            served.sync()
            target = At("/mirror")
            mirror(served, target, life.host, workers=2)
            assert target.objects() == life.store.objects()
        found = {entry.name: served.get(entry.name) for entry in served.list("")}
    assert found == life.store.objects()


# -- kills -------------------------------------------------------------------------------------------------------------


def test_power_cut_at_every_call(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """No marker, or a whole repository as far as it lists; the next run completes it."""
    with short_rescue(monkeypatch):
        source = Life(life.place / "short")
    older = At("/mirror")
    source.mirror(older)
    source.save("abXdef")
    cases = 0
    for begun in ({}, older.objects()):
        whole = CrashStore(begun, counted=WRITING_CALLS)
        mirror(source.store, whole, fresh_host(life.place / "whole"), workers=1)
        for point in crash_points(whole.calls):
            store = CrashStore(begun, point, counted=WRITING_CALLS)
            courier = fresh_host(life.place / "courier")
            with pytest.raises(PowerCut):
                mirror(source.store, store, courier, workers=1)
            for surviving in surviving_subsets(len(store.unsynced), every_up_to=3, random_subsets=3):
                left = At("crash:", store.after_crash(surviving).objects())
                if "lamella" in left.objects():
                    assert_only_sound(left, source)
                mirror(source.store, left, courier, workers=1)
                assert left.objects() == source.store.objects()
                cases += 1
    assert cases > 50


# -- older copies, and rollbacks ---------------------------------------------------------------------------------------


def test_an_older_mirror_is_an_older_copy_and_no_rollback(life: Life) -> None:
    target = At("/mirror")
    life.mirror(target)
    known = Truth(dict(life.truth.volumes))
    life.save("abXd")
    with Repository.open(target, SECRET, life.host) as repo:
        assert not repo.problems and len(repo.log.older) == 1 and "older" in repo.log.older[0].message
    check_sound(target, life.host, known, life.place)
    for content in ("abXd", "other"):
        with pytest.raises(Locked, match="mirror") as caught:
            life.save(content, target)
        assert caught.value.exit_code == 11 and "accept" in caught.value.hint
    # In step again: nothing to warn of, and still only the mirror command writes there.
    life.mirror(target)
    with Repository.open(target, SECRET, life.host) as repo:
        assert not repo.problems and not repo.log.older
    with pytest.raises(Locked):
        life.save("abXd", target)
    life.save("abXe")  # and the source is as free as ever
    check_sound(life.store, life.host, life.truth, life.place)


def test_a_rollback_elsewhere_is_still_one(life: Life) -> None:
    old = life.store.objects()
    life.mirror(At("/mirror"))
    life.save("abXd")
    for place in ("/primary", "/somewhere"):
        with Repository.open(At(place, old), SECRET, life.host) as repo:
            assert len(repo.problems) == 1 and not repo.log.older
        with pytest.raises(RolledBack):
            life.save("x", At(place, old))


def test_a_mirror_that_goes_back_is_a_rollback(life: Life) -> None:
    older = life.store.objects()
    life.save("abXd")
    target = At("/mirror")
    life.mirror(target)
    for host in (life.host, fresh_host(life.place / "reader")):
        mirror(life.store, target, host, workers=1)  # makes the place known to this host, without a key
        with Repository.open(At("/mirror", older), SECRET, host) as repo:
            assert len(repo.problems) == 1 and not repo.log.older


def test_the_place_a_host_writes_to_never_becomes_a_mirror(life: Life) -> None:
    """Also when something is brought back there: what it showed since must be seen again."""
    target = At("/mirror")
    life.mirror(target)
    life.save("abXd")
    older = life.store.objects()
    life.save("abXde")
    mirror(target, life.store, life.host, workers=1)
    with Repository.open(At("/primary", older), SECRET, life.host) as repo:
        assert len(repo.problems) == 1 and not repo.log.older


def test_a_place_written_to_stays_strict_about_what_was_seen_elsewhere(life: Life) -> None:
    """Another host's commit reaches this one over the mirror first; the place that then hides it is set back."""
    target, other = At("/mirror"), fresh_host(life.place / "other")
    life.mirror(target)
    mirror(target, life.store, life.host, workers=1)
    hidden = life.store.objects()
    backup(life.store, other, volume(letters("other"), "second"))
    mirror(life.store, target, fresh_host(life.place / "courier"), workers=1)
    with Repository.open(target, SECRET, life.host) as repo:
        assert not repo.problems and len(repo.history.chains) == 2
    with Repository.open(At("/primary", hidden), SECRET, life.host) as repo:
        assert len(repo.problems) == 1 and not repo.log.older


def test_a_place_that_is_only_read_and_mirrored_to_keeps_what_it_showed(life: Life) -> None:
    """The hostile case: a primary that this host only reads cannot use a mirror run to go back unnoticed."""
    reader = fresh_host(life.place / "reader")
    older = life.store.objects()
    life.save("abXd")
    with Repository.open(life.store, SECRET, reader) as repo:
        assert not repo.problems
    mirror(At("/mirror", older), life.store, reader, workers=1)
    with Repository.open(At("/primary", older), SECRET, reader) as repo:
        assert len(repo.problems) == 1 and not repo.log.older


def test_a_mirror_that_was_accepted_goes_on_apart(life: Life) -> None:
    target = At("/mirror")
    life.mirror(target)
    at_mirror = Truth(dict(life.truth.volumes))
    life.save("abXd")
    at_primary = Truth(dict(life.truth.volumes))
    with Repository.open(target, SECRET, life.host) as repo:
        assert len(accept_history(repo.log)) == 1
    for text in ("mirror", "mirrors"):
        result = backup(target, life.host, volume(letters(text)))
        at_mirror.learn(result, {"disk": letters(text)})
    check_sound(target, life.host, at_mirror, life.place)
    # The source knows nothing of it, and a rollback there is still noticed.
    result = backup(life.store, life.host, volume(letters("primary")))
    at_primary.learn(result, {"disk": letters("primary")})
    check_sound(life.store, life.host, at_primary, life.place)
    assert (len(writers(life.store)), len(writers(target))) == (1, 2)
    # Joined again: two writers, no fork.
    life.mirror(target)
    mirror(target, life.store, life.host, workers=1)
    both = Truth(at_primary.volumes | at_mirror.volumes)
    for store in (life.store, target):
        check_sound(store, life.host, both, life.place)
        with Repository.open(store, SECRET, fresh_host(life.place / "reader")) as repo:
            assert not repo.problems


def writers(store: MemoryStore) -> set[bytes]:
    heads = [parse_name(name) for name in store.objects()]
    return {head.writer for head in heads if head is not None}


def test_an_unknown_older_place_can_be_accepted_without_forgetting_the_other(life: Life) -> None:
    old = At("/copied by hand", life.store.objects())
    life.save("abXd")
    newest = life.store.objects()
    with Repository.open(old, SECRET, life.host) as repo:
        assert len(repo.problems) == 1
        accept_history(repo.log)
    with Repository.open(old, SECRET, life.host) as repo:
        assert not repo.problems and not repo.log.older
    backup(old, life.host, volume(letters("here")))
    life.save("abXe")
    with Repository.open(At("/primary", newest), SECRET, life.host) as repo:
        assert len(repo.problems) == 1


def test_places_that_went_apart_are_not_joined_into_a_fork(life: Life) -> None:
    """A copy by hand was written to under the same writer: that is a fork, and joining would spread it."""
    clone = fresh_host(life.place / "clone", "one")
    shutil.copytree(life.host.state_dir, clone.state_dir)
    target = At("/clone's", life.store.objects())
    backup(target, clone, volume(letters("there")))
    life.save("here")
    before = target.objects()
    with pytest.raises(RolledBack, match="their own commit"):
        life.mirror(target)
    with pytest.raises(RolledBack):
        plan_mirror(life.store, target)
    assert target.objects() == before
    # What the hint says works.
    third = At("/third")
    init(third, life.host)
    for source, host in ((life.store, life.host), (target, clone)):
        copy(source, third, host)
    with Repository.open(third, SECRET, life.host) as repo:
        contents = {restored(repo, one, life.place / "out.img") for one in select(repo, [])}
    assert contents == {letters(text) for text in ("abc", "abX", "here", "there")}


@pytest.mark.parametrize(
    "junk", [b"", b"{", b'{"places": 3}', b'{"places": {"/mirror": {"mirror": 1, "heads": {"x": 1}}}}']
)
def test_a_damaged_memory_of_places_is_a_lost_one(life: Life, junk: bytes) -> None:
    target = At("/mirror")
    life.mirror(target)
    (found,) = life.host.state_dir.rglob("places.json")
    found.write_bytes(junk)
    life.save("abXd")
    with Repository.open(target, SECRET, life.host) as repo:
        assert len(repo.problems) == 1  # nobody knows any more that it is a mirror: the alarm is the safe side


def test_more_packs_than_one_pass_gathers(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("abXd", "abXY", "ZbXY"):
        life.save(text)
    monkeypatch.setattr(comparing, "MOST_MISSING", 2)
    target = At("/mirror")
    result = life.mirror(target)
    assert target.objects() == life.store.objects() and result.copied_objects == len(target.objects())
    check_sound(target, life.host, life.truth, life.place)
