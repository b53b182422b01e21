"""What a history lacks, judged: witnesses, excuses, the order of what was seen, one reading of the store."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lamella.base.errors import RolledBack, StoreRefused
from lamella.base.ids import RepoId, VolumeId, WriterId
from lamella.base.trust import Sealed
from lamella.format.commit import CHECKPOINT_EVERY, ChainEntry, Head
from lamella.format.deletion import Forgo
from lamella.format.records import RawRecord, Volume, raw
from lamella.history import order as orders
from lamella.history.history import Unreadable
from lamella.history.latest import latest
from lamella.history.missing import Judge
from lamella.history.order import Order
from lamella.history.places import judge
from lamella.memory.host import Host
from lamella.memory.pins import KnownPlace, Pins, SeenCommit
from lamella.operations.prune.needed import history_troubles
from lamella.operations.shared.auditing import audit, publish_audits
from lamella.operations.shared.selection import doubts, find_volume
from lamella.packs.building import build_commit
from lamella.repository.publishing import give_up
from lamella.repository.repository import Repository
from lamella.stores.base import Abilities, Entry
from tests.counting_store import CountingStore
from tests.property.chains import Script
from tests.unit.small_repository import WRITER, Small, snapshot_record, volume_record

EMPTY = RawRecord(0x8FFF, b"")


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small.make(tmp_path)


def volume(repo: Repository, number: int, name: str) -> Volume:
    return volume_record(repo.memory.creator().id, number, name, b"file:%d" % number)


def snaps(repo: Repository, numbers: Sequence[int], of: int | VolumeId = 1) -> list[Head]:
    """Publish snapshots, each in a commit of its own."""
    made = []
    for number in numbers:
        made.append(repo.publish([raw(snapshot_record(number, volume=of))]).head)
        repo.reload()
    return made


def names(repo: Repository) -> list[str]:
    return sorted(snapshot.name for snapshot in repo.catalogue.snapshots)


def replace_record(entries: Sequence[ChainEntry], seq: int, record: RawRecord) -> ChainEntry:
    """The entry of that commit with another record."""
    return next(entry for entry in entries if entry.seq == seq)._replace(record=record)


def change(small: Small, head: Head, how: Callable[[bytes], bytes]) -> bytes:
    """Give an object other bytes; what it had."""
    content = small.store.objects()[head.name]
    small.store.delete(head.name)
    small.store.put(head.name, Sealed(how(content)))
    return content


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def crafted(small: Small, seen: Sequence[Head], host: str = "two", *, seq: int = 0, number: int = 900) -> Head:
    """A commit of that host's writer with snapshot `number`, which says that it has seen this: as no host makes it."""
    with small.opened(host, WRITER) as repo:
        key = repo.memory.writer_key()
        assert key is not None
        last = repo.history.chains[key.id].commits[-1]
        records = (raw(snapshot_record(number)),)
        body = replace(
            last.body,
            seq=seq or last.head.seq + 1,
            prev=last.head.sha256 if not seq else last.body.prev,
            seen=tuple(sorted(seen)),
            records=records,
        )
        content = build_commit(repo.keys, key.seed, key.enrolment, body)
    head = Head(key.id, body.seq, hashlib.sha256(content).digest())
    small.store.put(head.name, content)
    return head


# -- reading from the store --------------------------------------------------------------------------------------------


def test_every_commit_is_read_from_the_store_once(small: Small) -> None:
    with small.opened() as repo:
        made = snaps(repo, range(1, 6))
    for distant in (False, True):
        store = CountingStore(Distant(small.store) if distant else small.store)
        with small.opened(store=store) as repo:
            assert store.count("get", "w/") == 0  # the cache has them
            there = sorted(entry.name for entry in small.store.list("w/"))
            repo.reload(whole=True, stored=True)
            assert sorted(name for method, name in store.calls if method == "get" and name in there) == there
            repo.reload(whole=True)
            repo.publish([EMPTY])
            repo.reload(stored=True)
            assert store.count("get", "w/") == len(there) + 1  # the own new one, too
    assert len(there) == len(made) + 2


class Distant(CountingStore):
    @property
    def abilities(self) -> Abilities:
        return replace(super().abilities, distant=True)


def test_what_the_cache_has_of_a_rotten_commit_counts_nothing(small: Small) -> None:
    with small.opened() as repo:
        made = snaps(repo, [1, 2, 3])
    change(small, made[1], flip)
    for store in (small.store, Distant(small.store)):
        with small.opened(store=store) as repo:
            assert (names(repo), repo.problems) == (["snap-0001", "snap-0002", "snap-0003"], [])
            repo.reload(whole=True, stored=True)
            assert names(repo) == ["snap-0001", "snap-0003"]
            assert [problem.lacks for problem in repo.problems] == [made[1]]
            repo.reload()  # from here on nothing comes from the cache
            assert names(repo) == ["snap-0001", "snap-0003"]
            content = repo.cache.commit(made[1].name)  # and what a repair needs is still in it
            assert content is not None and hashlib.sha256(content).digest() == made[1].sha256


def test_a_listing_that_was_overtaken_is_no_alarm(small: Small) -> None:
    """A backup publishes while w/ is listed: who is listed late has seen what others were listed without."""
    with small.opened() as one, small.opened("two") as two:
        snaps(one, [1])
        snaps(two, [2])
        with small.opened("three") as repo:
            writers = sorted(repo.history.chains)
        first, last = (one, two) if writers[0] == one.own_writer else (two, one)

        made: list[Head] = []

        class Overtaken(CountingStore):
            def list(self, prefix: str) -> Iterator[Entry]:
                yield from [*super().list(prefix)]
                if prefix == "w/" and not made:
                    made.append(first.publish([EMPTY]).head)
                    last.reload()
                    late = last.publish([EMPTY]).head
                    assert late.writer > made[0].writer
                    yield Entry(late.name, small.store.stat(late.name))

        with small.opened("four", store=Overtaken(small.store)) as repo:
            assert repo.problems == []
    small.store.delete(made[0].name)
    with small.opened("five") as repo:
        assert [problem.lacks for problem in repo.problems] == made
        assert [problem.kind for problem in repo.problems] == ["seen"]


class Withholding(CountingStore):
    """A store that cannot read one object."""

    name = ""

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if name == self.name:
            raise StoreRefused("input/output error", obj=name)
        return super().get(name, offset, length)


def test_bytes_that_a_store_cannot_give_are_missing_history(small: Small) -> None:
    with small.opened() as repo:
        made = snaps(repo, [1, 2])
    store = Withholding(small.store)
    store.name = made[-1].name
    with small.opened("three", store=store) as repo:
        assert [problem.lacks for problem in repo.problems] == [made[-1]]
        assert names(repo) == ["snap-0001"]


# -- who says that a commit was made -----------------------------------------------------------------------------------


def test_without_a_trace_only_a_witness_tells_junk_from_history(small: Small) -> None:
    """All zeros under a commit's name: a note, unless a pin or another writer's `seen` names it."""
    with small.opened() as one:
        made = snaps(one, [1, 2])
    with small.opened("knew"):
        pass
    with small.opened("two", WRITER) as two:
        (witness,) = snaps(two, [3])
    change(small, made[-1], lambda content: bytes(len(content)))
    with small.opened("fresh") as repo:
        assert [(problem.kind, problem.lacks) for problem in repo.problems] == [("unreadable", made[-1])]
    small.store.delete(witness.name)
    with small.opened("newer") as repo:
        assert (repo.problems, repo.history.damaged) == ([], [])
        (note,) = repo.history.notes
        assert made[-1].name in note and note in repo.catalogue.notes
        assert list(history_troubles(repo)) == []
        assert repo.pins.heads[made[-1].writer][0] == made[-2].seq
    with small.opened("knew") as repo:
        repo.pins.heads = {made[-1].writer: SeenCommit(made[-1].seq, made[-1].sha256)}
        repo.reload(whole=True, stored=True)
        assert [problem.lacks for problem in repo.problems] == [made[-1]]


def test_one_that_is_named_as_audited_is_missing_history(small: Small) -> None:
    """And the commits before it, which are there, say what they say: also to a host that reads no more than it must."""
    with small.opened() as repo:
        made = snaps(repo, range(1, 2 * CHECKPOINT_EVERY + 4))
        repo.reload(whole=True)
        passed = audit(repo).passed
        publish_audits(repo, passed)
    (head,) = passed
    change(small, head, lambda content: bytes(len(content)))
    for whole in (False, True):
        with small.opened("fresh", whole=whole) as repo:
            assert [problem.lacks for problem in repo.problems] == [head]
            assert len(names(repo)) == len(made) - 1
        shutil.rmtree(small.place / "fresh")


# -- what is given up --------------------------------------------------------------------------------------------------


def test_what_the_commits_missing_right_before_it_said_is_given_up_with_it(small: Small) -> None:
    """Also for a host that has seen one of those last; but not what is missing in another place."""
    with small.opened() as one:
        made = snaps(one, range(1, 5))
        with small.opened("early"):
            pass
        made += snaps(one, range(5, 8))
    with small.opened("knew"):
        pass
    for head in made[2:]:
        small.store.delete(head.name)
    with small.opened("early") as repo:
        assert [problem.lacks for problem in repo.problems] == [made[3]]
    with small.opened("knew") as repo:
        assert [problem.lacks for problem in repo.problems] == [made[6]]
        assert repo.log.lacking == {made[6]}
        with pytest.raises(RolledBack):
            repo.publish([EMPTY])
        give_up(repo, [made[6]])
        repo.reload()
        assert (repo.problems, repo.log.lacking) == ([], set())
    for host in ("early", "knew", "fresh"):
        with small.opened(host, whole=True) as repo:
            assert repo.problems == []
            assert names(repo) == ["snap-0001", "snap-0002"]
    small.store.delete(made[0].name)
    with small.opened("newer") as repo:  # made[1] is between this one and what is given up
        assert [problem.lacks for problem in repo.problems] == [made[0]]


@pytest.mark.parametrize("place", ["end", "middle"])
@pytest.mark.parametrize("whole", [True, False])
def test_what_is_lost_later_is_missed_as_ever(small: Small, place: str, whole: bool) -> None:
    """The end of a chain is given up, or a part of its middle; then what was left before that is lost, too."""
    with small.opened("knew") as one:
        made = snaps(one, range(1, 9))
    with small.opened("two", WRITER) as two:
        two.publish([EMPTY])  # has seen the last one
    last = 7 if place == "end" else 5
    for head in made[4 : last + 1]:
        small.store.delete(head.name)
    with small.opened("admin", whole=True) as repo:
        assert {problem.lacks for problem in repo.problems} == {made[last]}
        give_up(repo, [made[last]])
    for host in ("knew", "fresh", "admin"):
        with small.opened(host, whole=whole) as repo:
            assert repo.problems == []
    for left in (3, 2):
        small.store.delete(made[left].name)
        for host in ("knew", "fresh", "admin"):
            with small.opened(host, whole=whole) as repo:
                assert made[3] in {problem.lacks for problem in repo.problems}, host
        with small.opened(f"check {left}", whole=True) as repo:
            assert {problem.lacks for problem in repo.problems} == {made[3]}
    with small.opened("admin", whole=True) as repo:
        give_up(repo, [made[3]])
    for host in ("knew", "fresh", "admin"):
        with small.opened(host, whole=whole) as repo:
            assert repo.problems == []
            assert names(repo)[:2] == ["snap-0001", "snap-0002"]
    small.store.delete(made[1].name)
    with small.opened("newest", whole=True) as repo:
        assert {problem.lacks for problem in repo.problems} == {made[1]}


def test_the_prune_keys_word_for_a_checkpoint_is_a_witness_by_itself(tmp_path: Path) -> None:
    nothing_remembered = Host("5" * 16, "box", tmp_path, tmp_path).memory(RepoId(bytes(16)))
    script = Script()
    script.commit(0, [])
    lost = Head(WriterId(b"w" * 16), 5, b"h" * 32)
    for audits, kinds in (({}, []), ({lost.writer: [lost]}, ["unreadable"])):
        history = script.history()
        history.unreadable = [Unreadable(lost, "does not open", None, False)]
        history.audits = audits
        Judge(history, Pins(nothing_remembered), lambda evidence, intact: False).judge()
        assert [problem.kind for problem in history.problems] == kinds
        assert len(history.notes) == 1 - len(kinds)


def test_only_the_prune_keys_word_gives_up_and_only_what_it_names(small: Small) -> None:
    with small.opened() as one:
        made = snaps(one, range(1, 6))
    small.store.delete(made[2].name)
    with small.opened("two", WRITER) as two:
        assert two.keys.prune_seed is None
        two.pins.accepted |= {problem.key for problem in two.problems}
        two.publish([Forgo(made[2], made[1][1:])])
    with small.opened("fresh") as repo:
        assert [problem.lacks for problem in repo.problems] == [made[2]]
        give_up(repo, [made[1], made[2]._replace(sha256=b"x" * 32), made[2]._replace(writer=WriterId(b"y" * 16))])
        repo.reload()
        assert [problem.lacks for problem in repo.problems] == [made[2]]
        give_up(repo, [made[2]])
        repo.reload()
        assert repo.problems == []
    small.store.delete(made[4].name)  # the newest, which nobody gave up
    with small.opened("fresh") as repo:
        assert [problem.lacks for problem in repo.problems] == [made[4]]


def test_a_fork_cannot_be_given_up(small: Small) -> None:
    with small.opened("two", WRITER) as two:
        made = snaps(two, [1, 2])
    with small.opened():
        pass
    crafted(small, [], seq=made[-1].seq)
    with small.opened() as repo:
        assert "fork" in {problem.kind for problem in repo.problems}
        assert all(problem.lacks is None for problem in repo.problems)
        with pytest.raises(RolledBack):
            give_up(repo, [made[0]])


EVERYTHING = [f"snap-{number:04}" for number in range(1, CHECKPOINT_EVERY + 5)]


@pytest.fixture(params=["truncated", "deleted"])
def lost(request: pytest.FixtureRequest, small: Small) -> Head:
    """A commit before the newest checkpoint, the first one that had seen the second commit of writer "two"."""
    with small.opened("two", WRITER) as two:
        two.publish([EMPTY])
    with small.opened() as one:
        one.reload()
        snaps(one, range(1, 7))
    with small.opened("two", WRITER) as two:
        seen = two.publish([EMPTY]).head
    with small.opened() as one:
        head = snaps(one, [7])[0]
        snaps(one, range(8, CHECKPOINT_EVERY + 5))
        (clock,) = (shot.clock for shot in one.catalogue.snapshots if shot.ref.seq == head.seq)
        assert clock is not None and clock[seen.writer] == seen.seq
    if request.param == "deleted":
        small.store.delete(head.name)
    else:
        change(small, head, lambda content: content[:-3])
    return head


def test_who_reads_all_and_who_begins_at_a_checkpoint_know_the_same(small: Small, lost: Head) -> None:
    with small.opened("fresh") as repo:
        assert (names(repo), repo.history.whole) == (EVERYTHING, False)
        # From the checkpoint on all is well; of what is before it only the names are looked at.
        named = lost.name in small.store.objects()
        assert [(problem.kind, problem.lacks) for problem in repo.problems] == ([] if named else [("missing", None)])
    with small.opened("admin", whole=True) as repo:
        assert [problem.lacks for problem in repo.problems] == [lost]
        assert names(repo) == EVERYTHING
        give_up(repo, [lost])
    for whole in (False, True):
        with small.opened("newer", whole=whole) as repo:
            assert (names(repo), repo.problems, repo.history.whole) == (EVERYTHING, [], whole)
    with small.opened("newer", whole=True) as repo:
        (two,) = {head.writer for commit in repo.history.chains[lost.writer].commits for head in commit.body.seen}
        assert repo.history.clocks[lost.writer, lost.seq + 1][two] >= 1, "seen before the gap, so also after it"


def test_a_chain_whose_only_trouble_is_given_up_may_be_audited(small: Small, lost: Head) -> None:
    """What its checkpoint repeats of the lost commit is not invented; anything else still is."""
    with small.opened("admin", whole=True) as repo:
        assert not audit(repo).passed
        give_up(repo, [lost])
        repo.reload(whole=True)
        entries = repo.log.checkpoint_entries(repo.history.chains[lost.writer])
        invented = replace_record(entries, lost.seq - 1, raw(snapshot_record(99)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(repo.log, "checkpoint_entries", lambda chain: [*entries, invented])
            assert "has 1 records that no commit before it has" in audit(repo).problems[0].message
        found = audit(repo)
        assert found.problems == [] and [head.writer for head in found.passed] == [lost.writer]
        assert {shot.clock is None for shot in repo.catalogue.snapshots} == {False}
        publish_audits(repo, found.passed)
        repo.reload(whole=True)
        assert names(repo) == EVERYTHING
        assert repo.history.chains[lost.writer].begin == found.passed[0]
    with small.opened("newer") as repo:
        assert (names(repo), repo.problems) == (EVERYTHING, [])


# -- the order of history ----------------------------------------------------------------------------------------------


def test_seeing_what_is_not_there_orders_nothing_and_witnesses_missing_history(small: Small) -> None:
    with small.opened() as one:
        made = snaps(one, [1, 2])
    with small.opened("two", WRITER) as two:
        two.publish([EMPTY])
    far = Head(made[0].writer, 1 << 63, b"h" * 32)
    bad = crafted(small, [far])
    with small.opened() as one:  # has read it, and goes on if that is accepted
        assert [(problem.kind, problem.lacks) for problem in one.problems] == [("seen", far)]
        assert one.problems[0].key.endswith(bad.writer.hex())
        (state,) = one.catalogue.volumes.values()
        assert len(latest(state.snapshots)) == 1
        with pytest.raises(RolledBack):
            one.require_sound_history()
        give_up(one, [far])
        one.reload()
        assert one.problems == []
        # Its own chain might have had that commit: it goes on under another id, and the order is known.
        assert one.own_writer not in (None, made[0].writer)
        (ref,) = [shot.ref for shot in one.catalogue.snapshots if shot.ref.writer == bad.writer]
        snaps(one, [3])
        (state,) = one.catalogue.volumes.values()
        assert [shot.name for shot in latest(state.snapshots)] == ["snap-0003"]
        assert ref.seq == bad.seq


@pytest.mark.parametrize("winner", ["one", "two"])
def test_a_circle_has_a_latest(small: Small, winner: str) -> None:
    """The one says that it has seen all that comes after it, and that has seen the one."""
    with small.opened() as one:
        first = snaps(one, [1])[0]
    with small.opened("two", WRITER) as two:
        two.publish([EMPTY])
    bad = crafted(small, [first._replace(seq=1 << 63)], number=700)
    crafted(small, [bad], "one", number=800 if winner == "one" else 600)
    with small.opened("fresh") as repo:
        (state,) = repo.catalogue.volumes.values()
        assert len(state.snapshots) == 3
        found = [shot.name for shot in latest(state.snapshots)]
        assert found == (["snap-0800", "snap-0700"] if winner == "one" else ["snap-0700", "snap-0600"])
    assert latest([]) == []


def test_another_hash_at_a_number_that_can_be_read_counts_nothing(small: Small) -> None:
    with small.opened("two", WRITER) as two:
        two.publish([EMPTY])
    with small.opened() as one:
        made = snaps(one, [1, 2])
    true = crafted(small, [made[0]])
    false = crafted(small, [made[1]._replace(sha256=b"x" * 32)])
    with small.opened("fresh") as repo:
        assert repo.problems == []
        clocks = [repo.history.clocks[head.writer, head.seq][made[0].writer] for head in (true, false)]
        assert clocks == [made[0].seq, made[0].seq]
        assert repo.history.said_clocks[false.writer, false.seq][made[0].writer] == made[1].seq


def test_counted_clocks_never_exceed_what_is_there() -> None:
    """Random histories with lies in them: no counted entry reaches beyond the newest commit of its writer."""
    chosen = random.Random(7)
    for _ in range(60):
        script = Script()
        for _ in range(12):
            script.commit(chosen.randrange(3), [], sees=[chosen.randrange(3), chosen.randrange(3)])
        history = script.history()
        for chain in history.chains.values():
            chain.commits = [
                replace(
                    commit,
                    body=replace(
                        commit.body,
                        seen=tuple(head._replace(seq=head.seq + chosen.choice([0, 0, 5])) for head in commit.body.seen),
                    ),
                )
                for commit in chain.commits
            ]
        newest = {chain.writer: chain.heads[-1].seq for chain in history.chains.values()}
        for (by, seq), clock in history.clocks.items():
            assert clock[by] == seq
            assert all(upto <= newest.get(of, 0) for of, upto in clock.items())


def test_of_a_circle_somebody_is_first_and_last() -> None:
    one, two = WriterId(b"1" * 16), WriterId(b"2" * 16)
    order = Order({(by, seq): {two: 2, one: 2} for by in (one, two) for seq in (1, 2)})
    places = [orders.RecordPlace(by, seq, 0) for by in (two, one) for seq in (1, 2)]
    assert order.first(places, lambda row: row) == orders.RecordPlace(one, 1, 0)
    assert order.last(places, lambda row: row) == orders.RecordPlace(one, 2, 0)
    assert order.last([], lambda row: row) is None


# -- what may be restored ----------------------------------------------------------------------------------------------


def test_whose_missing_history_concerns_a_volume(small: Small) -> None:
    with small.opened("two", WRITER) as two:
        v = volume(two, 1, "v")
        two.publish([v])
        snaps(two, [1], of=v.volume_id)
    with small.opened("three", WRITER) as three:
        other = volume(three, 2, "other")
        three.publish([other])
        made = snaps(three, [2, 3], of=other.volume_id)
    change(small, made[-1], flip)
    with small.opened("fresh") as repo:
        assert [problem.lacks for problem in repo.problems] == [made[-1]]
        assert doubts(repo, find_volume(repo, "v")) == []
        assert doubts(repo, find_volume(repo, "other")) == repo.problems
        chain = repo.history.chains[made[0].writer]
        chain.entries = [*chain.entries, chain.entries[0]._replace(record=raw(v))]
        assert doubts(repo, find_volume(repo, "v")) == repo.problems
    for entry in list(small.store.list(f"w/{made[0].writer.hex()}/")):
        if entry.name != made[-1].name:
            small.store.delete(entry.name)
    with small.opened("newer") as repo:  # nothing of that writer can be read
        assert doubts(repo, find_volume(repo, "v")) == repo.problems != []


def test_who_signed_with_the_prune_key_may_have_done_anything(small: Small) -> None:
    with small.opened("two", WRITER) as two:
        v = volume(two, 1, "v")
        two.publish([v])
        snaps(two, [1], of=v.volume_id)
    with small.opened() as one:  # made the repository, and signed its files
        made = snaps(one, [2], of=2)
    change(small, made[-1], flip)
    with small.opened("fresh") as repo:
        assert doubts(repo, find_volume(repo, "v")) == repo.problems != []


# -- places ------------------------------------------------------------------------------------------------------------


def test_a_mirror_may_lack_what_writers_saw_elsewhere(small: Small) -> None:
    with small.opened("two", WRITER) as two:
        made = snaps(two, [1, 2])
    with small.opened() as one:
        one.publish([EMPTY])  # has seen both
    small.store.delete(made[1].name)
    with small.opened("fresh") as repo:
        history = repo.history
    assert [problem.kind for problem in history.problems] == ["seen"]
    assert judge(KnownPlace(), history) == (history.problems, [])
    assert judge(KnownPlace(mirror=True), history) == ([], history.problems)
    there = KnownPlace(mirror=True, heads={made[1].writer: SeenCommit(made[1].seq, made[1].sha256)})
    problems, older = judge(there, history)
    assert ({problem.lacks for problem in problems}, older) == ({made[1]}, [])
    history.forgone = {made[1].writer: [Forgo(made[1], made[0][1:])]}
    history.problems = []
    assert judge(there, history) == ([], [])
    del history.chains[made[1].writer]  # less than was left when it was given up
    assert [problem.lacks for problem in judge(there, history)[0]] == [made[1]]
