"""The power goes at every store call of init, two backups and a restore, and any subset of un-synced writes is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError, NoRepository
from lamella.memory.host import Host
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.repository.slots import read_marker
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
    restored,
    short_rescue,
    volume,
)

FIRST = b"1" * CHUNK + b"2" * CHUNK + bytes(CHUNK) + b"end"
SECOND = b"1" * CHUNK + b"X" * CHUNK + b"Y" * CHUNK + b"end"
THIRD = b"Z" * CHUNK + SECOND[CHUNK:]


@dataclass
class Story:
    """One machine's life up to the crash, and what it may rely on."""

    place: Path
    truth: Truth = field(default_factory=Truth)
    initialised: bool = False

    @property
    def host(self) -> Host:
        return host_at(self.place)

    def live(self, store: Store) -> None:
        """init, backup, backup with a change, restore."""
        init(store, self.host)
        self.initialised = True
        for content in (FIRST, SECOND):
            self.truth.learn(backup(store, self.host, volume(content)), {"disk": content})
        with Repository.open(store, SECRET, self.host) as repo:
            assert restored(repo, select(repo, ["disk"])[0], self.place / "out.img") == SECOND


def stories(place: Path, counted: frozenset[str]) -> Iterator[tuple[CrashStore, Story]]:
    """The same life, ended at each of its store calls, before and after the effect."""
    whole = CrashStore(counted=counted)
    Story(place / "whole").live(whole)
    assert {method for method, _ in whole.log} == set(counted) - {"delete"}
    for point in crash_points(whole.calls):
        yield ended_at(place, point, counted)


def ended_at(place: Path, point: CrashPoint, counted: frozenset[str]) -> tuple[CrashStore, Story]:
    story = Story(place / f"{point.call}-{point.after_effect}")
    store = CrashStore(point=point, counted=counted)
    with pytest.raises(PowerCut):
        story.live(store)
    return store, story


def next_run_works(left: MemoryStore, host: Host, story: Story, scratch: Path) -> None:
    """Whatever the crash left: what was committed restores, and the next run needs no hand."""
    truth = Truth(dict(story.truth.volumes))
    try:
        read_marker(left)
    except NoRepository:
        assert not story.initialised, "init returned, and its repository is gone"
        init(left, host)
    check_sound(left.connect(), host, truth, scratch, others=(FIRST, SECOND))
    truth.learn(backup(left.connect(), host, volume(THIRD)), {"disk": THIRD})
    check_sound(left.connect(), host, truth, scratch, others=(FIRST, SECOND))
    check_sound(left.connect(), fresh_host(scratch / "fresh"), truth, scratch, others=(FIRST, SECOND))


Choice = Callable[[int], Iterator[frozenset[int]]]


def none_or_all(count: int) -> Iterator[frozenset[int]]:
    yield from dict.fromkeys((frozenset[int](), frozenset(range(count))))


@pytest.mark.parametrize(
    ("counted", "choice"),
    [(WRITING_CALLS, subsets), pytest.param(ALL_CALLS, none_or_all, marks=pytest.mark.slow)],
    ids=["writing calls, any subset lost", "all calls, none or all lost"],
)
def test_power_cut_at_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: frozenset[str], choice: Choice
) -> None:
    cases = 0
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with short_rescue(monkeypatch):
        for store, story in stories(tmp_path / "lives", counted):
            for surviving in choice(len(store.unsynced)):
                # The host that crashed goes on with its state and cache; another one knows nothing.
                survivor = scratch / "survivor"
                shutil.rmtree(survivor, ignore_errors=True)
                if story.place.exists():
                    shutil.copytree(story.place, survivor)
                next_run_works(store.after_crash(surviving), host_at(survivor), story, scratch)
                next_run_works(store.after_crash(surviving), fresh_host(scratch / "new", "one"), story, scratch)
                cases += 1
    assert cases > 40


def test_what_a_crash_leaves_is_restored_by_the_emergency_reader_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = 0
    with short_rescue(monkeypatch):
        for store, story in stories(tmp_path / "lives", WRITING_CALLS):
            if not story.truth.volumes:
                continue
            for surviving in none_or_all(len(store.unsynced)):
                check_rescue(store.after_crash(surviving).objects(), story.truth, tmp_path)
                checked += 1
    assert checked > 5


@pytest.mark.slow
def test_init_ended_at_every_call_leaves_nothing_in_the_way_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the second init is ended: leftovers of both must neither stay nor be believed."""
    with short_rescue(monkeypatch):
        left = [
            objects
            for first in lefts_of_init({}, tmp_path / "first")
            for objects in (first, *lefts_of_init(first, tmp_path / "second"))
        ]
        assert len(left) > 100
        for number, objects in enumerate(left):
            check_init(objects, tmp_path, number)


def lefts_of_init(objects: dict[str, bytes], place: Path) -> list[dict[str, bytes]]:
    """What an init on top of `objects` leaves when it is ended at each of its writing calls. No repeats by names."""
    whole = CrashStore(objects)
    try:
        init(whole, host_at(place))
    except LamellaError:
        return []
    found: dict[frozenset[str], dict[str, bytes]] = {}
    for point in crash_points(whole.calls):
        store = CrashStore(objects, point)
        with pytest.raises(PowerCut):
            init(store, host_at(place))
        for surviving in subsets(len(store.unsynced), every_up_to=5, random_subsets=3):
            remains = store.after_crash(surviving).objects()
            found.setdefault(frozenset(kind_of(name, objects) for name in remains), remains)
    return list(found.values())


def kind_of(name: str, older: dict[str, bytes]) -> str:
    """Random names differ from run to run; what matters is which object it is, and of which init."""
    return f"{name.split('/')[0]} {'old' if name in older else 'new'}"


def check_init(objects: dict[str, bytes], tmp_path: Path, number: int) -> None:
    store = MemoryStore(objects)
    host = host_at(tmp_path / f"init-{number}")
    if "lamella" not in objects:
        init(store, host)
    truth = Truth()
    truth.learn(backup(store, host, volume(FIRST)), {"disk": FIRST})
    with Repository.open(store, SECRET, host) as repo:
        assert not repo.problems and not repo.catalogue.notes and not repo.history.damaged
    check_sound(store, host, truth, tmp_path)
    names = [name for name in store.objects() if not name.startswith("p/")]
    kinds = sorted(name.split("/")[0] for name in names)
    assert kinds == ["keys", "lamella", "readme.txt", "restore.py", "w", "w"], names
