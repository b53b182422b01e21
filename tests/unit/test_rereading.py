"""Reading bad addresses again: what clears them, what does not, and what the map makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamella.base.errors import StoreError, StoreUnavailable
from lamella.base.ids import ChunkId
from lamella.base.names import pack_name
from lamella.base.trust import Clear
from lamella.format.container import Kind
from lamella.format.lost import Address
from lamella.operations.shared.rereading import Reread, reread
from lamella.repository.repository import Repository
from lamella.stores.base import Store
from lamella.stores.memory import MemoryStore
from lamella_kit.fault_store import FaultStore
from tests.unit.small_repository import Small, image

NOBODY = ChunkId(b"n" * 24)
HEAD = ChunkId(bytes(24))


@pytest.fixture
def small(tmp_path: Path) -> Small:
    """Two packs with chunks: abc, and d."""
    small = Small.make(tmp_path)
    small.backup(image(tmp_path / "disk.img", "abc"))
    small.backup(image(tmp_path / "disk.img", "abcd"))
    return small


def these(*addresses: Address) -> frozenset[Address]:
    return frozenset(addresses)


def chunks(repo: Repository) -> list[list[Address]]:
    """The addresses of chunks, pack by pack, in the order in which they lie; the pack with the most first."""
    repo.refresh_map()
    found = []
    for entry in repo.blobs.packs():
        pack = bytes.fromhex(entry.name[-64:])
        directory = repo.blobs.directory(pack)
        assert directory is not None
        found.append([Address(pack, blob.kind, blob.id) for blob in directory.blobs if blob.kind == Kind.CHUNK])
    return sorted(found, key=len, reverse=True)


def length_of(repo: Repository, one: Address) -> int:
    (place,) = repo.blobs.find(one.kind, one.id)
    return place.blob.sealed_length


def changed(small: Small, one: Address, at: int | None) -> MemoryStore:
    """The store with a flipped byte: at this position of the pack, or (None) amid the blob at the address."""
    with small.opened() as repo:
        repo.refresh_map()
        (place,) = repo.blobs.find(one.kind, one.id)
    name = pack_name(one.pack)
    objects = small.store.objects()
    content = bytearray(objects[name])
    content[place.blob.offset + place.blob.sealed_length // 2 if at is None else at] ^= 1
    objects[name] = Clear(bytes(content))
    return MemoryStore(objects)


def known(repo: Repository, one: Address) -> bool:
    """Whether the map has the place."""
    return any(place.pack == one.pack for place in repo.blobs.find(one.kind, one.id))


def again(small: Small, store: Store, addresses: list[Address], budget: int = 1 << 30) -> tuple[Reread, list[bool]]:
    """What reading again shows, and of each address whether the map has its place afterwards."""
    with small.opened(store=store) as repo:
        repo.refresh_map()
        found = reread(repo, addresses, budget)
        return found, [known(repo, one) for one in addresses]


def test_what_opens_is_sound_and_comes_back_into_the_map(small: Small) -> None:
    with small.opened() as repo:
        (a, b, c), (d,) = chunks(repo)
        repo.suspects.mark(a.pack, [(one.kind, one.id) for one in (a, b)])
        repo.suspects.mark(d.pack, [(d.kind, d.id)])
        assert not known(repo, a)
        found = reread(repo, [a, d], 1 << 30)
        assert found == Reread(these(), these(), these(a, d), found.read_bytes)
        assert found.read_bytes == length_of(repo, a) + length_of(repo, d)
        assert [known(repo, one) for one in (a, b, c, d)] == [True, False, True, True]


def test_what_does_not_open_is_bad_and_goes_out_of_the_map(small: Small) -> None:
    with small.opened() as repo:
        (a, b, _), (d,) = chunks(repo)
    found, there = again(small, changed(small, b, None), [a, b, d])
    assert (found.bad, found.sound, found.unread) == (these(b), these(a, d), these())
    assert found.reasons.keys() == {b}
    assert there == [True, False, True]


def test_a_head_is_read_from_the_store_and_condemns_the_pack(small: Small) -> None:
    with small.opened() as repo:
        (a, b, c), (d,) = chunks(repo)
    head = Address(a.pack, Kind.DIRECTORY, HEAD)
    store = changed(small, a, 80)
    found, there = again(small, store, [head, a, d])
    assert (found.bad, found.sound) == (these(head, a), these(d))
    assert there == [False, False, True]
    with small.opened(store=store) as repo:
        repo.refresh_map()
        assert not any(known(repo, one) for one in (a, b, c)), "nothing may rely on a pack that others cannot open"
    found, there = again(small, small.store, [head])
    assert found.sound == {head}
    found, there = again(small, small.store, [a, b, c])
    assert (found.sound, there) == (these(a, b, c), [True, True, True])


def test_an_absent_pack_is_bad(small: Small) -> None:
    with small.opened() as repo:
        (a, *_), (d,) = chunks(repo)
    store = MemoryStore(small.store.objects())
    store.delete(pack_name(d.pack))
    found, _ = again(small, store, [a, d])
    assert (found.bad, found.sound) == (these(d), these(a))


def test_what_no_head_names_endangers_nothing(small: Small) -> None:
    with small.opened() as repo:
        (a, *_), _ = chunks(repo)
    odd = Address(a.pack, Kind.CHUNK, NOBODY)
    assert again(small, small.store, [odd])[0] == Reread(these(), these(), these(odd), 0)


@pytest.mark.parametrize("enough_for", [0, 1, 2, 3])
def test_the_budget_ends_the_reading(small: Small, enough_for: int) -> None:
    with small.opened() as repo:
        rows, _ = chunks(repo)
        lengths = [length_of(repo, one) for one in rows]
    found, _ = again(small, small.store, rows, sum(lengths[:enough_for]))
    assert (found.sound, found.unread) == (these(*rows[:enough_for]), these(*rows[enough_for:]))
    assert found.read_bytes == sum(lengths[:enough_for])


def test_a_bad_moment_is_no_verdict_but_an_error_for_good_is(small: Small) -> None:
    with small.opened() as repo:
        _, (d,) = chunks(repo)
    for error, retryable in ((StoreUnavailable("a bad moment"), True), (StoreError("input/output error"), False)):
        store = FaultStore(small.store)
        with small.opened(store=store) as repo:
            repo.refresh_map()
            store.fail("get", error)
            found = reread(repo, [d], 1 << 30)
            assert (found.unread, found.bad) == ((these(d), these()) if retryable else (these(), these(d)))
            assert bool(repo.suspects.packs()) is not retryable
            assert known(repo, d) is retryable
            repo.suspects.clear(d.pack)


def test_a_flood_of_packs_ends_the_reading_of_heads(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamella.operations.shared.rereading.MOST_HEADS", 1)
    with small.opened() as repo:
        (a, *_), (d,) = chunks(repo)
    first, second = sorted([a, d])
    found, _ = again(small, small.store, [a, d])
    assert (found.sound, found.unread) == (these(first), these(second))
    with small.opened() as repo:
        assert reread(repo, [a, d]).sound == these(a, d), "without a budget all is read"
