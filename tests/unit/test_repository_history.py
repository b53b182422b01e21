"""Chains of commits: publishing, checkpoints, what was seen, pins, forks, and memory that was lost or damaged."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamella.base.errors import IntegrityError, Locked, RepositoryError, RolledBack
from lamella.base.ids import SnapId, WriterId
from lamella.base.trust import Sealed
from lamella.format.commit import CHECKPOINT_EVERY, MAX_SEEN, Head, parse_name
from lamella.format.records import Confirm, RawRecord, Ref, raw
from lamella.history.acceptance import accept_history
from lamella.history.compaction import Ended
from lamella.history.history import Chain, History
from lamella.history.latest import latest
from lamella.history.publish import Publisher
from lamella.memory.confirmations import Confirmations
from lamella.memory.host import HostMemory, machine_name
from lamella.packs.building import build_commit
from lamella.repository.repository import Repository
from tests.unit.small_repository import WRITER, Small, snapshot_record

EMPTY = RawRecord(0x8FFF, b"")


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small.make(tmp_path)


def own(repo: Repository) -> Chain:
    assert repo.own_writer is not None
    return repo.history.chains[repo.own_writer]


def commits(small: Small) -> dict[str, list[Head]]:
    """The commits in the store, by writer, ascending."""
    found: dict[str, list[Head]] = {}
    for name in sorted(small.store.objects()):
        head = parse_name(name)
        if head is not None:
            found.setdefault(head.writer.hex(), []).append(head)
    return found


def add(repo: Repository, number: int, **more: Any) -> Ref:  # noqa: ANN401
    """Publish a snapshot of volume 1 and look again."""
    head = repo.publish([raw(snapshot_record(number, **more))]).head
    repo.reload()
    return Ref(head.writer, head.seq, SnapId(number.to_bytes(16, "big")))


def names(repo: Repository) -> list[str]:
    return [snapshot.name for snapshot in repo.catalogue.snapshots]


# -- chains ------------------------------------------------------------------------------------------------------------


def test_commits_follow_each_other(small: Small) -> None:
    with small.opened() as repo:
        for number in range(1, 4):
            add(repo, number)
        chain = own(repo)
        assert [commit.head.seq for commit in chain.commits] == [1, 2, 3, 4]
        assert chain.commits[0].body.prev == bytes(32)
        for before, after in zip(chain.commits, chain.commits[1:], strict=False):
            assert after.body.prev == before.head.sha256
        assert chain.heads == [chain.commits[-1].head]
        assert repo.problems == []
        assert repo.history.whole


def test_the_own_head_is_read_from_the_store(small: Small) -> None:
    """Two processes of one host take turns, each with an old view."""
    with small.opened() as one, small.opened() as two:
        assert one.publish([EMPTY]).head.seq == 2
        assert two.publish([EMPTY]).head.seq == 3
        assert one.publish([EMPTY]).head.seq == 4
    with small.opened() as repo:
        assert repo.problems == []
        assert len(repo.history.chains) == 1


def test_only_one_process_of_a_host_publishes_at_a_time(small: Small) -> None:
    with small.opened() as repo, repo.memory.lock(), pytest.raises(Locked), repo.memory.lock(0.0):
        pass


def test_checkpoints_come_at_the_latest_every_so_many_commits(small: Small) -> None:
    with small.opened() as repo:
        for number in range(1, 2 * CHECKPOINT_EVERY + 10):
            repo.publish([raw(snapshot_record(number))])
        repo.reload(whole=True)
        chain = own(repo)
        carrying = [commit.head.seq for commit in chain.commits if commit.checkpoint is not None]
        assert carrying == [CHECKPOINT_EVERY, 2 * CHECKPOINT_EVERY]
        last = chain.commits[2 * CHECKPOINT_EVERY - 1]
        assert last.checkpoint is not None
        assert [seq for seq, _ in last.checkpoint.earlier] == [CHECKPOINT_EVERY]
        everything = sorted(names(repo))
        entries = [(entry.seq, entry.record) for entry in chain.entries]
    with small.opened("two") as repo:
        (chain,) = repo.history.chains.values()
        assert not chain.whole
        assert [commit.head.seq for commit in chain.commits] == list(
            range(2 * CHECKPOINT_EVERY, 2 * CHECKPOINT_EVERY + 11)
        )
        assert sorted((entry.seq, entry.record) for entry in chain.entries) == sorted(entries)
        assert sorted(names(repo)) == everything
        assert len(everything) == 2 * CHECKPOINT_EVERY + 9
        assert repo.problems == []
        assert all(shot.clock == {shot.ref.writer: shot.ref.seq} for shot in repo.catalogue.snapshots)


def test_checkpoints_with_many_entries_use_segments(small: Small) -> None:
    with small.opened() as repo:
        number = 0
        for _ in range(CHECKPOINT_EVERY * 3):
            rows = [raw(snapshot_record(number := number + 1)) for _ in range(12)]
            repo.publish(rows)
        everything = 3 * CHECKPOINT_EVERY * 12
        repo.reload()
        carried = own(repo).carried
        assert carried is not None
        assert 1 <= len(carried.segments) <= 2
    packs = [name for name in small.store.objects() if name.startswith("p/")]
    assert packs
    with small.opened("two") as repo:
        assert len(repo.catalogue.snapshots) == everything
        assert repo.problems == []
        repo.reload(whole=True)
        assert len(repo.catalogue.snapshots) == everything
    for name in packs:
        small.store.delete(name)
    with small.opened("three") as repo:
        # The commits say all that the segments said: the chain is read whole, and the loss is a finding, no obstacle.
        assert repo.problems == [] and ["checkpoint" in message for _, message in repo.history.damaged] == [True]
        assert len(repo.catalogue.snapshots) == everything
        repo.publish([EMPTY])


def test_checkpoints_drop_the_packs_of_confirmed_snapshots(small: Small) -> None:
    pack = b"p" * 32
    with small.opened() as repo:
        kept, dropped = add(repo, 1, packs=(pack,)), add(repo, 2, packs=(pack,))
        repo.publish([raw(Confirm((dropped,)))])
        for _ in range(CHECKPOINT_EVERY):
            repo.publish([EMPTY])
    with small.opened("two") as repo:
        packs = {shot.ref: shot.added.packs for shot in repo.catalogue.snapshots}
        assert packs == {kept: (pack,), dropped: ()}
        assert {shot.ref: shot.confirmed for shot in repo.catalogue.snapshots} == {kept: False, dropped: True}


def test_steps_since_the_pinned_commit_are_checked_beyond_the_checkpoint(small: Small) -> None:
    with small.opened("two") as repo:
        assert repo.pins.heads
    with small.opened() as repo:
        for _ in range(CHECKPOINT_EVERY + 5):
            repo.publish([EMPTY])
    with small.opened("two") as repo:
        (chain,) = repo.history.chains.values()
        assert chain.whole
        assert len(chain.commits) == CHECKPOINT_EVERY + 6
        assert repo.problems == []


# -- several writers ---------------------------------------------------------------------------------------------------


def test_latest_follows_what_was_seen(small: Small) -> None:
    with small.opened() as one, small.opened("two") as two:
        first = add(one, 1)
        two.reload()
        second = add(two, 2)  # has seen the first
        assert [shot.ref for shot in latest(two.catalogue.snapshots)] == [second]
        one.reload()
        third = add(one, 3)  # so has this one
        assert [shot.ref for shot in latest(one.catalogue.snapshots)] == [third]
        assert [shot.ref for shot in one.catalogue.snapshots] == [first, second, third]
        assert one.own_writer != two.own_writer


def test_snapshots_made_apart_are_both_the_latest(small: Small) -> None:
    with small.opened() as one, small.opened("two") as two:
        add(one, 1)
        a = one.publish([raw(snapshot_record(2))]).head
        b = two.publish([raw(snapshot_record(3))]).head  # read before either was published
        one.reload()
        assert {shot.ref.writer for shot in latest(one.catalogue.snapshots)} == {a.writer, b.writer}


def test_a_parent_is_before_its_child_even_unseen(small: Small) -> None:
    with small.opened() as one, small.opened("two") as two:
        parent = one.publish([raw(snapshot_record(1))]).head
        ref = Ref(parent.writer, parent.seq, SnapId((1).to_bytes(16, "big")))
        two.publish([raw(snapshot_record(2, parent=ref))])
        one.reload()
        assert [shot.name for shot in latest(one.catalogue.snapshots)] == ["snap-0002"]


def test_seen_lists_what_changed_and_checkpoints_list_all(small: Small) -> None:
    with small.opened("two") as two, small.opened("three") as three, small.opened() as one:
        for repo in (two, three):
            repo.publish([EMPTY])
        one.reload()
        one.publish([EMPTY])
        one.publish([EMPTY])
        two.publish([EMPTY])
        one.reload()
        one.publish([EMPTY])
        one.reload()
        seen = [sorted(head.writer for head in commit.body.seen) for commit in own(one).commits]
        both = sorted([two.own_writer, three.own_writer], key=bytes)  # type: ignore[arg-type]
        assert seen == [[], both, [], [two.own_writer]]
        while own(one).carried is None:
            one.publish([EMPTY])
            one.reload()
        assert sorted(head.writer for head in own(one).commits[-1].body.seen) == both
        for head in own(one).commits[-1].body.seen:
            assert one.history.chains[head.writer].head == head


def test_a_commit_lists_at_most_so_many_heads(small: Small) -> None:
    with small.opened() as repo:
        history = History()
        for number in range(MAX_SEEN + 10):
            writer = WriterId(number.to_bytes(16, "big"))
            history.chains[writer] = Chain(writer, heads=[Head(writer, 1, bytes(32))])
        publisher = Publisher(repo.store, repo.keys, repo.memory, repo.pins, repo.log.reader)
        publisher.publish(history, [EMPTY], repo.clock, Ended)
        repo.reload()
        newest = own(repo).commits[-1]
        assert newest.head.seq == 2
        assert len(newest.body.seen) == MAX_SEEN


def test_a_writers_secret_publishes_too(small: Small) -> None:
    with small.opened("two", WRITER) as repo:
        assert repo.keys.prune_seed is None
        add(repo, 1)
        assert names(repo) == ["snap-0001"]
    with small.opened() as repo:
        assert names(repo) == ["snap-0001"]


# -- pins, gaps, forks -------------------------------------------------------------------------------------------------


def history_of(small: Small, host: str, count: int) -> list[str]:
    """Publish from a host; the names of all its commits."""
    with small.opened(host) as repo:
        for number in range(count):
            add(repo, 100 + number)
        repo.reload(whole=True)
        return [commit.head.name for commit in own(repo).commits]


def kinds(repo: Repository) -> list[str]:
    return sorted(problem.key.split(":")[0] for problem in repo.problems)


def test_history_that_went_backwards_is_reported_until_accepted(small: Small) -> None:
    made = history_of(small, "two", 3)
    with small.opened() as repo:
        assert repo.problems == []
    small.store.delete(made[-1])
    for _ in range(2):
        with small.opened() as repo:
            assert kinds(repo) == ["back"]
            with pytest.raises(RolledBack) as caught:
                repo.require_sound_history()
            assert "--accept-rollback" in caught.value.hint
            with pytest.raises(RolledBack):
                repo.publish([EMPTY])
            assert len(names(repo)) == 2  # what is there can be read all the same
    with small.opened() as repo:
        assert [problem.key.split(":")[0] for problem in accept_history(repo.log)] == ["back"]
        assert repo.problems == []
    with small.opened() as repo:
        assert repo.problems == []
        repo.publish([EMPTY])


def test_a_chain_that_is_gone_is_reported(small: Small) -> None:
    made = history_of(small, "two", 1)
    with small.opened():
        pass
    for name in made:
        small.store.delete(name)
    with small.opened() as repo:
        assert kinds(repo) == ["gone"]
        accept_history(repo.log)
    with small.opened() as repo:
        assert repo.problems == []


def test_a_missing_commit_is_a_gap(small: Small) -> None:
    made = history_of(small, "two", 4)
    small.store.delete(made[2])
    with small.opened("three") as repo:
        assert kinds(repo) == ["missing"]
        assert len(repo.history.heads) == 2
        assert len(names(repo)) == 3


def test_a_gap_may_be_as_wide_as_numbers_go(small: Small) -> None:
    """Whoever has a writer's secret can publish any number: nobody may count up to it."""
    made = history_of(small, "two", 2)
    with small.opened("two") as repo:
        key = repo.memory.writer_key()
        assert key is not None
        body = replace(own(repo).commits[-1].body, seq=(1 << 64) - 2)
        content = build_commit(repo.keys, key.seed, key.enrolment, body)
    far = Head(key.id, body.seq, hashlib.sha256(content).digest())
    small.store.put(far.name, content)
    small.store.delete(made[0])
    with small.opened("three") as repo:
        assert [problem.key for problem in repo.problems] == [
            f"missing:{key.id.hex()}:1",
            f"missing:{key.id.hex()}:3-{body.seq - 1}",
        ]
        assert far in repo.history.heads


def test_without_its_checkpoint_a_chain_is_read_from_its_beginning(small: Small) -> None:
    made = history_of(small, "two", CHECKPOINT_EVERY + 3)
    small.store.delete(made[CHECKPOINT_EVERY - 1])
    with small.opened("three") as repo:
        assert kinds(repo) == ["missing"]
        assert len(names(repo)) == CHECKPOINT_EVERY + 2


def test_a_damaged_commit_is_named_and_the_others_are_read(small: Small) -> None:
    made = history_of(small, "two", 3)
    content = bytearray(small.store.objects()[made[1]])
    content[200] ^= 1
    small.store.delete(made[1])
    small.store.put(made[1], Sealed(bytes(content)))
    with small.opened("three") as repo:
        assert [name for name, _ in repo.history.damaged] == [made[1]]
        assert kinds(repo) == ["unreadable"]
        assert [problem.lacks.name for problem in repo.problems if problem.lacks is not None] == [made[1]]
        assert len(names(repo)) == 2


def test_a_commit_that_is_not_the_one_seen_before(small: Small) -> None:
    history_of(small, "two", 1)
    before = small.store.objects()
    history_of(small, "two", 1)
    with small.opened():
        pass
    state, kept = small.host("two").state_dir, small.place / "kept"
    for name in set(small.store.objects()) - set(before):
        small.store.delete(name)
    shutil.move(state / "repo", kept)
    key = next(kept.glob("*/writer.json"))
    target = state / "repo" / key.parent.name
    target.mkdir(parents=True)
    shutil.copy(key, target)
    history_of(small, "two", 1)
    with small.opened() as repo:
        assert kinds(repo) == ["other"]


def test_a_state_directory_used_in_two_places_forks_and_a_new_chain_goes_on(small: Small) -> None:
    history_of(small, "two", 1)
    with small.opened("two") as repo:
        first_id = repo.own_writer
    copy = small.host("copy")
    shutil.copytree(small.host("two").state_dir, copy.state_dir)
    view = small.store.objects()
    a = history_of(small, "two", 1)[-1]
    # The copy works on an older replica of the repository, which is merged afterwards.
    replica = Small(small.place, type(small.store)(view))
    two = small.host("two")
    shutil.rmtree(two.state_dir)
    shutil.copytree(copy.state_dir, two.state_dir)
    shutil.rmtree(two.cache_dir)
    with replica.opened("two") as repo:
        b = repo.publish([raw(snapshot_record(777))]).head.name
    assert a != b
    small.store.put(b, Sealed(replica.store.objects()[b]))
    with small.opened("two") as repo:
        assert "fork" in kinds(repo)
        assert {"snap-0100", "snap-0777"} <= set(names(repo))  # the union of the branches
        with pytest.raises(RolledBack):
            repo.publish([EMPTY])
        accept_history(repo.log)
        repo.publish([raw(snapshot_record(778))])
        repo.reload()
        assert repo.own_writer != first_id
        assert own(repo).commits[0].head.seq == 1
        assert len(repo.history.chains) == 3
        assert repo.problems == []


def test_two_publications_of_one_number_are_noticed_at_once(small: Small) -> None:
    """Another place with a copy of the state publishes between this host's look and its put."""
    with small.opened() as repo:
        chain = own(repo)
        assert chain.head is not None
        view = Small(small.place / "copy", type(small.store)(small.store.objects()))
    shutil.copytree(small.host().state_dir, view.host().state_dir)
    with view.opened() as repo:
        other = repo.publish([EMPTY]).head.name
    late = view.store.objects()[other]
    real_put = small.store.put

    def put(name: str, content: Sealed) -> None:
        real_put(name, content)
        if name.startswith("w/"):
            real_put(other, Sealed(late))

    small.store.put = put  # type: ignore[method-assign,assignment]
    with small.opened() as repo, pytest.raises(RolledBack, match="in use in another place"):
        repo.publish([EMPTY])


def test_the_loss_of_all_commits_is_damage(small: Small) -> None:
    for heads in commits(small).values():
        for head in heads:
            small.store.delete(head.name)
    with pytest.raises(IntegrityError, match="history is lost"), small.opened():
        pass


def test_the_cache_of_commits_is_not_believed(small: Small) -> None:
    history_of(small, "two", 2)
    with small.opened() as repo:
        with repo.cache.connection as connection:
            connection.execute("UPDATE commits SET content = ?", (b"nonsense",))
        repo.reload()
        assert (repo.problems, repo.history.damaged) == ([], [])
        assert len(names(repo)) == 2


# -- what a host remembers ---------------------------------------------------------------------------------------------


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("00" * 16),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
broken_files = st.one_of(
    st.binary(max_size=40),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {},
        optional={
            "heads": st.dictionaries(st.sampled_from(["00" * 16, "zz", ""]), json_values, max_size=2) | json_values,
            "accepted": json_values,
            "snapshots": st.lists(json_values | st.tuples(*[json_values] * 3), max_size=2) | json_values,
            "seed": json_values,
            "machine": json_values,
        },
    ).map(lambda value: json.dumps(value).encode()),
)


@given(broken_files)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_broken_memory_is_lost_memory(small: Small, content: bytes) -> None:
    with small.opened() as repo:
        directory = repo.memory.directory
    kept = {name: (directory / name).read_bytes() for name in ("pins.json", "writer.json")}
    for name in ("pins.json", "writer.json", "confirmed.json"):
        (directory / name).write_bytes(content)
    with small.opened() as repo:
        assert repo.problems == []
        assert repo.own_writer is None
        assert all(len(ref.encode()) == 40 for ref in Confirmations(repo.memory).waiting())
        assert Confirmations(repo.memory).unsaid(repo.own_writer, []) == []
    for name, right in kept.items():
        (directory / name).write_bytes(right)


def test_two_processes_never_forget_what_the_other_saw(small: Small) -> None:
    with small.opened() as slow:
        with small.opened() as quick:
            add(quick, 700)
            seen = quick.pins.heads[quick.history.heads[0].writer]
        # This one has read less; what it remembers now must not take the place of more.
        slow.pins.remember([Head(WriterId(b"another writer!!"), 3, bytes(32))])
    with small.opened() as repo:
        assert repo.pins.heads[repo.history.heads[0].writer] == seen
        assert repo.pins.heads[WriterId(b"another writer!!")] == (3, bytes(32))


def test_a_lost_state_starts_a_new_chain(small: Small) -> None:
    history_of(small, "two", 2)
    shutil.rmtree(small.host("two").state_dir)
    with small.opened("two") as repo:
        assert repo.own_writer is None
        add(repo, 500)
        assert own(repo).commits[0].head.seq == 1
        assert len(repo.history.chains) == 3
        assert len(names(repo)) == 3


def test_a_writers_key_stays_on_its_machine(small: Small) -> None:
    with small.opened() as repo:
        memory = repo.memory
        assert memory.writer_key() is not None
    elsewhere = HostMemory(small.host("another"), memory.directory)
    assert elsewhere.writer_key() is None
    assert machine_name("x") == machine_name("x\n") != machine_name("y")


def test_a_state_directory_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    small = Small.make(tmp_path)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "state").write_bytes(b"")
    with pytest.raises(RepositoryError, match="cannot create"), small.opened("two") as repo:
        repo.publish([EMPTY])
    assert len(commits(small)) == 1


def test_confirmations_wait_for_the_next_commit(small: Small) -> None:
    with small.opened() as repo:
        ref = add(repo, 1)
        waiting = Confirmations(repo.memory)
        waiting.add([ref, Ref(WriterId(b"x" * 16), 1, SnapId(b"y" * 16))])
        assert waiting.unsaid(repo.own_writer, []) == [ref]  # only the author's own word counts
        waiting.drop([ref])
        assert waiting.unsaid(repo.own_writer, []) == []
        assert len(waiting.waiting()) == 1
