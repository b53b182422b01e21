"""A snapshot read at any offset: the same bytes as the source, damage where it is, memory within bounds."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamella.base.errors import IntegrityError, StoreError, StoreUnavailable
from lamella.base.ids import ChunkId
from lamella.base.names import pack_name
from lamella.base.trust import Sealed
from lamella.format.container import Kind
from lamella.operations.access import decoded
from lamella.operations.access.view import PIECE, Reading, SnapshotView
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from tests.unit.small_repository import CHUNK, Small, data, image

LETTERS = "ab..c0d" + "." * 70 + "efg0" + "h" * 3
TAIL = 1000
SECONDS = 30


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    small = Small.make(tmp_path_factory.mktemp("view"))
    small.backup(image(small.place / "disk.img", LETTERS, tail=TAIL))
    return small


@pytest.fixture(scope="module")
def content(small: Small) -> bytes:
    return (small.place / "disk.img").read_bytes()


@pytest.fixture
def repo(small: Small) -> Iterator[Repository]:
    with small.opened() as repo:
        yield repo


@pytest.fixture
def view(repo: Repository) -> Iterator[SnapshotView]:
    reading = Reading(repo)
    yield reading.view(select(repo, ["disk"])[0])
    reading.close()


class Counting(MemoryStore):
    """Remembers how many bytes of packs were read; `hold` makes readers wait, `away` makes the store vanish."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner.objects())
        self.reads: list[tuple[str, int]] = []
        self.hold = threading.Event()
        self.hold.set()
        self.away = False

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if name.startswith("p/"):
            self.hold.wait(SECONDS)
        if self.away:
            raise StoreUnavailable("gone", obj=name)
        self.reads.append((name, offset))
        return super().get(name, offset, length)

    def stat(self, name: str) -> int:
        if self.away:
            raise StoreUnavailable("gone", obj=name)
        return super().stat(name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, len(LETTERS) * CHUNK + TAIL + CHUNK),
    st.sampled_from([0, 1, 511, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, PIECE, 3 * PIECE + 5]),
)
def test_any_range_reads_like_the_source(view: SnapshotView, content: bytes, offset: int, length: int) -> None:
    assert view.size == len(content)
    assert view.read(offset, length) == content[offset : offset + length]


def test_extents_say_what_each_chunk_of_the_source_is_and_cover_the_volume(small: Small, content: bytes) -> None:
    store = Counting(small.store)
    with small.opened(store=store) as repo:
        view = Reading(repo).view(select(repo, ["disk"])[0])
        store.reads.clear()
        chunks = {place.blob.offset for id_ in _ids(repo) for place in repo.blobs.find(Kind.CHUNK, id_)}
        stretches = view.extents(0, view.size)
        assert not {offset for _, offset in store.reads} & chunks, "a chunk was read to say what is where"
        assert sum(stretch.length for stretch in stretches) == view.size
        at = 0
        for stretch in stretches:
            letters = set((LETTERS + "~")[at // CHUNK : -(-(at + stretch.length) // CHUNK)])
            assert stretch.hole == (letters == {"."}), (at, stretch, letters)
            assert stretch.zero == (letters <= set(".0")), (at, stretch, letters)
            assert not stretch.zero or not any(content[at : at + stretch.length])
            at += stretch.length


@given(st.integers(0, len(LETTERS) * CHUNK), st.integers(1, 4 * CHUNK), st.integers(1, 3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_extents_of_a_part_are_a_part_of_the_extents(view: SnapshotView, offset: int, length: int, most: int) -> None:
    def kinds(start: int, count: int, limit: int | None = None) -> list[tuple[bool, bool]]:
        return [s[1:] for s in view.extents(start, count, limit) for _ in range(s.length)]

    whole = kinds(offset, length)
    assert len(whole) == min(length, view.size - offset)
    first = view.extents(offset, length, most)
    assert len(first) <= most
    part = kinds(offset, length, most)
    assert part == whole[: len(part)]
    assert len(first) == most or len(part) == len(whole)


def _ids(repo: Repository) -> list[ChunkId]:
    selected = select(repo, ["disk"])[0]
    repo.refresh_map()
    runs = repo.tree_reader(selected.snapshot.added.domain_id).runs(repo.tree(selected.snapshot))
    return [run.slot for run in runs if isinstance(run.slot, bytes)]


def test_a_damaged_chunk_fails_alone_and_is_named_until_it_is_repaired(small: Small, content: bytes) -> None:
    store = MemoryStore(small.store.objects())
    with small.opened(store=store) as repo:
        broken = _ids(repo)[1]
        place = repo.blobs.find(Kind.CHUNK, broken)[0]
        name = pack_name(place.pack)
        sound = store.get(name)
        spoiled = bytearray(sound)
        spoiled[place.blob.offset + 5] ^= 1
        store.delete(name)
        store.put(name, Sealed(bytes(spoiled)))
        reading = Reading(repo)
        view = reading.view(select(repo, ["disk"])[0])
        for _ in range(2):
            with pytest.raises(IntegrityError, match=broken.hex()[:16]):
                view.read(CHUNK - 10, 20)
            assert view.read(0, CHUNK) == content[:CHUNK], "the neighbour, read together with it, is sound"
            assert view.read(2 * CHUNK, 3 * CHUNK) == content[2 * CHUNK : 5 * CHUNK]
        told = len(repo.contents.bad_places)
        for _ in range(20):
            with pytest.raises(IntegrityError):
                view.read(CHUNK, 20)
        assert len(repo.contents.bad_places) <= told + 2, "asking again and again must not cost memory"
        store.delete(name)
        store.put(name, Sealed(sound))
        fresh = Reading(repo).view(select(repo, ["disk"])[0])
        assert fresh.read(CHUNK, CHUNK) == content[CHUNK : 2 * CHUNK]
        reading.close()


def test_a_damaged_node_that_is_asked_for_again_and_again_costs_no_memory(small: Small) -> None:
    store = MemoryStore(small.store.objects())
    with small.opened(store=store) as repo:
        view = Reading(repo).view(select(repo, ["disk"])[0])
        for name in {pack_name(repo.blobs.find(Kind.CHUNK, id_)[0].pack) for id_ in _ids(repo)}:
            store.delete(name)
        told: list[int] = []
        for _ in range(10):
            for call in (lambda: view.read(0, 10), lambda: view.extents(0, 10)):
                with pytest.raises(IntegrityError):
                    call()
            told.append(len(repo.contents.bad_places))
        assert told[-1] == told[0]


def test_damage_is_looked_at_again_after_its_time(
    small: Small, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore(small.store.objects())
    monkeypatch.setattr(decoded, "DAMAGE_SECONDS", -1.0)
    with small.opened(store=store) as repo:
        broken = _ids(repo)[0]
        name = pack_name(repo.blobs.find(Kind.CHUNK, broken)[0].pack)
        sound = store.get(name)
        view = Reading(repo).view(select(repo, ["disk"])[0])
        view.read(2 * CHUNK, 10)  # the leaf, which lies in the same pack
        store.delete(name)
        with pytest.raises(IntegrityError, match=broken.hex()[:16]):
            view.read(0, 10)
        store.put(name, Sealed(sound))
        assert view.read(0, CHUNK) == content[:CHUNK]


def test_a_store_that_vanishes_is_no_damage_and_its_return_is_noticed(small: Small, content: bytes) -> None:
    store = Counting(small.store)
    with small.opened(store=store) as repo:
        view = Reading(repo).view(select(repo, ["disk"])[0])
        store.away = True
        with pytest.raises(StoreError):
            view.read(0, 10)
        store.away = False
        assert view.read(0, 5 * CHUNK) == content[: 5 * CHUNK]


def test_the_cache_keeps_within_its_bytes_and_what_it_holds_is_not_read_again(small: Small, content: bytes) -> None:
    store = Counting(small.store)
    with small.opened(store=store) as repo:
        reading = Reading(repo, cache_bytes=3 * CHUNK)
        views = [reading.view(select(repo, ["disk"])[0]) for _ in range(3)]
        moves = random.Random(5)
        for _ in range(300):
            offset, length = moves.randrange(len(content)), moves.randrange(6 * CHUNK)
            assert moves.choice(views).read(offset, length) == content[offset : offset + length]
            assert reading.chunks.held_bytes <= 3 * CHUNK
        views[0].read(0, 10)
        reading.close()
        store.reads.clear()
        assert views[1].read(5, 100) == content[5:105], "two views share what one of them decoded"
        assert not store.reads


def test_two_readers_of_one_chunk_decode_it_once(small: Small, content: bytes) -> None:
    store = Counting(small.store)
    with small.opened(store=store) as repo:
        view = Reading(repo).view(select(repo, ["disk"])[0])
        view.extents(0, view.size)
        view.read(4 * CHUNK, 1)  # the leaf
        store.reads.clear()
        store.hold.clear()
        got: list[bytes] = []
        readers = [threading.Thread(target=lambda: got.append(view.read(0, 100))) for _ in range(5)]
        for reader in readers:
            reader.start()
        store.hold.set()
        for reader in readers:
            reader.join(SECONDS)
        assert got == [content[:100]] * 5
        assert len(store.reads) == 1


def test_many_threads_read_what_the_source_holds(small: Small, content: bytes) -> None:
    with small.opened() as repo:
        reading = Reading(repo, cache_bytes=4 * CHUNK)
        view = reading.view(select(repo, ["disk"])[0])
        wrong: list[int] = []

        def read(seed: int) -> None:
            moves = random.Random(seed)
            for _ in range(60):
                offset, length = moves.randrange(len(content)), moves.randrange(3 * CHUNK)
                if view.read(offset, length) != content[offset : offset + length]:
                    wrong.append(offset)

        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(SECONDS)
        assert not any(reader.is_alive() for reader in readers) and not wrong
        reading.close()


def test_what_a_sequential_reader_will_want_is_decoded_before_it_asks(tmp_path: Path) -> None:
    small = Small.make(tmp_path)
    letters = "".join(chr(0x21 + n) for n in range(90) if chr(0x21 + n) not in ".0")
    path = image(tmp_path / "disk.img", letters)
    small.backup(path)
    store = Counting(small.store)
    with small.opened(store=store) as repo:
        reading = Reading(repo)
        view = reading.view(select(repo, ["disk"])[0])
        for offset in range(0, 2 * PIECE, CHUNK):
            assert view.read(offset, CHUNK) == data(letters[offset // CHUNK])
        until = time.monotonic() + SECONDS
        while reading.chunks.held_bytes < 3 * PIECE and time.monotonic() < until:
            time.sleep(0.01)
        reading.close()
        store.reads.clear()
        assert view.read(2 * PIECE, CHUNK) == data(letters[2 * PIECE // CHUNK])
        assert not store.reads, "the next chunk was not read ahead"
        # A reader that jumps about has nothing read ahead.
        jumping = Reading(repo)
        view = jumping.view(select(repo, ["disk"])[0])
        for chunk in (60, 40, 20, 50):
            view.read(chunk * CHUNK, CHUNK)
        jumping.close()
        assert jumping.chunks.held_bytes == 4 * CHUNK
