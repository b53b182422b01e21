"""A log compacted by audited checkpoints says the same as one that never was, and a lying checkpoint is noticed.

The oracle reads every commit ever published, from the first, and no checkpoint.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamella.base.ids import RepoId, SnapId, VolumeId
from lamella.base.trust import Sealed
from lamella.format.commit import ChainEntry, parse_name
from lamella.format.deletion import Remove
from lamella.format.inner import Origin, OriginPlace
from lamella.format.labels import Pin, Tag
from lamella.format.records import (
    NO_REF,
    Checkpoint,
    Confirm,
    RawRecord,
    Ref,
    Rename,
    Run,
    RunVolume,
    Seen,
    Signed,
    raw,
)
from lamella.format.sessions import Abandon, Session
from lamella.history import checkpoints, publish
from lamella.history.catalogue import Catalogue, Snapshot
from lamella.history.compaction import COPIES_REMEMBERED_MS, InForce
from lamella.history.history import Chain, Commit, History
from lamella.history.latest import before, latest
from lamella.history.state import build
from lamella.operations.shared.auditing import audit, publish_audits, reapable_commits
from lamella.packs.containers import open_commit
from lamella.repository.repository import Repository
from tests.unit.small_repository import ADMIN, WRITER, Small, snapshot_record, volume_record

HOSTS = ("one", "two", "three")
RUN_VOLUMES = (RunVolume(VolumeId(bytes(16)), "v", False, ""),)
Step = tuple[str, str, int, int]
"""Host, what it does, and two numbers that say to what."""

actions = st.sampled_from(
    ["add"] * 6
    + ["confirm", "tag", "untag", "pin", "unpin", "rename", "volume", "remove", "remove", "mark", "run", "session"]
    + ["abandon", "nothing", "audit", "audit", "reap"]
)
steps = st.lists(
    st.tuples(st.sampled_from(HOSTS), actions, st.integers(0, 30), st.integers(0, 3)), min_size=5, max_size=45
)


class World:
    """A repository whose hosts checkpoint often, and a copy of every object that ever was."""

    def __init__(self, place: Path) -> None:
        self.small = Small.make(place)
        self.ever: dict[str, bytes] = {}
        self.refs: list[Ref] = []
        self.volumes = 0
        self.keep()

    def keep(self) -> None:
        self.ever |= {name: self.small.store.get(name) for name in self.small.store.objects()}

    def step(self, host: str, action: str, number: int, other: int) -> None:
        with self.small.opened(host, ADMIN if host == "one" else WRITER) as repo:
            if action == "audit":
                if host == "one":
                    found = audit(repo)
                    assert found.problems == []
                    publish_audits(repo, found.passed)
            elif action == "reap":
                for head in reapable_commits(repo):
                    self.small.store.delete(head.name)
            else:
                head = repo.publish(self.records(repo, action, number, other)).head
                if action == "add":
                    self.refs.append(Ref(head.writer, head.seq, SnapId(len(self.refs).to_bytes(16, "big"))))
        self.keep()

    def records(self, repo: Repository, action: str, number: int, other: int) -> Sequence[RawRecord | Signed]:
        if action in ("nothing", "add", "volume", "rename", "session", "abandon"):
            return self.free(repo, action, number, other)
        if not self.refs:
            return []
        ref = self.refs[number % len(self.refs)]
        made: dict[str, list[RawRecord | Signed]] = {
            "confirm": [raw(Confirm((ref, self.refs[other % len(self.refs)])))],
            "tag": [Tag(ref, False, f"t{other}")],
            "untag": [Tag(ref, True, f"t{other}")],
            "pin": [Pin(ref, False, f"p{other}")],
            "unpin": [Pin(ref, True, "")],
            "remove": [Remove((ref, self.refs[-1 - other % len(self.refs)]))],
            "mark": [raw(Remove((ref,)))],
            "run": [raw(Run(f"snap-{number:04}", other > 1, RUN_VOLUMES))],
        }
        return made[action]

    def free(self, repo: Repository, action: str, number: int, other: int) -> Sequence[RawRecord | Signed]:
        others = [ref.writer for ref in self.refs[:number]]
        made = volume_record(others[-1] if number % 2 and others else repo.memory.creator().id, other, f"v{number % 3}")
        if action == "add":
            count = len(self.refs)
            return [raw(snapshot_record(count, volume=made.volume_id)), raw(Run(f"snap-{count:04}", True, ()))]
        if action == "volume":
            return [made]
        if action == "rename":
            return [Rename(made.volume_id, f"r{number % 3}")]
        if action == "session":
            return [raw(Session(bytes([other]) * 16, "run", (), (bytes([number]) * 32,)))]
        return [raw(Abandon(bytes([other]) * 16))] if action == "abandon" else []

    def oracle(self, repo: Repository) -> Catalogue:
        """From every commit that ever was, in the order of numbers."""
        history = History()
        for name in sorted(self.ever):
            head = parse_name(name)
            if head is None:
                continue
            body = open_commit(repo.keys, head, self.ever[name])
            chain = history.chains.setdefault(head.writer, Chain(head.writer))
            clock = dict(chain.clocks.get(body.prev, {}))
            for one in body.seen:
                clock[one.writer] = max(one.seq, clock.get(one.writer, 0))
            clock[head.writer] = head.seq
            chain.clocks[head.sha256] = clock
            chain.commits.append(Commit(head, body))
            chain.heads = [head]
            chain.entries += [
                ChainEntry(head.seq, body.prev, body.time_ms, row)
                for row in body.records
                if row.type != Checkpoint.TYPE
            ]
        return build(repo.keys, history)


def plain(shot: Snapshot) -> Any:  # noqa: ANN401
    return replace(shot, added=shot.added.without_packs(), clock=None)


def comparable(catalogue: Catalogue) -> dict[str, Any]:
    volumes = {
        id_: (state.name, state.identity, state.owners, [plain(shot) for shot in state.snapshots])
        for id_, state in catalogue.volumes.items()
    }
    return {
        "volumes": volumes,
        "latest": {id_: [shot.ref for shot in latest(state.snapshots)] for id_, state in catalogue.volumes.items()},
        "before": {(one.ref, two.ref): before(one, two) for one in catalogue.snapshots for two in catalogue.snapshots},
        "runs": catalogue.runs,
        "sessions": catalogue.sessions,
        "files": catalogue.files,
        "writers": catalogue.writers,
        "retired": catalogue.retired,
        "read_only": catalogue.read_only,
    }


@contextmanager
def world(every: int, tail: int) -> Iterator[World]:
    """Checkpoints come every so many commits, and put what is more than `tail` bytes into segments."""
    place = Path(tempfile.mkdtemp(prefix="lamella-compaction-"))
    try:
        with (
            mock.patch.object(publish, "CHECKPOINT_EVERY", every),
            mock.patch.object(checkpoints, "TAIL_BYTES", tail),
        ):
            yield World(place)
    finally:
        shutil.rmtree(place)


@settings(
    max_examples=max(15, settings().max_examples // 3),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(steps, st.integers(1, 4), st.sampled_from([0, 600, 3000, 100_000]))
def test_a_compacted_log_says_what_all_commits_say(made: list[Step], every: int, tail: int) -> None:
    with world(every, tail) as life:
        for step in made:
            life.step(*step)
        for name, whole in (("new", False), ("new too", True)):
            with life.small.opened(name, whole=whole) as repo:
                assert repo.problems == []
                expected = life.oracle(repo)
                assert comparable(repo.catalogue) == comparable(expected)
                for ref, removal in repo.catalogue.removed.items():
                    assert replace(removal, added=None) == replace(expected.removed[ref], added=None)


def settle(life: World, rounds: int = 8) -> None:
    """Everybody goes on publishing, the collector audits and reaps; nothing was removed lately."""
    with mock.patch.object(checkpoints, "REVIVABLE_MS", 0):
        for _ in range(rounds):
            for host in HOSTS:
                life.step(host, "nothing", 0, 0)
            life.step("one", "audit", 0, 0)
            life.step("one", "reap", 0, 0)


def test_what_was_removed_lately_is_still_carried() -> None:
    """The three newest of a volume, so that they can be brought back; then the audits pass, and nothing is there."""
    with world(2, 600) as life:
        for number in range(6):
            life.step("two", "add", number, 1)
        with life.small.opened() as repo:
            repo.publish([Remove(tuple(life.refs))])
        for _ in range(8):
            for host in HOSTS:
                life.step(host, "nothing", 0, 0)
            life.step("one", "audit", 0, 0)
            life.step("one", "reap", 0, 0)
        with life.small.opened("new", whole=True) as repo:
            assert repo.catalogue.snapshots == [] and audit(repo).problems == []
            known = [ref for ref, removal in repo.catalogue.removed.items() if removal.added is not None]
            assert len(known) == 3 and set(known) <= set(life.refs)


def test_what_was_removed_leaves_no_trace_in_the_end() -> None:
    with world(2, 600) as life:
        for number in range(30):
            life.step("two", "add", number, 1)
            life.step("three", "add", number, 2)
        with life.small.opened() as repo:
            repo.publish([Remove(tuple(life.refs[:-4]))])
        settle(life)
        with life.small.opened("new", whole=True) as repo:
            assert len(repo.catalogue.snapshots) == 4
            assert repo.catalogue.removed == {}
            assert all(len(chain.entries) < 20 for chain in repo.history.chains.values())
            assert comparable(repo.catalogue) == comparable(life.oracle(repo))
        left = [name for name in life.small.store.objects() if name.startswith("w/")]
        assert len(left) < 30
        assert len([name for name in life.ever if name.startswith("w/")]) > 80


def test_a_tombstone_stays_while_somebody_has_not_seen_the_audit() -> None:
    with world(2, 100_000) as life:
        for number in range(6):
            life.step("two", "add", number, 1)
        life.step("three", "nothing", 0, 0)
        with life.small.opened() as repo:
            repo.publish([Remove((life.refs[0],))])
        with mock.patch.object(checkpoints, "REVIVABLE_MS", 0):
            for _ in range(8):
                for host in ("one", "two"):
                    life.step(host, "nothing", 0, 0)
                life.step("one", "audit", 0, 0)
        with life.small.opened("new") as repo:
            assert list(repo.catalogue.removed) == [life.refs[0]]
            assert repo.catalogue.removed[life.refs[0]].added is None
        settle(life, 4)
        with life.small.opened("new") as repo:
            assert repo.catalogue.removed == {}


def test_a_removed_copy_is_remembered_so_that_it_is_not_copied_again() -> None:
    with world(2, 100_000) as life:
        for old in (False, True):
            with life.small.opened("two", WRITER) as repo:
                place = OriginPlace(RepoId(b"r" * 16), NO_REF)
                time_ms = 1_800_000_000_000 - old * 2 * COPIES_REMEMBERED_MS
                added = replace(
                    snapshot_record(len(life.refs), time_ms=time_ms), inner=(Origin(place, place).encode(),)
                )
                head = repo.publish([raw(added)]).head
                life.refs.append(Ref(head.writer, head.seq, added.snap_id))
        with life.small.opened() as repo:
            repo.publish([Remove(tuple(life.refs[:1])), Remove(tuple(life.refs[1:]))])
        settle(life)
        with life.small.opened("new", whole=True) as repo:
            assert repo.catalogue.snapshots == []
            assert list(repo.catalogue.removed) == life.refs[:1]
            assert repo.catalogue.removed[life.refs[0]].added is not None
            assert audit(repo).problems == []


class Forgetful(InForce):
    """Leaves the first snapshot out of every checkpoint."""

    def kept(self) -> list[ChainEntry]:
        return [entry for entry in super().kept() if entry.seq != 1]


def test_a_checkpoint_that_leaves_something_out_is_not_believed() -> None:
    with world(3, 100_000) as life:
        life.step("two", "add", 0, 1)
        with mock.patch.object(checkpoints, "InForce", Forgetful):
            for _ in range(3):
                life.step("two", "nothing", 0, 0)
        with life.small.opened("new") as repo:
            assert repo.catalogue.snapshots == []  # who reads from the checkpoint alone cannot know
        with life.small.opened() as repo:
            found = audit(repo)
            assert [one.message for one in found.problems] and "leaves out" in found.problems[0].message
            assert [head.writer for head in found.passed] == []
            assert [shot.ref for shot in repo.catalogue.snapshots] == life.refs  # it stays live
            publish_audits(repo, found.passed)
            assert reapable_commits(repo) == []


class Boastful(Seen):
    """Claims to have seen more than it had."""

    @classmethod
    def of(cls, clock: Any) -> Any:  # noqa: ANN401
        return Seen(tuple(sorted((writer, seq + 5) for writer, seq in clock.items())))


def test_a_checkpoint_that_invents_is_not_believed() -> None:
    with world(3, 100_000) as life:
        life.step("two", "add", 0, 1)
        life.step("three", "add", 0, 1)
        with mock.patch.object(Seen, "of", Boastful.of):
            for _ in range(3):
                life.step("three", "nothing", 0, 0)
        with life.small.opened() as repo:
            found = audit(repo)
            assert len(found.problems) == 1 and "what they had not" in found.problems[0].message
        with (
            mock.patch.object(checkpoints, "_plain", lambda entries: entries),
            mock.patch.object(InForce, "kept", lambda self: [entry._replace(time_ms=7) for entry in self._entries]),
        ):
            for _ in range(3):
                life.step("two", "nothing", 0, 0)
        with life.small.opened() as repo:
            assert any("leaves out" in one.message for one in audit(repo).problems)


def test_a_chain_without_its_beginning_and_without_an_audit_lacks_history() -> None:
    with world(3, 100_000) as life:
        for number in range(7):
            life.step("two", "add", number, 1)
        first = sorted(name for name in life.small.store.objects() if name.startswith("w/"))
        for name in first:
            head = parse_name(name)
            if head is not None and head.writer == life.refs[0].writer and head.seq < 3:
                life.small.store.delete(name)
        with life.small.opened("other") as repo:
            assert any("missing" in problem.message for problem in repo.problems)
            assert audit(repo).passed == []
            assert reapable_commits(repo) == []


def test_a_host_that_slept_for_long_finds_the_reaped_log_sound() -> None:
    """Its pins name commits that are gone; the prune key's word takes their place."""
    with world(2, 100_000) as life:
        life.step("two", "add", 0, 1)
        with life.small.opened("sleeper", WRITER) as repo:
            pinned = dict(repo.pins.heads)
        settle(life)
        names = set(life.small.store.objects())
        assert not all(any(sha.hex() in name for name in names) for _, sha in pinned.values())
        with life.small.opened("sleeper", WRITER) as repo:
            assert repo.problems == []
            repo.publish([])
        with life.small.opened("sleeper", WRITER, whole=True) as repo:
            assert repo.problems == []


def test_an_unreadable_audited_checkpoint_gives_way_to_the_one_before() -> None:
    with world(2, 100_000) as life:
        life.step("two", "add", 0, 1)
        settle(life)
        with life.small.opened("new", whole=True) as repo:
            chain = repo.history.chains[life.refs[0].writer]
            assert chain.begin is not None
            name = chain.begin.name
            expected = comparable(repo.catalogue)
        life.small.store.delete(name)
        life.small.store.put(name, Sealed(b"any other bytes"))
        with life.small.opened("newer", whole=True) as repo:
            begin = repo.history.chains[life.refs[0].writer].begin
            assert begin is not None
            assert begin.name < name
            assert [problem.message for problem in repo.problems] != []  # the commit is damaged, and that is said
            assert comparable(repo.catalogue)["volumes"] == expected["volumes"]


def test_malformed_checkpoints_are_no_exceptions() -> None:
    with world(1000, 100_000) as life:
        with life.small.opened("two") as repo:
            for value in (b"", b"\xff" * 50, (0).to_bytes(4, "little") * 2 + b"x"):
                repo.publish([RawRecord(Checkpoint.TYPE, value)])
        for whole in (False, True):
            with life.small.opened("new", whole=whole) as repo:
                assert len(repo.history.chains) == 2
