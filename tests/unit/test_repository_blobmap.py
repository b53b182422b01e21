"""The blob map agrees with the store, survives every state of its cache, and contents try every place."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path

import pytest

from lamella.base.errors import IntegrityError, StoreError, StoreUnavailable
from lamella.base.ids import CATALOGUE, ChunkId, DomainId
from lamella.base.names import pack_hash, pack_name
from lamella.base.trust import Sealed
from lamella.crypto.derive import Keys
from lamella.crypto.seal import PackSealer, new_salt
from lamella.format.container import MAX_OBJECT, Kind
from lamella.packs import census
from lamella.packs.blobmap import BlobMap
from lamella.packs.building import build, build_single, raw_body
from lamella.packs.cache import Cache
from lamella.packs.contents import Contents
from lamella.stores.memory import MemoryStore
from lamella_kit.fault_store import FaultStore
from tests.unit.small_repository import Small

DOMAIN, OTHER = DomainId(b"d" * 16), DomainId(b"o" * 16)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    with Small.make(tmp_path_factory.mktemp("keys")).opened() as repo:
        return repo.keys


class Bench:
    """A store of hand-made packs and a map of it."""

    def __init__(self, keys: Keys, cache: Path | None = None) -> None:
        self.keys = keys
        self.memory = MemoryStore()
        self.store = FaultStore(self.memory)
        self.map = self.opened(cache)
        self.contents = Contents(self.store, keys, self.map)

    def opened(self, cache: Path | None) -> BlobMap:
        return BlobMap(Cache.open(cache), self.keys, self.store)

    def pack(self, *contents: bytes, domain: DomainId = DOMAIN, kind: Kind = Kind.CHUNK) -> tuple[bytes, list[ChunkId]]:
        """Put a pack; its hash and the ids in it."""
        sealed, ids = build_single(self.keys, domain, [(kind, content) for content in contents])
        return self.put(sealed), ids

    def put(self, content: bytes) -> bytes:
        sha256 = hashlib.sha256(content).digest()
        self.memory.put(pack_name(sha256), Sealed(content))
        return sha256

    def replace(self, sha256: bytes, content: bytes) -> None:
        """What a broken or hostile destination does."""
        self.memory.delete(pack_name(sha256))
        self.memory.put(pack_name(sha256), Sealed(content))

    def content(self, sha256: bytes) -> bytes:
        return self.memory.objects()[pack_name(sha256)]


@pytest.fixture
def bench(keys: Keys) -> Bench:
    return Bench(keys)


def test_names_of_packs() -> None:
    sha256 = bytes(range(32))
    assert pack_name(sha256) == f"p/00/{sha256.hex()}"
    assert pack_hash(pack_name(sha256)) == sha256
    for bad in ("p/01/" + sha256.hex(), "p/" + sha256.hex(), "q/00/" + sha256.hex(), "p/zz/" + "zz" * 32, "lamella"):
        assert pack_hash(bad) is None


# -- refresh -----------------------------------------------------------------------------------------------------------


def test_new_packs_are_found_and_vanished_ones_forgotten(bench: Bench) -> None:
    one, (a,) = bench.pack(b"aaaa")
    two, (b,) = bench.pack(b"bbbb")
    assert bench.map.empty(DOMAIN)
    assert bench.map.refresh() == 2
    assert not bench.map.empty(DOMAIN)
    assert bench.map.empty(OTHER)
    assert [place.pack for place in bench.map.find(Kind.CHUNK, a)] == [one]
    assert {pack_hash(entry.name) for entry in bench.map.packs()} == {one, two}
    three, (c,) = bench.pack(b"cccc", domain=OTHER)
    bench.memory.delete(pack_name(one))
    assert bench.map.refresh() == 2
    assert bench.map.find(Kind.CHUNK, a) == []
    assert not bench.map.has(Kind.CHUNK, a)
    assert bench.map.directory(one) is None
    assert bench.map.length(one) is None
    assert bench.map.has(Kind.CHUNK, b)
    assert [pack_hash(entry.name) for entry in bench.map.packs(OTHER)] == [three]
    assert bench.map.find(Kind.CHUNK, c)[0].domain_id == OTHER


def test_a_refresh_reads_only_new_heads(bench: Bench) -> None:
    bench.pack(b"aaaa")
    bench.map.refresh()
    bench.store.fail("get", StoreUnavailable("nothing may be read"), times=99)
    assert bench.map.refresh() == 1


def test_the_map_is_the_directory(bench: Bench) -> None:
    sha256, ids = bench.pack(b"first", b"second one", b"third")
    bench.map.refresh()
    directory = bench.map.directory(sha256)
    assert directory is not None
    assert (directory.domain_id, directory.length) == (DOMAIN, len(bench.content(sha256)))
    assert [(blob.id, blob.content_length) for blob in directory.blobs] == list(zip(ids, [5, 10, 5], strict=True))
    assert directory.header.encode() == bench.content(sha256)[:72]
    assert not bench.map.has(Kind.LEAF, ids[0])
    found = bench.map.find_many(Kind.CHUNK, [*ids, ChunkId(bytes(24))])
    assert set(found) == set(ids)


def test_large_directories_are_read_whole(bench: Bench) -> None:
    _, ids = bench.pack(*(b"%d" % number for number in range(3000)))
    bench.map.refresh()
    assert all(bench.map.has(Kind.CHUNK, id_) for id_ in ids)


def test_junk_is_reported_and_in_nobodys_way(bench: Bench) -> None:
    good, (id_,) = bench.pack(b"good")
    head_flipped = bytearray(bench.content(bench.pack(b"x" * 100)[0]))
    head_flipped[100] ^= 1
    foreign_hint = bytearray(bench.content(bench.pack(b"y" * 100)[0]))
    foreign_hint[50] ^= 1
    junk = {
        bench.put(bytes(100)): "begin like a container",
        bench.put(b""): "impossible size",
        bench.put(bytes(head_flipped)): "authenticate",
        bench.put(bytes(foreign_hint)): "belong to this repository",
        bench.put(bench.content(good)[:-1]): "wrong length",
        bench.put(bench.content(good) + b"\0"): "wrong length",
        bench.put(bench.content(good)[:100]): "shorter than its directory",
        bench.pack(b"a segment", domain=DOMAIN, kind=Kind.SEGMENT)[0]: "does not belong there",
        bench.pack(b"a chunk", domain=CATALOGUE)[0]: "does not belong there",
        bench.pack(b"a commit", domain=CATALOGUE, kind=Kind.COMMIT)[0]: "does not belong there",
    }
    bench.map.refresh()
    troubled = {pack_hash(name): reason for name, reason in census.troubled(bench.map)}
    assert set(troubled) == set(junk)
    for sha256, words in junk.items():
        assert words in troubled[sha256]
        assert bench.map.length(sha256) is None
        assert bench.map.directory(sha256) is None
    assert bench.contents.get(DOMAIN, Kind.CHUNK, id_) == b"good"
    assert junk.keys().isdisjoint({pack_hash(entry.name) for entry in bench.map.packs()})


def test_a_pack_that_was_put_right_is_read_again(bench: Bench) -> None:
    sha256, (id_,) = bench.pack(b"content")
    right = bench.content(sha256)
    bench.replace(sha256, bytes(len(right)))
    bench.map.refresh()
    assert len(census.troubled(bench.map)) == 1
    bench.replace(sha256, right)
    bench.map.refresh()
    assert census.troubled(bench.map) == []
    assert bench.contents.get(DOMAIN, Kind.CHUNK, id_) == b"content"


def test_a_pack_of_another_size_is_read_again(bench: Bench) -> None:
    sha256, (id_,) = bench.pack(b"content")
    right = bench.content(sha256)
    bench.map.refresh()
    bench.replace(sha256, right + b"x")
    bench.map.refresh()
    assert [name for name, _ in census.troubled(bench.map)] == [pack_name(sha256)]
    assert not bench.map.has(Kind.CHUNK, id_)
    bench.replace(sha256, right)
    bench.map.refresh()
    assert bench.map.has(Kind.CHUNK, id_)


def test_complete_roots_are_forgotten_when_packs_vanish(bench: Bench) -> None:
    sha256, _ = bench.pack(b"content")
    bench.map.refresh()
    roots = [ChunkId(b"r" * 24), ChunkId(b"s" * 24)]
    assert not bench.map.complete(roots[0])
    bench.map.set_complete(roots)
    bench.pack(b"more")
    bench.map.refresh()
    assert all(bench.map.complete(root) for root in roots)
    bench.memory.delete(pack_name(sha256))
    bench.map.refresh()
    assert not any(bench.map.complete(root) for root in roots)


def test_a_pack_that_vanishes_while_it_is_listed_is_no_trouble(bench: Bench) -> None:
    sha256, (id_,) = bench.pack(b"content")
    listing = list(bench.memory.list("p/"))
    bench.memory.delete(pack_name(sha256))

    class Stale(MemoryStore):
        def list(self, prefix: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
            return iter(listing)

    map_ = BlobMap(Cache.open(None), bench.keys, Stale())
    map_.refresh()
    assert (census.troubled(map_), map_.has(Kind.CHUNK, id_)) == ([], False)


def test_a_listing_that_breaks_off_forgets_nothing(bench: Bench) -> None:
    ids = [bench.pack(b"%d" % number)[1][0] for number in range(4)]
    bench.map.refresh()
    bench.map.set_complete([ChunkId(b"r" * 24)])
    bench.store.break_listing(StoreUnavailable("gone"), listed=1)
    with pytest.raises(StoreUnavailable):
        bench.map.refresh()
    bench.store.assert_all_fired()
    assert all(bench.map.has(Kind.CHUNK, id_) for id_ in ids)
    assert bench.map.complete(ChunkId(b"r" * 24))


def test_own_packs_come_first(bench: Bench) -> None:
    first, (id_,) = bench.pack(b"content")
    second, _ = bench.pack(b"content")
    bench.map.refresh([second])
    assert [(place.pack, place.own) for place in bench.map.find(Kind.CHUNK, id_)] == [(second, True), (first, False)]
    bench.map.mark_own([first])
    assert all(place.own for place in bench.map.find(Kind.CHUNK, id_))


def test_a_pack_too_large_is_never_read(bench: Bench) -> None:
    sha256 = os.urandom(32)
    bench.memory._objects[pack_name(sha256)] = bytes(MAX_OBJECT + 1)
    bench.store.fail("get", AssertionError("it was read"), times=9)
    bench.map.refresh()
    assert len(census.troubled(bench.map)) == 1


# -- the cache ---------------------------------------------------------------------------------------------------------


def remade(path: Path, keys: Keys) -> None:
    """The cache at `path` works, is remembered there, and knows what the store holds."""
    bench = Bench(keys, path)
    _, (id_,) = bench.pack(b"content")
    bench.map.refresh()
    bench.map.cache.close()
    again = BlobMap(Cache.open(path), keys, MemoryStore())
    assert again.has(Kind.CHUNK, id_)
    again.cache.close()


@pytest.mark.parametrize("content", [b"", b"this is no database" * 100, b"SQLite format 3\0" + os.urandom(4080)])
def test_a_damaged_cache_is_replaced(tmp_path: Path, keys: Keys, content: bytes) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_bytes(content)
    remade(path, keys)


def test_caches_of_other_programs_and_versions_are_replaced(tmp_path: Path, keys: Keys) -> None:
    for version in (7, 1):
        path = tmp_path / f"{version}.sqlite"
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE packs (something TEXT)")
        connection.execute(f"PRAGMA user_version = {version}")
        connection.close()
        remade(path, keys)
    foreign = tmp_path / "foreign.sqlite"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE packs (something TEXT)")
    connection.close()
    remade(foreign, keys)


def test_a_cache_that_cannot_be_made_is_a_temporary_one(tmp_path: Path, keys: Keys) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "directory").mkdir()
    for path in (tmp_path / "file" / "cache.sqlite", tmp_path / "directory"):
        cache = Cache.open(path)
        assert cache.path is None
        bench = Bench(keys, path)
        _, (id_,) = bench.pack(b"content")
        bench.map.refresh()
        assert bench.map.has(Kind.CHUNK, id_)
        cache.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["directory", "file"]


def test_two_processes_share_a_cache(tmp_path: Path, keys: Keys) -> None:
    path = tmp_path / "cache.sqlite"
    bench = Bench(keys, path)
    other = bench.opened(path)
    _, (id_,) = bench.pack(b"content")
    bench.map.refresh()
    assert other.has(Kind.CHUNK, id_)
    other.refresh()
    assert len(other.find(Kind.CHUNK, id_)) == 1


def test_commits_are_remembered(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "cache.sqlite")
    assert cache.commit("w/x") is None
    cache.remember_commits([("w/x", b"one")])
    cache.remember_commits([("w/x", b"two")])
    cache.close()
    again = Cache.open(tmp_path / "cache.sqlite")
    assert again.commit("w/x") == b"two"
    again.close()


# -- contents ----------------------------------------------------------------------------------------------------------


def doubled(bench: Bench) -> tuple[list[bytes], list[ChunkId]]:
    """Three chunks, each in two packs; a flaw in the data of the first one."""
    first, ids = bench.pack(b"one" * 9, b"two" * 9, b"three" * 9)
    second, _ = bench.pack(b"one" * 9, b"two" * 9, b"three" * 9)
    bench.map.refresh([first])
    spoiled = bytearray(bench.content(first))
    spoiled[bench.map.find(Kind.CHUNK, ids[1])[0].blob.offset + 3] ^= 1
    bench.replace(first, bytes(spoiled))
    return [first, second], ids


def test_a_damaged_place_gives_way_to_the_next(bench: Bench) -> None:
    (first, _), ids = doubled(bench)
    assert bench.contents.get(DOMAIN, Kind.CHUNK, ids[0]) == b"one" * 9
    assert bench.contents.bad_places == []
    assert bench.contents.get(DOMAIN, Kind.CHUNK, ids[1]) == b"two" * 9
    assert [name for name, _ in bench.contents.bad_places] == [pack_name(first)]


def test_many_are_read_together_and_the_damaged_one_elsewhere(bench: Bench) -> None:
    (first, second), ids = doubled(bench)
    wanted = [(ids[0], 27), (ids[1], 27), (ids[2], 45)]
    want = dict(zip(ids, [b"one" * 9, b"two" * 9, b"three" * 9], strict=True))
    assert bench.contents.get_many(DOMAIN, Kind.CHUNK, wanted) == want
    bench.memory.delete(pack_name(first))
    assert bench.contents.get_many(DOMAIN, Kind.CHUNK, wanted) == want
    bench.memory.delete(pack_name(second))
    with pytest.raises(IntegrityError, match="cannot be read"):
        bench.contents.get_many(DOMAIN, Kind.CHUNK, wanted)


def test_neighbours_are_read_at_once(bench: Bench) -> None:
    _, ids = bench.pack(*(b"%03d" % number for number in range(50)))
    bench.map.refresh()
    bench.store.fail("get", AssertionError("a second read"), after=1)
    contents = bench.contents.get_many(DOMAIN, Kind.CHUNK, [(id_, 3) for id_ in reversed(ids)])
    assert [contents[id_] for id_ in ids] == [b"%03d" % number for number in range(50)]


def test_no_good_place_is_an_error_that_names_the_last(bench: Bench) -> None:
    packs, ids = doubled(bench)
    for sha256 in packs:
        bench.memory.delete(pack_name(sha256))
    with pytest.raises(IntegrityError) as caught:
        bench.contents.get(DOMAIN, Kind.CHUNK, ids[0])
    assert pack_name(packs[1]) in caught.value.message
    assert caught.value.obj == ids[0].hex()
    with pytest.raises(IntegrityError, match="no pack holds it"):
        bench.contents.get(DOMAIN, Kind.CHUNK, ChunkId(bytes(24)))


def test_a_position_implies_a_domain_and_a_length(bench: Bench) -> None:
    _, (id_,) = bench.pack(b"content")
    bench.map.refresh()
    assert bench.contents.get(DOMAIN, Kind.CHUNK, id_, 7) == b"content"
    with pytest.raises(IntegrityError):
        bench.contents.get(DOMAIN, Kind.CHUNK, id_, 8)
    with pytest.raises(IntegrityError):
        bench.contents.get(OTHER, Kind.CHUNK, id_, 7)
    with pytest.raises(IntegrityError):
        bench.contents.get_many(DOMAIN, Kind.CHUNK, [(id_, 8)])


def test_a_blob_that_is_not_what_its_id_says_is_refused(bench: Bench) -> None:
    """Whoever holds the keys can seal any content under any id; readers compute the id again."""
    sealer = PackSealer(bench.keys.domain(DOMAIN), new_salt())
    _, (id_,) = bench.pack(b"the truth")
    lie = raw_body(b"not truth")
    sealer.reserve(Kind.CHUNK, id_)
    sealed, _ = build(bench.keys, DOMAIN, sealer, [(Kind.CHUNK, id_, sealer.seal(Kind.CHUNK, id_, lie), 9)])
    liar = bench.put(sealed)
    bench.map.refresh([liar])
    assert len(bench.map.find(Kind.CHUNK, id_)) == 2
    assert bench.contents.get(DOMAIN, Kind.CHUNK, id_, 9) == b"the truth"
    assert bench.contents.bad_places == [(pack_name(liar), "a blob whose content is not what its id says")]


def test_a_store_that_does_not_answer_is_no_damage(bench: Bench) -> None:
    _, (id_,) = bench.pack(b"content")
    bench.map.refresh()
    bench.store.fail("get", StoreUnavailable("gone"), times=2)
    with pytest.raises(StoreUnavailable):
        bench.contents.get(DOMAIN, Kind.CHUNK, id_)
    with pytest.raises(StoreUnavailable):
        bench.contents.get_many(DOMAIN, Kind.CHUNK, [(id_, 7)])
    bench.store.assert_all_fired()
    assert bench.contents.get(DOMAIN, Kind.CHUNK, id_) == b"content"


def test_a_store_that_refuses_one_object_gives_way_to_the_next(bench: Bench) -> None:
    _, (id_,) = bench.pack(b"content")
    bench.pack(b"content")
    bench.map.refresh()
    bench.store.fail("get", StoreError("a bad sector"))
    assert bench.contents.get(DOMAIN, Kind.CHUNK, id_) == b"content"
    bench.store.assert_all_fired()
