"""The power goes at every store call of a prune that deletes and rewrites, and any part of what was not synced is lost.

What stays restores with both readers, the next prune finishes the work without more of it, and nothing is left over.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest

from lamella.format.records import Ref
from lamella.memory.host import Host
from lamella.operations.prune.plan import PruneOptions, PruneResult
from lamella.operations.prune.prune import run_prune
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.stores.base import Store
from lamella.stores.memory import MemoryStore
from lamella_kit.crash_store import ALL_CALLS, WRITING_CALLS, CrashPoint, CrashStore, PowerCut, crash_points
from lamella_kit.crash_store import surviving_subsets as subsets
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

OLDEST = random.Random(1).randbytes(9 * CHUNK)
OLD = random.Random(2).randbytes(14 * CHUNK)
NEW = OLD[: 3 * CHUNK] + random.Random(3).randbytes(6 * CHUNK)
OTHER = random.Random(4).randbytes(2 * CHUNK)
GONE = (OLDEST, OLD)
NOTHING_UNUSED = PruneOptions(max_unused=0)


@dataclass
class Start:
    """A repository before the prune: its objects, the host's memory, what must stay and what is to be removed."""

    objects: dict[str, bytes]
    place: Path
    truth: Truth
    removals: list[Ref]

    def host(self, place: Path) -> Host:
        """A copy of the host as it is before the prune."""
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.place, place)
        return host_at(place)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    store, place, truth = MemoryStore(), tmp_path / "start", Truth()
    with short_rescue(monkeypatch):
        init(store, host_at(place))
    for content in GONE:
        backup(store, host_at(place), volume(content))
    truth.learn(backup(store, host_at(place), volume(NEW)), {"disk": NEW})
    truth.learn(backup(store, host_at(place), volume(OTHER, "other")), {"other": OTHER})
    with Repository.open(store, SECRET, host_at(place)) as repo:
        removals = [one.snapshot.ref for one in select(repo, []) if one.text not in truth.volumes]
    assert len(removals) == 2
    return Start(store.objects(), place, truth, removals)


def prune(store: Store, host: Host, removals: list[Ref], options: PruneOptions = NOTHING_UNUSED) -> PruneResult:
    with Repository.open(store, SECRET, host, exclusive=True) as repo:
        return run_prune(repo, removals, options)


def size(objects: dict[str, bytes]) -> int:
    return sum(len(content) for name, content in objects.items() if name.startswith("p/"))


def stories(start: Start, place: Path, counted: frozenset[str]) -> Iterator[tuple[CrashStore, Path]]:
    """The same prune, ended at each of its store calls, before and after the effect."""
    whole = CrashStore(start.objects, counted=counted)
    result = prune(whole, start.host(place / "whole"), start.removals)
    assert result.deleted_packs >= 2 and result.repacked_bytes > 3 * CHUNK, "it deletes and rewrites"
    assert set(counted) <= {method for method, _ in whole.log}
    # Reading changes nothing: of these many moments a third is enough.
    every = 1 if counted == WRITING_CALLS else 3
    for point in islice(crash_points(whole.calls), 0, None, every):
        host = start.host(place / "crashed")
        store = CrashStore(start.objects, point, counted=counted)
        with pytest.raises(PowerCut):
            prune(store, host, start.removals)
        yield store, place / "crashed"


Choice = Callable[[int], Iterator[frozenset[int]]]


def none_or_all(count: int) -> Iterator[frozenset[int]]:
    yield from dict.fromkeys((frozenset[int](), frozenset(range(count))))


@pytest.mark.parametrize(
    ("counted", "choice"),
    [(WRITING_CALLS, subsets), (ALL_CALLS, none_or_all)],
    ids=["writing calls, any subset lost", "all calls, none or all lost"],
)
def test_power_cut_at_every_call(tmp_path: Path, start: Start, counted: frozenset[str], choice: Choice) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    cases = 0
    for store, crashed in stories(start, tmp_path, counted):
        for surviving in choice(len(store.unsynced)):
            left = store.after_crash(surviving)
            check_sound(left.connect(), fresh_host(scratch / "fresh"), start.truth, scratch, others=GONE)
            host = host_at(shutil.copytree(crashed, scratch / "survivor"))
            went_on(left, host, start, scratch)
            shutil.rmtree(scratch / "survivor")
            cases += 1
    assert cases > 20


def went_on(left: MemoryStore, host: Host, start: Start, scratch: Path) -> None:
    """The next prune ends the work; then there is nothing left to do and nothing left over."""
    result = prune(left.connect(), host, start.removals)
    assert not result.blocked
    check_sound(left.connect(), host, start.truth, scratch)
    least = size(left.objects())
    again = prune(left.connect(), fresh_host(scratch / "other"), [])
    assert (again.deleted_packs, again.repacked_bytes, size(left.objects())) == (0, 0, least), "it ends"
    assert least < 12 * CHUNK, "three chunks were kept, eight are new"


def test_what_a_crash_leaves_is_restored_by_the_emergency_reader_too(tmp_path: Path, start: Start) -> None:
    checked = 0
    for store, _ in stories(start, tmp_path, WRITING_CALLS):
        for surviving in none_or_all(len(store.unsynced)):
            check_rescue(store.after_crash(surviving).objects(), start.truth, tmp_path)
            checked += 1
    assert checked > 20


def test_a_prune_killed_again_and_again_never_makes_work_grow(tmp_path: Path, start: Start) -> None:
    """Killed at its n-th call, then at the next prune's n-th call, and so on: space and work stay bounded."""
    whole = CrashStore(start.objects)
    once = prune(whole, start.host(tmp_path / "whole"), start.removals)
    for call in range(1, whole.calls + 1):
        host = start.host(tmp_path / "host")
        objects = dict(start.objects)
        most = 0
        for _ in range(6):
            store = CrashStore(objects, CrashPoint(call, after_effect=True))
            try:
                prune(store, host, start.removals)
            except PowerCut:
                objects = store.after_crash(range(len(store.unsynced))).objects()
            else:
                objects = store.after_crash(()).objects()
                break
            most = max(most, size(objects))
        assert most <= size(start.objects) + 6 * CHUNK, f"killed at call {call}: space grows"
        left = MemoryStore(objects)
        last = prune(left.connect(), host, start.removals)
        assert last.repacked_bytes <= once.repacked_bytes
        check_sound(left, host, start.truth, tmp_path)
        assert size(left.objects()) < 12 * CHUNK
