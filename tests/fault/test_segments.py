"""A run that writes an index segment, ended at any moment; and readers that meet one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.base.errors import StoreFull
from lamella.base.trust import Clear, Sealed
from lamella.packs import blobmap
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from lamella_kit.crash_store import WRITING_CALLS, surviving_subsets
from lamella_kit.fault_store import FaultStore
from tests.fault.test_crash import FIRST, SECOND, next_run_works, stories
from tests.fault.world import (
    SECRET,
    Truth,
    backup,
    check_rescue,
    check_sound,
    fresh_host,
    host_at,
    init,
    short_rescue,
    verified,
    volume,
)


@pytest.fixture(autouse=True)
def _always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments from the first pack on, written and read."""
    monkeypatch.setattr(blobmap, "WORTH_WRITING", 0)
    monkeypatch.setattr(blobmap, "WORTH_READING", 1)


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[tuple[MemoryStore, Truth]]:
    """A repository of two snapshots with its segments."""
    store, truth = MemoryStore(), Truth()
    init(store, host_at(tmp_path / "one"))
    for content in (FIRST, SECOND):
        truth.learn(backup(store, host_at(tmp_path / "one"), volume(content)), {"disk": content})
    assert sum(name.startswith("i/") for name in store.objects()) == 2
    yield store, truth


def test_power_cut_at_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    met = 0
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with short_rescue(monkeypatch):
        for number, (store, story) in enumerate(stories(tmp_path / "lives", WRITING_CALLS)):
            if not any(name.startswith("i/") for _, name in store.log):
                continue
            for surviving in surviving_subsets(len(store.unsynced), every_up_to=3, random_subsets=2):
                left = store.after_crash(surviving)
                next_run_works(left, fresh_host(scratch / f"new-{number}", "one"), story, scratch)
                met += 1
    assert met > 10


def test_verification_has_nothing_to_say_of_segments(saved: tuple[MemoryStore, Truth], tmp_path: Path) -> None:
    with Repository.open(saved[0], SECRET, host_at(tmp_path / "one")) as repo:
        assert verified(repo).findings == []


def test_the_emergency_reader_ignores_segments(saved: tuple[MemoryStore, Truth], tmp_path: Path) -> None:
    store, truth = saved
    names = [name for name in store.objects() if name.startswith("i/")]
    junk = {name: b"junk" for name in names} | {"i/" + "00" * 32: b"", "i/other": b"x"}
    check_rescue({**store.objects(), **junk}, truth, tmp_path)


def test_lost_and_damaged_segments_change_nothing(saved: tuple[MemoryStore, Truth], tmp_path: Path) -> None:
    store, truth = saved
    for name in [name for name in store.objects() if name.startswith("i/")]:
        content = store.objects()[name]
        store.delete(name)
        check_sound(store, fresh_host(tmp_path / "without", name[2:8]), truth, tmp_path)
        store.put(name, Sealed(content[:-1] + b"?"))
        check_sound(store, fresh_host(tmp_path / "damaged", name[2:8]), truth, tmp_path)


def test_a_run_whose_segment_cannot_be_written_is_complete(tmp_path: Path) -> None:
    memory = MemoryStore()
    init(memory, host_at(tmp_path / "one"))

    class NoSegments(FaultStore):
        def put(self, name: str, content: Sealed | Clear) -> None:
            if name.startswith("i/"):
                raise StoreFull("no space left", obj=name)
            super().put(name, content)

    result = backup(NoSegments(memory), host_at(tmp_path / "one"), volume(FIRST))
    assert result.complete
    assert [text for text in result.warnings if "index" in text]
