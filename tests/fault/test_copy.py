"""Copies between repositories: equal to the original, incremental, told apart for ever, whole after every power cut."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lamella.base.errors import NothingMatched, UsageError
from lamella.base.trust import Clear
from lamella.format.container import Kind
from lamella.format.deletion import Remove
from lamella.format.inner import Origin, OriginPlace
from lamella.format.labels import Tag
from lamella.format.records import raw
from lamella.operations.backup.story import BackupOptions
from lamella.operations.copy.plan import State
from lamella.operations.shared.newest import newest
from lamella.operations.shared.selection import find_volume, select
from lamella.operations.shared.streaming import read_document
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from lamella_kit.crash_store import ALL_CALLS, WRITING_CALLS, CrashStore, PowerCut, crash_points, surviving_subsets
from lamella_kit.scripted_source import ScriptedSource
from lamella_kit.tracked_source import TrackedDisk
from tests.fault.copies import OPTIONS, Pair, copy, letters, same_trees
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


def test_everything_is_copied_and_both_readers_restore_it(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path, "abc0d", "abXXd", "0bX", "0bX0efgh")
    pair.save(letters("other"), "second")
    result = pair.copy()
    assert (result.count(State.COPIED), result.complete) == (5, True)
    check_sound(pair.target, pair.host, pair.truth, tmp_path)
    check_rescue(pair.target.objects(), pair.truth, tmp_path)
    same_trees(pair.source, pair.target, pair.host, sorted(pair.truth.volumes))
    with Repository.open(pair.target, SECRET, fresh_host(tmp_path / "stranger")) as repo:
        assert not repo.problems and not repo.catalogue.notes


@pytest.mark.parametrize("ids", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_any_pair_of_id_algorithms(tmp_path: Path, ids: tuple[int, int]) -> None:
    pair = Pair.make(tmp_path, "ab", "ac", ids=ids)
    pair.copy()
    check_sound(pair.target, pair.host, pair.truth, tmp_path)


def test_only_differences_are_read_and_repeating_does_nothing(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path, "abcdefghij", "abcXefghij", "abcXefghijkl")
    chunk = len(letters("a"))
    assert pair.copy().read_bytes == (10 + 1 + 2) * chunk
    before = pair.target.objects()
    again = pair.copy()
    assert (again.count(State.PRESENT), again.read_bytes) == (3, 0)
    assert pair.target.objects() == before
    pair.save(letters("Ybcdefghij"))
    assert pair.copy().read_bytes == 2 * chunk  # Y, and d again
    check_sound(pair.target, pair.host, pair.truth, tmp_path)


def test_a_host_that_lost_everything_copies_only_what_is_new(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path, "abc", "abd")
    pair.copy()
    stranger = fresh_host(tmp_path / "stranger")
    before = len(pair.target.objects())
    assert copy(pair.source, pair.target, stranger).count(State.PRESENT) == 2
    assert len(pair.target.objects()) == before
    pair.save(letters("abe"))
    result = copy(pair.source, pair.target, stranger)
    assert result.count(State.COPIED) == 1
    # It does not build on what others say is a copy, and still stores no chunk twice.
    chunk = len(letters("a"))
    assert result.read_bytes == 3 * chunk
    check_sound(pair.target, stranger, pair.truth, tmp_path)


def test_any_selection_in_any_order_and_latest_is_by_moment(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    init(pair.source, pair.host)
    init(pair.target, pair.host)
    names = [pair.save(letters(text)) for text in ("aa", "ab", "cb", "cd")]
    for number in (2, 0, 3, 1):
        assert pair.copy(f"disk@{names[number]}").count(State.COPIED) == 1
        copied = {text for text in pair.truth.volumes if text.endswith(tuple(names))}
        with Repository.open(pair.target, SECRET, pair.host) as repo:
            there = [one.snapshot.name for one in select(repo, [])]
            assert there == sorted(there, key=names.index) and set(there) <= {text[5:] for text in copied}
            assert newest(repo, find_volume(repo, "disk")).name == max(there, key=names.index)
    check_sound(pair.target, pair.host, pair.truth, tmp_path)
    pair.truth.volumes["disk@latest"] = letters("cd")
    check_rescue(pair.target.objects(), pair.truth, tmp_path)


def test_copies_of_copies_and_back_are_told_apart_for_ever(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path, "abc", "abd")
    third = MemoryStore()
    init(third, pair.host)
    pair.copy()
    assert copy(pair.target, third, pair.host).count(State.COPIED) == 2
    # The long way round, and the way back.
    for source, target in (
        (pair.source, third),
        (third, pair.source),
        (third, pair.target),
        (pair.target, pair.source),
    ):
        before = target.objects()
        result = copy(source, target, pair.host)
        assert (result.count(State.PRESENT), result.count(State.COPIED)) == (2, 0)
        assert target.objects() == before
    check_sound(third, pair.host, pair.truth, tmp_path)


def test_a_backup_goes_on_from_the_copy(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path, "abcd")
    pair.copy()
    content = letters("abXd")
    result = backup(pair.target, pair.host, volume(content))
    assert (result.volumes[0].mode, result.volumes[0].new_chunks, result.volumes[0].volume) == ("compare", 1, "disk")
    truth = Truth(dict(pair.truth.volumes))
    truth.learn(result, {"disk": content})
    check_sound(pair.target, pair.host, truth, tmp_path)
    # And what was made there comes back, without reading what is here.
    back = copy(pair.target, pair.source, pair.host)
    assert (back.count(State.COPIED), back.read_bytes) == (1, len(letters("X")))
    check_sound(pair.source, pair.host, truth, tmp_path)


def test_a_kept_moment_serves_the_copy_too(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path)
    disk = TrackedDisk("disk", bytearray(letters("abcdefgh")))
    contents = [bytes(disk.content)]
    backup(pair.source, pair.host, disk.source())
    pair.copy()
    for store in (pair.target, pair.source, pair.target):
        disk.content[3 * len(letters("a"))] ^= 1 + len(contents)
        contents.append(bytes(disk.content))
        (row,) = backup(store, pair.host, disk.source()).volumes
        assert (row.mode, row.changed_chunks) == ("incremental", 1)
        assert row.read_bytes - row.sampled_bytes == len(letters("a"))
    # An older snapshot that is copied later does not take the newer moment's place.
    pair.copy()
    disk.content[0] ^= 1
    assert backup(pair.target, pair.host, disk.source()).volumes[0].changed_chunks == 1
    with Repository.open(pair.target, SECRET, pair.host) as repo:
        found = [restored(repo, one, tmp_path / "out.img") for one in select(repo, [])]
    assert sorted(found) == sorted([*contents, bytes(disk.content)])


def test_two_histories_of_one_source_meet_in_one_volume(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path, "abcd")
    truth = Truth(dict(pair.truth.volumes))
    content = letters("aXcd")
    truth.learn(backup(pair.target, pair.host, volume(content)), {"disk": content})
    assert pair.copy().count(State.COPIED) == 1
    with Repository.open(pair.target, SECRET, pair.host) as repo:
        assert len(repo.catalogue.volumes) == 1
        # The copy came later and shows the older moment.
        assert [one.snapshot.added.size for one in select(repo, ["disk"])] == [len(content)]
        assert f"disk@{newest(repo, find_volume(repo, 'disk')).name}" not in pair.truth.volumes
    check_sound(pair.target, pair.host, truth, tmp_path)


def test_another_source_of_the_same_name_stays_another_volume(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path, "abcd")
    other = backup(pair.target, pair.host, _Elsewhere("disk", letters("zz")))
    pair.copy()
    with Repository.open(pair.target, SECRET, pair.host) as repo:
        shown = sorted(repo.catalogue.shown_names().values())
    assert len(shown) == 2 and all(name.startswith("disk~") for name in shown)
    truth = Truth(dict(pair.truth.volumes))
    truth.learn(other, {"disk": letters("zz")})
    check_sound(pair.target, pair.host, truth, tmp_path)


class _Elsewhere(ScriptedSource):
    """A source of another identity."""

    @property
    def identity(self) -> bytes:
        return b"elsewhere:" + self.name.encode()


def test_documents_and_what_the_run_said_come_along(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path)
    documents = {"notes": b"some text", "large": bytes(range(256)) * 4000, "empty": b""}
    options = BackupOptions(chunk_log2=16, workers=1, documents=documents)
    saved = backup(pair.source, pair.host, volume(letters("ab")), volume(letters("c"), "second"), options=options)
    pair.copy("second")
    with Repository.open(pair.target, SECRET, pair.host) as repo:
        assert [row.name for row in repo.catalogue.runs[saved.snapshot].volumes] == ["second"]
    pair.copy()
    with (
        Repository.open(pair.target, SECRET, pair.host) as repo,
        Repository.open(pair.source, SECRET, pair.host) as original,
    ):
        rows = {volume.name: volume.volume_id for volume in repo.catalogue.volumes.values()}
        said = original.catalogue.runs[saved.snapshot]
        volumes = tuple(row._replace(volume_id=rows[row.name]) for row in said.volumes)
        assert repo.catalogue.runs == {saved.snapshot: replace(said, volumes=volumes)}
        for one in select(repo, []):
            for name, content in documents.items():
                assert read_document(repo, one, name) == content


def test_tags_come_along_also_later_ones(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path, "ab", "ac")

    def tag(store: MemoryStore, word: str, number: int) -> None:
        with Repository.open(store, SECRET, pair.host) as repo:
            repo.publish([Tag(select(repo, [])[number].snapshot.ref, False, word)])

    def tags() -> list[tuple[str, ...]]:
        with Repository.open(pair.target, SECRET, pair.host) as repo:
            return [one.snapshot.tags for one in select(repo, [])]

    tag(pair.source, "monthly", 0)
    pair.copy()
    assert tags() == [("monthly",), ()]
    tag(pair.source, "release", 1)
    tag(pair.target, "own", 1)
    pair.copy()
    assert [set(found) for found in tags()] == [{"monthly"}, {"release", "own"}]
    before = pair.target.objects()
    pair.copy()
    assert pair.target.objects() == before


def test_what_was_removed_there_comes_back_only_by_name(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path, "ab", "ac")
    pair.copy()
    with Repository.open(pair.target, SECRET, pair.host) as repo:
        gone = select(repo, [])[0].snapshot
        repo.publish([Remove((gone.ref,))])
    result = pair.copy()
    assert (result.count(State.REMOVED), result.count(State.PRESENT), result.complete) == (1, 1, True)
    assert pair.copy(f"disk@{gone.name}").count(State.COPIED) == 1
    check_sound(pair.target, pair.host, pair.truth, tmp_path)
    assert pair.copy().count(State.PRESENT) == 2


def test_volumes_of_one_domain_share_there_too(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path)
    options = BackupOptions(chunk_log2=16, workers=1, domain="group")
    backup(pair.source, pair.host, volume(letters("ab")), volume(letters("ba"), "second"), options=options)
    result = pair.copy()
    with Repository.open(pair.target, SECRET, pair.host) as repo:
        repo.refresh_map()
        domains = {one.snapshot.added.domain_id for one in select(repo, [])}
        chunks = repo.cache.connection.execute("SELECT COUNT(*) FROM blobs WHERE kind = 1").fetchone()[0]
    assert (len(domains), chunks, result.count(State.COPIED)) == (1, 2, 2)


def test_a_snapshot_that_cannot_be_read_does_not_stop_the_others(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path, "abc")
    packs = {name for name in pair.source.objects() if name.startswith("p/")}
    broken = pair.save(letters("abX"))
    (lost,) = {name for name in pair.source.objects() if name.startswith("p/")} - packs
    pair.save(letters("aYc"))
    pair.source.delete(lost)
    result = pair.copy()
    assert (result.count(State.COPIED), result.count(State.FAILED), result.complete) == (2, 1, False)
    assert [row.snapshot.name for row in result.rows if row.state == State.FAILED] == [broken]
    truth = Truth({text: content for text, content in pair.truth.volumes.items() if broken not in text})
    check_sound(pair.target, pair.host, truth, tmp_path)
    assert pair.copy().count(State.FAILED) == 1


def test_what_the_target_lost_is_not_built_on(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path, "abc", "abd")
    pair.copy()
    for name in list(pair.target.objects()):
        if name.startswith("p/"):
            pair.target.delete(name)
    newest_name = pair.save(letters("abe"))
    other = MemoryStore(pair.target.objects())
    other.put("p/" + "0" * 2 + "/" + "0" * 64, Clear(b"junk"))
    assert copy(pair.source, other, pair.host).read_bytes == len(letters("abe"))
    with Repository.open(other, SECRET, fresh_host(tmp_path / "stranger")) as repo:
        (one,) = select(repo, [f"disk@{newest_name}"])
        assert restored(repo, one, tmp_path / "out.img") == letters("abe")


def test_chunks_that_the_target_lost_are_not_built_on_though_its_nodes_are_there(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path)
    content = random.Random(7).randbytes(20 << 20)
    pair.save(content)
    pair.copy()
    packs = {name: len(content) for name, content in pair.target.objects().items() if name.startswith("p/")}
    with Repository.open(pair.target, SECRET, pair.host) as repo:
        repo.refresh_map()
        nodes = {
            place.pack.hex()
            for one in select(repo, [])
            for place in repo.blobs.find(Kind.INNER, one.snapshot.added.root)
        }
    (lost, *_) = (name for name in packs if name[5:] not in nodes)
    pair.target.delete(lost)
    name = pair.save(content[:-1] + b"x")
    pair.copy(f"disk@{name}")
    with Repository.open(pair.target, SECRET, fresh_host(tmp_path / "stranger")) as repo:
        (one,) = select(repo, [f"disk@{name}"])
        assert restored(repo, one, tmp_path / "out.img") == content[:-1] + b"x"


def test_a_false_copy_by_another_writer_is_not_built_on(tmp_path: Path) -> None:
    """Somebody who may write to the target says that other bytes are a copy of the snapshot before."""
    pair = Pair.make(tmp_path, "abcd")
    liar = host_at(tmp_path / "liar", "liar")
    backup(pair.target, liar, volume(letters("LIES")))
    with Repository.open(pair.source, SECRET, pair.host) as repo:
        (true,) = select(repo, [])
        place = OriginPlace(repo.repo_id, true.snapshot.ref)
    with Repository.open(pair.target, SECRET, liar) as repo:
        (false,) = select(repo, [])
        added = replace(
            false.snapshot.added,
            snap_id=type(false.snapshot.added.snap_id)(b"z" * 16),
            name=true.snapshot.name,
            time_ms=true.snapshot.added.time_ms,
            inner=(Origin(place, place).encode(),),
        )
        repo.publish([raw(added)])
    name = pair.save(letters("abcX"))
    result = pair.copy(f"disk@{name}")
    assert result.read_bytes == 4 * len(letters("a"))
    with Repository.open(pair.target, SECRET, pair.host) as repo:
        (one,) = select(repo, [f"disk@{name}"])
        assert restored(repo, one, tmp_path / "out.img") == letters("abcX")


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path)
    with pytest.raises(UsageError, match="same repository"):
        copy(pair.source, MemoryStore(pair.source.objects()), pair.host)
    with pytest.raises(NothingMatched):
        pair.copy()
    pair.save(b"x")
    with pytest.raises(NothingMatched):
        pair.copy("nobody")


def test_empty_and_odd_volumes(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path)
    for content in (b"", b"x", bytes(70000), letters("a") + b"tail", b"", letters("0" * 70) + b"end", letters("0" * 5)):
        pair.save(content)
    pair.copy()
    check_sound(pair.target, pair.host, pair.truth, tmp_path)
    same_trees(pair.source, pair.target, pair.host, sorted(pair.truth.volumes))


@pytest.mark.parametrize("counted", [WRITING_CALLS, ALL_CALLS], ids=["writing calls", "all calls"])
def test_power_cut_at_every_call_of_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: frozenset[str]
) -> None:
    """What was committed restores, and repeating the copy completes it, with the state of then or without."""
    with short_rescue(monkeypatch):
        pair = Pair.make(tmp_path / "life", "abc0", "aXcdef")
    begun = pair.target.objects()
    whole = CrashStore(begun, counted=counted)
    copy(pair.source, whole, fresh_host(tmp_path / "whole"), options=OPTIONS)
    cases = 0
    # Calls that write nothing lose nothing: one side of each is enough, with all or nothing lost turn by turn.
    points = [point for point in crash_points(whole.calls) if counted == WRITING_CALLS or not point.after_effect]
    for point in points:
        store = CrashStore(begun, point, counted=counted)
        life = tmp_path / "crashed"
        with pytest.raises(PowerCut):
            copy(pair.source, store, fresh_host(life, "one"), options=OPTIONS)
        count = len(store.unsynced)
        one_way = frozenset(range(count) if point.call % 2 else ())
        subsets = surviving_subsets(count) if counted == WRITING_CALLS else iter([one_way])
        for surviving in subsets:
            left = store.after_crash(surviving)
            check_sound(
                left, fresh_host(tmp_path / "reader"), Truth(), tmp_path, others=tuple(pair.truth.volumes.values())
            )
            # Turn by turn with the state and cache of then, and without.
            cases += 1
            survivor = fresh_host(tmp_path / "survivor", "one")
            if cases % 2:
                shutil.copytree(life, tmp_path / "survivor")
            copy(pair.source, left, survivor, options=OPTIONS)
            check_sound(left, survivor, pair.truth, tmp_path)
    assert cases > 20


def test_a_killed_copy_finds_its_packs_again(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path)
    pair.save(bytes(range(1, 256)) * 40000)
    whole = CrashStore(pair.target.objects(), counted=frozenset({"put"}))
    copy(pair.source, whole, fresh_host(tmp_path / "whole", "one"))
    (last,) = [point for point in crash_points(whole.calls) if point.call == whole.calls and not point.after_effect]
    store = CrashStore(pair.target.objects(), last, counted=frozenset({"put"}))
    with pytest.raises(PowerCut):
        copy(pair.source, store, host_at(tmp_path / "killed"))
    left = store.after_crash(range(len(store.unsynced)))
    result = copy(pair.source, left, host_at(tmp_path / "killed"))
    assert (result.count(State.COPIED), result.stored_bytes) == (1, 0)
    check_sound(left, pair.host, pair.truth, tmp_path)
