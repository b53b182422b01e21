"""Listings that fail, come back empty, stop early or repeat: never taken for an empty repository."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError, StoreError, StoreUnavailable
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.stores.base import Entry
from lamella.stores.memory import MemoryStore
from lamella_kit.fault_store import FaultStore
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
    volume,
)

FIRST = b"1" * CHUNK + b"2" * CHUNK + b"end"
SECOND = b"1" * CHUNK + b"3" * CHUNK + b"end"
Bend = Callable[[list[Entry]], Iterator[Entry]]


class BentStore(FaultStore):
    """Listings of one prefix (and of what is below and above it) go through `bend` while `on`."""

    def __init__(self, inner: MemoryStore, prefix: str, bend: Bend) -> None:
        super().__init__(inner)
        self._prefix = prefix
        self._bend = bend
        self.on = True
        self.bent = 0

    def list(self, prefix: str) -> Iterator[Entry]:
        entries = list(super().list(prefix))
        if not self.on or not prefix.startswith(self._prefix):
            return iter(entries)
        self.bent += 1
        return self._bend(entries)


def empty(entries: list[Entry]) -> Iterator[Entry]:
    return iter(())


def first_half(entries: list[Entry]) -> Iterator[Entry]:
    return itertools.islice(entries, len(entries) // 2)


def last_half(entries: list[Entry]) -> Iterator[Entry]:
    return itertools.islice(entries, len(entries) // 2, None)


def repeated(entries: list[Entry]) -> Iterator[Entry]:
    return itertools.chain(entries, reversed(entries))


def fails_at_once(entries: list[Entry]) -> Iterator[Entry]:
    raise StoreUnavailable("the listing did not come")


def fails_later(entries: list[Entry]) -> Iterator[Entry]:
    yield from entries[: len(entries) // 2]
    raise StoreError("the listing broke off")


def wrong_sizes(entries: list[Entry]) -> Iterator[Entry]:
    for entry in entries:
        yield Entry(entry.name, entry.size + 1)


BENDS: list[Bend] = [empty, first_half, last_half, repeated, fails_at_once, fails_later, wrong_sizes]


@dataclass
class Place:
    store: MemoryStore = field(default_factory=MemoryStore)
    truth: Truth = field(default_factory=Truth)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made, host = Place(), host_at(tmp_path / "host")
    init(made.store, host)
    for content in (FIRST, SECOND):
        made.truth.learn(backup(made.store, host, volume(content)), {"disk": content})
    return made


def commits(store: MemoryStore) -> set[str]:
    return {name for name in store.objects() if name.startswith("w/")}


@pytest.mark.parametrize("known", [True, False], ids=["known host", "stranger"])
@pytest.mark.parametrize("prefix", ["p/", "w/", "keys/"])
@pytest.mark.parametrize("bend", BENDS)
def test_a_bent_listing(place: Place, tmp_path: Path, prefix: str, bend: Bend, known: bool) -> None:
    host = host_at(tmp_path / "host") if known else fresh_host(tmp_path / "other")
    store = BentStore(place.store, prefix, bend)
    before = commits(place.store)
    try:
        with Repository.open(store, SECRET, host) as repo:
            for one in select(repo, []):
                try:
                    assert restored(repo, one, tmp_path / "out.img") == place.truth.volumes[one.text]
                except LamellaError:
                    for left in tmp_path.glob("out.img*"):
                        left.unlink()
    except LamellaError:
        pass
    third = b"9" * CHUNK + SECOND[CHUNK:]
    truth = Truth(dict(place.truth.volumes))
    try:
        # A stranger knows the volume by another identity than its own only if it saw the history.
        truth.learn(backup(store, host, volume(third)), {"disk": third})
    except LamellaError:
        # That its own commit is not listed a run can notice only when it has been put.
        assert commits(place.store) == before or prefix == "w/", "nothing is committed by a run that failed"
    assert store.bent
    store.on = False
    check_sound(store, fresh_host(tmp_path / "fresh"), truth, tmp_path, others=(third,))
    # And the host that saw the bent listing goes on by itself.
    last = b"L" * CHUNK + SECOND[CHUNK:]
    truth.learn(backup(store, host, volume(last)), {"disk": last})
    check_sound(store, host, truth, tmp_path, others=(third,))
    with Repository.open(place.store, SECRET, host) as repo:
        # A stranger that was shown no volume made one of its own: who owns neither must write the full name.
        plain = {
            f"{one.volume.name}~{one.volume.volume_id.hex()[:4]}@{one.snapshot.name}": (
                f"{one.volume.name}@{one.snapshot.name}"
            )
            for one in select(repo, [])
        }
    shown = {text: truth.volumes[name] for text, name in plain.items() if name in truth.volumes}
    check_rescue(place.store.objects(), Truth(shown), tmp_path)


@pytest.mark.parametrize("prefix", ["w/", "keys/"])
def test_an_empty_listing_is_an_error_for_everybody(place: Place, tmp_path: Path, prefix: str) -> None:
    for host in (host_at(tmp_path / "host"), fresh_host(tmp_path / "other")):
        with pytest.raises(LamellaError):
            backup(BentStore(place.store, prefix, empty), host, volume(FIRST))


def test_no_packs_listed_is_an_error_for_everybody(place: Place, tmp_path: Path) -> None:
    before = commits(place.store)
    for host in (host_at(tmp_path / "host"), fresh_host(tmp_path / "other")):
        with pytest.raises(LamellaError, match="lists no packs"):
            backup(BentStore(place.store, "p/", empty), host, volume(FIRST))
        with (
            Repository.open(BentStore(place.store, "p/", empty), SECRET, host) as repo,
            pytest.raises(LamellaError, match="lists no packs"),
        ):
            restored(repo, select(repo, [])[0], tmp_path / "out.img")
    assert commits(place.store) == before


def test_init_does_not_trust_an_empty_listing(place: Place, tmp_path: Path) -> None:
    before = place.store.objects()
    with pytest.raises(LamellaError, match="already a repository"):
        init(BentStore(place.store, "", empty), host_at(tmp_path / "new"))
    assert place.store.objects() == before


def test_one_unreadable_object_does_not_stand_in_the_way_of_the_others(place: Place, tmp_path: Path) -> None:
    """A bad sector below one pack or commit, seen by a host that knows nothing."""
    for name in place.store.objects():
        if not name.startswith(("p/", "w/")):
            continue

        class Unreadable(FaultStore):
            def get(self, wanted: str, offset: int = 0, length: int | None = None, bad: str = name) -> bytes:
                if wanted == bad:
                    raise StoreError("input/output error", obj=wanted)
                return super().get(wanted, offset, length)

        good = 0
        with Repository.open(Unreadable(place.store), SECRET, fresh_host(tmp_path / "other")) as repo:
            for one in select(repo, []):
                try:
                    assert restored(repo, one, tmp_path / "out.img") in place.truth.volumes.values()
                    good += 1
                except LamellaError:
                    for left in tmp_path.glob("out.img*"):
                        left.unlink()
        packs = [other for other in place.store.objects() if other.startswith("p/")]
        assert good >= 1 or name in packs, f"{name} alone makes everything unreadable"
