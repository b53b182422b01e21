"""A small repository with every byte flipped and every object truncated, removed, swapped, duplicated or replaced."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.base.errors import RolledBack
from lamella.memory.host import Host
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from tests.fault.damage import (
    Batch,
    Change,
    Objects,
    Outcome,
    Small,
    a_host,
    build,
    in_processes,
    judge,
    run_batch,
    sparse,
)
from tests.fault.world import CHUNK, SECRET, Truth, backup, check_rescue, check_sound, restored

MAX_GROWTH_KIB = 96 * 1024


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    with pytest.MonkeyPatch.context() as patch:
        yield build(tmp_path_factory.mktemp("small"), patch)


@pytest.fixture(params=["fresh cache", "warm cache"])
def warm(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "warm cache")


def host_for(small: Small, tmp_path: Path, warm: bool) -> Host:
    return a_host(small, tmp_path, warm=warm)


def test_the_repository_itself_is_sound_and_small(small: Small, tmp_path: Path) -> None:
    assert sum(map(len, small.objects.values())) <= 64 * 1024
    for warm in (False, True):
        outcome = judge(small.objects, host_for(small, tmp_path, warm), small, tmp_path)
        assert not outcome.noticed and not outcome.failed and outcome.listed == set(small.truth.volumes)
    check_rescue(small.objects, small.truth, tmp_path)


# -- flipped bits -----------------------------------------------------------------------------------------------------


def run_flips(small: Small, changes: list[Change], *, warm: bool, restores_every: int = 1) -> None:
    packed = pickle.dumps(small)
    batches = [Batch(packed, changes[start::6], warm, restores_every) for start in range(6)]
    outcomes = in_processes(batches, run_batch)
    complaints = sorted(itertools.chain.from_iterable(said for said, _ in outcomes))
    assert not complaints, "\n".join([f"{len(complaints)} complaints", *complaints[:40]])
    assert max(grown for _, grown in outcomes) < MAX_GROWTH_KIB


def one_bit_of_each_byte(objects: Objects) -> list[Change]:
    return [
        (name, offset, 1 << (offset * 5 + offset // 8) % 8)
        for name, content in sorted(objects.items())
        for offset in range(len(content))
    ]


@pytest.mark.slow
def test_one_bit_of_each_byte_flipped(small: Small) -> None:
    run_flips(small, one_bit_of_each_byte(small.objects), warm=False, restores_every=5)


@pytest.mark.slow
def test_flipped_bits_are_not_hidden_by_a_warm_cache(small: Small) -> None:
    run_flips(small, one_bit_of_each_byte(small.objects)[::9], warm=True, restores_every=2)


@pytest.mark.long
@pytest.mark.parametrize("bit", range(8))
def test_every_bit_flipped(small: Small, warm: bool, bit: int) -> None:
    changes = [(name, at, 1 << bit) for name, content in small.objects.items() for at in range(len(content))]
    run_flips(small, changes, warm=warm)


# -- whole objects ----------------------------------------------------------------------------------------------------


def lengths(size: int) -> list[int]:
    """Where to cut: inside every structure there is."""
    edges = {0, 1, 7, 8, 16, 31, 63, 64, 71, 72, 73, 96, 100, size // 2}
    edges |= {size - back for back in (145, 144, 112, 96, 64, 1)}
    return sorted(edge for edge in edges | set(range(0, size, 61)) if 0 <= edge < size)


def test_every_object_truncated(small: Small, tmp_path: Path, warm: bool) -> None:
    for name, content in small.objects.items():
        for length in lengths(len(content)):
            changed = {**small.objects, name: content[:length]}
            outcome = judge(changed, host_for(small, tmp_path, warm), small, tmp_path, restores=length % 4 == 0)
            assert told(outcome, name, small, warm), f"{name} cut to {length}"


def test_every_object_made_longer(small: Small, tmp_path: Path, warm: bool) -> None:
    for name, content in small.objects.items():
        for more in (b"\0", bytes(16), content):
            changed = {**small.objects, name: content + more}
            outcome = judge(changed, host_for(small, tmp_path, warm), small, tmp_path)
            assert outcome.noticed, f"{name} with {len(more)} bytes more"


def newest_commits(small: Small) -> set[str]:
    """The last commit of each writer: a stranger cannot know that there was one."""
    last: dict[str, str] = {}
    for name in sorted(small.objects):
        if name.startswith("w/"):
            last[name.split("/")[1]] = name
    return set(last.values())


def told(outcome: Outcome, name: str, small: Small, warm: bool) -> bool:
    """Whether an object that is not what its name says was noticed, or is known as junk by who cannot know better.

    Of a name that nobody ever had, and of what a stranger finds in the place of a writer's last commit, with no trace
    of that commit in it, nobody can say that history is missing: then a note is all.
    """
    strange = name not in small.objects or (name in newest_commits(small) and not warm)
    return outcome.noticed or (strange and name in outcome.junk)


def test_every_object_removed(small: Small, tmp_path: Path, warm: bool) -> None:
    tails = newest_commits(small)
    for name in small.objects:
        changed = {other: content for other, content in small.objects.items() if other != name}
        outcome = judge(changed, host_for(small, tmp_path, warm), small, tmp_path)
        if name in tails and not warm:
            continue  # indistinguishable from a repository that never had it; judged by its bytes alone
        if name in tails or name.startswith("w/"):
            assert outcome.refused or outcome.damaged or history_is_refused(changed, small, tmp_path, warm), name
        else:
            assert outcome.noticed, name


def history_is_refused(objects: Objects, small: Small, tmp_path: Path, warm: bool) -> bool:

    with Repository.open(MemoryStore(objects), SECRET, host_for(small, tmp_path, warm)) as repo:
        try:
            repo.require_sound_history()
        except RolledBack:
            return True
    return False


def kind(name: str) -> str:
    return name.split("/")[0]


def test_every_pair_of_a_kind_swapped(small: Small, tmp_path: Path, warm: bool) -> None:
    for one, other in itertools.combinations(sorted(small.objects), 2):
        if kind(one) == kind(other):
            changed = {**small.objects, one: small.objects[other], other: small.objects[one]}
            outcome = judge(changed, host_for(small, tmp_path, warm), small, tmp_path)
            assert told(outcome, one, small, warm) and told(outcome, other, small, warm), f"{one} and {other}"


def test_every_object_under_anothers_name(small: Small, tmp_path: Path, warm: bool) -> None:
    """Also across kinds: a pack where a commit should be, the marker as a key slot."""
    for one, other in itertools.permutations(sorted(small.objects), 2):
        changed = {**small.objects, one: small.objects[other]}
        outcome = judge(changed, host_for(small, tmp_path, warm), small, tmp_path)
        assert told(outcome, one, small, warm), f"{other} as {one}"


def other_names(name: str) -> Iterator[str]:
    """Valid names of the same form that nobody has."""
    if name.startswith("p/"):
        yield "p/00/" + "00" * 32
    elif name.startswith("w/"):
        _, writer, commit = name.split("/")
        seq, sha256 = commit.split("-")
        yield f"w/{writer}/{int(seq, 16) + 1:016x}-{sha256}"
        yield f"w/{writer}/{seq}-{hashlib.sha256(b'x').hexdigest()}"
        yield f"w/{'ab' * 16}/{commit}"
    elif name.startswith("keys/"):
        yield "keys/00000000"


def test_every_object_duplicated_under_another_name(small: Small, tmp_path: Path, warm: bool) -> None:
    for name, content in small.objects.items():
        for other in other_names(name):
            changed = {**small.objects, other: content}
            outcome = judge(changed, host_for(small, tmp_path, warm), small, tmp_path)
            assert told(outcome, other, small, warm), f"{name} again as {other}"
            assert not outcome.failed, f"{name} again as {other} keeps {outcome.failed} from being restored"


def test_objects_that_belong_to_nothing_are_harmless(small: Small, tmp_path: Path, warm: bool) -> None:
    junk = {"foo": b"x", "p/00/11": b"x", "w/readme": b"", "i/x": b"", "tmp/x": b"", "p/zz": b"", "keys/x": b"x"}
    for name, content in junk.items():
        outcome = judge({**small.objects, name: content}, host_for(small, tmp_path, warm), small, tmp_path)
        assert not outcome.refused and not outcome.failed, name


def test_objects_of_another_repository(small: Small, tmp_path: Path, warm: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        (tmp_path / "foreign").mkdir()
        foreign = build(tmp_path / "foreign", patch)
    for name, content in foreign.objects.items():
        if name in small.objects:
            changed = {**small.objects, name: content}
        elif name.startswith("tmp/"):
            continue
        else:
            changed = {**small.objects, name: content}
            added = judge(changed, host_for(small, tmp_path, warm), small, tmp_path)
            assert told(added, name, small, warm) and not added.failed, f"{name} added"
            continue
        if content != small.objects[name]:
            assert judge(changed, host_for(small, tmp_path, warm), small, tmp_path).noticed, f"{name} replaced"
    for mine in small.objects:
        theirs = next(content for name, content in foreign.objects.items() if kind(name) == kind(mine))
        if theirs != small.objects[mine]:
            changed = {**small.objects, mine: theirs}
            replaced = judge(changed, host_for(small, tmp_path, warm), small, tmp_path)
            assert told(replaced, mine, small, warm), f"{mine} replaced"


def test_an_older_state_shows_older_snapshots_or_is_refused(small: Small, tmp_path: Path) -> None:
    for age in small.ages[:-1]:
        fresh = judge(age, host_for(small, tmp_path, False), small, tmp_path)
        assert not fresh.noticed and not fresh.failed, "an older state is a sound repository"
        assert history_is_refused(age, small, tmp_path, True), "a host that knows better"
        remembering = judge(age, host_for(small, tmp_path, True), small, tmp_path)
        assert remembering.listed == fresh.listed and not remembering.failed


def test_memory_stays_bounded_when_lengths_lie(small: Small, tmp_path: Path) -> None:
    """Every four bytes that could be a length become huge ones; nothing may be reserved for them."""
    tracemalloc.start()
    try:
        for name, content in small.objects.items():
            for offset in [*range(0, min(80, len(content) - 4), 4), len(content) - 4]:
                changed = {**small.objects, name: content[:offset] + b"\xff\xff\xff\x7f" + content[offset + 4 :]}
                judge(changed, host_for(small, tmp_path, False), small, tmp_path, restores=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 48 * 1024 * 1024, f"{peak >> 20} MiB"


def test_a_run_after_damage_to_packs_heals_what_the_source_still_has(small: Small, tmp_path: Path) -> None:
    disk = sparse(50 * CHUNK + 77, {0: b"a", 1: b"B", 40: b"c"})
    for name in [name for name in small.objects if name.startswith("p/")]:
        store = MemoryStore({other: content for other, content in small.objects.items() if other != name})
        host = host_for(small, tmp_path, True)
        result = backup(store, host, disk)
        assert result.complete
        with Repository.open(store, SECRET, host) as repo:
            chosen = select(repo, [f"disk@{result.snapshot}"])[0]
            assert restored(repo, chosen, tmp_path / "healed.img") == disk.content, name
        with Repository.open(store, SECRET, host_for(small, tmp_path, False)) as repo:
            chosen = select(repo, [f"disk@{result.snapshot}"])[0]
            assert restored(repo, chosen, tmp_path / "healed.img") == disk.content, name


def test_undamaged_copies_stay_sound_for_every_reader(small: Small, tmp_path: Path) -> None:

    check_sound(MemoryStore(small.objects), host_for(small, tmp_path, True), Truth(small.truth.volumes), tmp_path)
