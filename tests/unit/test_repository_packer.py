"""Packing blobs: at most once, the sizes of packs, nodes that join the last one, and failures."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lamella.base.errors import IntegrityError, StoreFull
from lamella.base.ids import ChunkId, DomainId
from lamella.base.names import pack_hash, pack_name
from lamella.crypto.derive import Keys
from lamella.format.container import MAX_BLOBS, Kind
from lamella.packs.blobmap import BlobMap
from lamella.packs.building import raw_body
from lamella.packs.cache import Cache
from lamella.packs.containers import PackHead, open_blob
from lamella.packs.contents import Contents
from lamella.packs.heads import read_head
from lamella.packs.packer import BULK_TARGET, INCREMENTAL_TARGET, Packer
from lamella.run.pipeline import Outbox
from lamella.stores.memory import MemoryStore
from lamella_kit.fault_store import FaultStore
from tests.unit.small_repository import ADMIN, Small

DOMAIN, OTHER = DomainId(b"d" * 16), DomainId(b"o" * 16)
MIB = 1 << 20


class Bench:
    """A packer on an empty store, with the keys of a real repository."""

    def __init__(self, keys: Keys, depth: int = 2) -> None:
        self.keys = keys
        self.memory = MemoryStore()
        self.store = FaultStore(self.memory)
        self.map = BlobMap(Cache.open(None), keys, self.store)
        self.outbox = Outbox(depth)
        self.packer = self.another()
        self.contents = Contents(self.store, keys, self.map)

    def another(self, domain: DomainId = DOMAIN) -> Packer:
        return Packer(self.keys, domain, self.store, self.map, self.outbox)

    def chunk(self, content: bytes, encode: Callable[[], bytes] | None = None) -> tuple[ChunkId, int]:
        id_ = self.packer.identify(Kind.CHUNK)(content)
        return id_, self.packer.store_blob(Kind.CHUNK, id_, len(content), encode or (lambda: raw_body(content)))

    def finish(self) -> None:
        self.packer.finish()
        self.outbox.drain()

    def heads(self) -> list[PackHead]:
        """The packs in the order they were put, each opened."""
        names = [pack_name(sha256) for sha256 in self.packer.packs]
        assert set(names) == set(self.memory.objects())
        return [read_head(self.memory, self.keys, name, self.memory.stat(name)) for name in names]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    with Small.make(tmp_path_factory.mktemp("keys")).opened() as repo:
        return repo.keys


@pytest.fixture
def bench(keys: Keys) -> Iterator[Bench]:
    made = Bench(keys)
    with made.outbox:
        yield made


def test_what_was_stored_can_be_read_again_and_the_packs_say_so(bench: Bench) -> None:
    ids = [bench.chunk(bytes([number]) * 100)[0] for number in range(5)]
    leaf = bench.packer.store_node(Kind.LEAF, b"a leaf")
    assert bench.memory.objects() == {}
    bench.finish()
    (sha256,) = bench.packer.packs
    content = bench.memory.objects()[pack_name(sha256)]
    assert hashlib.sha256(content).digest() == sha256
    assert [bench.contents.get(DOMAIN, Kind.CHUNK, id_, 100) for id_ in ids] == [bytes([n]) * 100 for n in range(5)]
    assert bench.contents.get(DOMAIN, Kind.LEAF, leaf) == b"a leaf"
    assert bench.packer.put_bytes == len(content)
    assert bench.packer.data_bytes == 5 * (5 + 100 + 16)
    (head,) = bench.heads()
    assert head.domain_id == DOMAIN
    fresh = BlobMap(Cache.open(None), bench.keys, bench.memory)
    assert fresh.refresh() == 1
    assert [fresh.find(Kind.CHUNK, id_)[0].blob for id_ in ids] == [bench.map.find(Kind.CHUNK, i)[0].blob for i in ids]


def test_a_small_run_makes_one_pack_and_no_run_none(bench: Bench) -> None:
    bench.finish()
    assert bench.packer.packs == []
    for number in range(20):
        bench.packer.store_node(Kind.INNER, b"node %d" % number)
        bench.chunk(b"chunk %d" % number)
    bench.finish()
    (head,) = bench.heads()
    assert Counter(blob.kind for blob in head.blobs) == {Kind.CHUNK: 20, Kind.INNER: 20}
    assert [blob.kind for blob in head.blobs] == [Kind.CHUNK] * 20 + [Kind.INNER] * 20


def test_packs_end_at_their_target_which_grows_for_bulk(bench: Bench) -> None:
    for _ in range(60):
        bench.chunk(os.urandom(MIB))
    bench.finish()
    lengths = [bench.memory.stat(pack_name(sha256)) for sha256 in bench.packer.packs]
    assert all(INCREMENTAL_TARGET <= length < INCREMENTAL_TARGET + 2 * MIB for length in lengths[:4])
    assert all(BULK_TARGET <= length < BULK_TARGET + 2 * MIB for length in lengths[4:-1])
    assert len(lengths) == 6
    assert sum(len(head.blobs) for head in bench.heads()) == 60


def test_packs_stay_small_where_a_domain_has_something(bench: Bench) -> None:
    bench.chunk(os.urandom(MIB))
    bench.finish()
    bench.packer = later = bench.another()
    for _ in range(7 * 9):
        bench.chunk(os.urandom(MIB))
    bench.finish()
    lengths = [bench.memory.stat(pack_name(sha256)) for sha256 in later.packs]
    assert len(lengths) >= 7
    assert all(INCREMENTAL_TARGET <= length < INCREMENTAL_TARGET + 2 * MIB for length in lengths[:-1])


def test_salts_are_never_used_twice(bench: Bench) -> None:
    for _ in range(8):
        bench.chunk(os.urandom(MIB))  # exactly full: the next blob would open another pack
    bench.packer.store_node(Kind.LEAF, b"a node after a full pack")
    bench.finish()
    heads = bench.heads()
    assert len(heads) == 2
    assert len({head.header.salt for head in heads}) == 2


def test_many_threads_store_each_blob_once(bench: Bench) -> None:
    contents = [bytes([number]) * 5000 for number in range(60)]
    encoded: Counter[int] = Counter()
    stored: list[int] = []
    mutex = threading.Lock()
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait(30)
        for number, content in enumerate(contents):

            def encode(number: int = number, content: bytes = content) -> bytes:
                with mutex:
                    encoded[number] += 1
                return raw_body(content)

            length = bench.chunk(content, encode)[1]
            with mutex:
                stored.append(length)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    bench.finish()
    assert encoded == dict.fromkeys(range(60), 1)
    assert sorted(stored) == [0] * (7 * 60) + [5000 + 21] * 60
    blobs = [blob.id for head in bench.heads() for blob in head.blobs]
    assert len(blobs) == len(set(blobs)) == 60


def test_more_tiny_blobs_than_a_directory_holds(bench: Bench) -> None:
    total = MAX_BLOBS + 500
    for number in range(total):
        content = number.to_bytes(4, "big")
        bench.packer.store_blob(Kind.CHUNK, ChunkId(content + bytes(20)), 4, lambda content=content: raw_body(content))  # type: ignore[misc]
    for number in range(10):
        bench.packer.store_node(Kind.LEAF, b"node %d" % number)
    bench.finish()
    assert [len(head.blobs) for head in bench.heads()] == [MAX_BLOBS, 510]


@pytest.fixture
def small_directories(monkeypatch: pytest.MonkeyPatch) -> int:
    """Directories hold so many blobs: the packer's rules are the same at every limit (the real one is tried above)."""
    most = 600
    monkeypatch.setattr("lamella.packs.packer.MAX_BLOBS", most)
    return most


def test_more_nodes_than_a_directory_holds(bench: Bench, small_directories: int) -> None:
    for number in range(small_directories + 5):
        bench.packer.store_node(Kind.LEAF, b"n%d" % number)
    bench.finish()
    assert [len(head.blobs) for head in bench.heads()] == [small_directories, 5]


def test_nodes_that_do_not_fit_beside_the_data_get_their_own_pack(bench: Bench, small_directories: int) -> None:
    nodes, chunks = small_directories * 2 // 3, small_directories // 2
    for number in range(nodes):
        bench.packer.store_node(Kind.LEAF, b"n%d" % number)
        if number % 2:
            id_ = ChunkId(number.to_bytes(24, "big"))
            bench.packer.store_blob(Kind.CHUNK, id_, 1, lambda: raw_body(b"x"))
    for number in range(chunks - nodes // 2):
        bench.packer.store_blob(Kind.CHUNK, ChunkId(b"\1" + number.to_bytes(23, "big")), 1, lambda: raw_body(b"x"))
    bench.finish()
    assert [len(head.blobs) for head in bench.heads()] == [chunks, nodes]


def test_nodes_go_out_in_batches(bench: Bench) -> None:
    for number in range(9):
        bench.packer.store_node(Kind.DOCUMENT, bytes([number]) * MIB)
    bench.finish()
    assert [len(head.blobs) for head in bench.heads()] == [4, 4, 1]


def test_a_node_is_stored_once_in_a_run_and_over_runs(bench: Bench) -> None:
    first = bench.packer.store_node(Kind.LEAF, b"a leaf")
    assert bench.packer.store_node(Kind.LEAF, b"a leaf") == first
    assert bench.packer.store_node(Kind.INNER, b"a leaf") != first
    bench.finish()
    (head,) = bench.heads()
    assert len(head.blobs) == 2
    later = bench.another()
    assert later.store_node(Kind.LEAF, b"a leaf") == first
    later.finish()
    assert later.packs == []


def test_domains_share_nothing(bench: Bench) -> None:
    other = bench.another(OTHER)
    id_, _ = bench.chunk(b"the same")
    foreign = other.identify(Kind.CHUNK)(b"the same")
    assert foreign != id_
    bench.finish()
    with pytest.raises(IntegrityError):
        bench.contents.get(OTHER, Kind.CHUNK, id_)


def test_pending_until_it_is_in_the_map(bench: Bench) -> None:
    id_, sealed = bench.chunk(b"content")
    assert sealed == 5 + 7 + 16
    assert bench.packer.pending(id_)
    assert not bench.map.has(Kind.CHUNK, id_)
    assert bench.chunk(b"content") == (id_, 0)
    bench.finish()
    assert not bench.packer.pending(id_)
    assert bench.map.has(Kind.CHUNK, id_)


def test_the_filter_never_denies_what_is_stored(bench: Bench) -> None:
    ids = [bench.chunk(os.urandom(8))[0] for _ in range(3000)]
    assert not any(bench.packer.may_be_stored(id_) for id_ in ids[:10])
    bench.finish()
    assert all(bench.packer.may_be_stored(id_) for id_ in ids)
    strangers = [ChunkId(os.urandom(24)) for _ in range(3000)]
    assert sum(bench.packer.may_be_stored(id_) for id_ in strangers) < 100
    # A later run begins with a map that knows more than its filter would: nothing may be denied.
    later = bench.another()
    assert all(later.may_be_stored(id_) for id_ in ids)


def test_a_failed_encoding_ends_the_salt_and_the_others_are_kept(bench: Bench) -> None:
    kept = bench.chunk(b"before")[0]
    doomed = b"the one that fails"

    def fail() -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bench.chunk(doomed, fail)
    bench.outbox.drain()
    assert bench.map.has(Kind.CHUNK, kept)
    again, length = bench.chunk(doomed)
    assert length > 0
    bench.packer.store_node(Kind.LEAF, b"a node")
    bench.finish()
    first, second = bench.heads()
    assert first.header.salt != second.header.salt
    assert [blob.id for blob in first.blobs] == [kept]
    assert again in [blob.id for blob in second.blobs]
    assert bench.contents.get(DOMAIN, Kind.CHUNK, again) == doomed


def test_a_failed_first_encoding_leaves_no_pack(bench: Bench) -> None:
    def fail() -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bench.chunk(b"x", fail)
    bench.packer.store_node(Kind.LEAF, b"a node")
    bench.finish()
    (head,) = bench.heads()
    assert [blob.kind for blob in head.blobs] == [Kind.LEAF]


def test_a_failed_upload_is_not_entered_in_the_map(bench: Bench) -> None:
    bench.store.fail("put", StoreFull("no space left"))
    id_, _ = bench.chunk(b"content")
    bench.packer.finish()
    with pytest.raises(StoreFull):
        bench.outbox.drain()
    assert not bench.map.has(Kind.CHUNK, id_)
    assert bench.packer.pending(id_)
    bench.store.assert_all_fired()


def test_the_node_another_writer_claims_to_have_is_stored_again(bench: Bench) -> None:
    """Another writer's pack may list an id whose content it does not hold: only own packs are taken at their word."""
    first = bench.packer.store_node(Kind.LEAF, b"a leaf")
    bench.finish()
    stranger = Bench(bench.keys)
    for name, content in bench.memory.objects().items():
        stranger.memory._objects[name] = content
    with stranger.outbox:
        stranger.map.refresh()
        assert not stranger.map.find(Kind.LEAF, first)[0].own
        assert stranger.another().store_node(Kind.LEAF, b"a leaf") == first
        packer = stranger.another()
        packer.store_node(Kind.LEAF, b"a leaf")
        packer.finish()
        stranger.outbox.drain()
        assert len(packer.packs) == 1
        assert len(stranger.map.find(Kind.LEAF, first)) == 2
        assert stranger.map.find(Kind.LEAF, first)[0].own


def test_blobs_open_only_where_they_were_sealed(bench: Bench, keys: Keys) -> None:
    id_, _ = bench.chunk(b"content")
    bench.finish()
    (place,) = bench.map.find(Kind.CHUNK, id_)
    name = pack_name(place.pack)
    assert pack_hash(name) == place.pack and place.header is not None
    sealed = bench.memory.get(name, place.blob.offset, place.blob.sealed_length)
    assert open_blob(keys.domain(DOMAIN), place.header, place.blob, sealed, name) == b"content"
    for wrong in (place.blob._replace(kind=Kind.LEAF), place.blob._replace(id=ChunkId(bytes(24)))):
        with pytest.raises(IntegrityError):
            open_blob(keys.domain(DOMAIN), place.header, wrong, sealed, name)
    with pytest.raises(IntegrityError):
        open_blob(keys.domain(OTHER), place.header, place.blob, sealed, name)


def test_the_keys_of_the_tests_are_real(keys: Keys, tmp_path: Path) -> None:
    small = Small.make(tmp_path)
    with small.opened(secret=ADMIN) as repo:
        assert repo.keys.root != keys.root
        assert repo.keys.prune_seed is not None


# -- flushing in the middle of the work --------------------------------------------------------------------------------


def test_flush_waits_for_what_a_worker_has_begun_and_for_nothing_else(bench: Bench) -> None:
    """A blob that is being encoded belongs to the pack that flush closes; one that comes later goes into another."""
    encoding, go_on, flushed = threading.Event(), threading.Event(), threading.Event()

    def slowly() -> bytes:
        encoding.set()
        assert go_on.wait(30)
        return raw_body(b"slow")

    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(bench.chunk, b"slow", slowly)
        assert encoding.wait(30)

        def flush() -> None:
            bench.finish()
            flushed.set()

        flushing = threads.submit(flush)
        while bench.packer._open is not None:  # until flush has taken the pack away
            pass
        later, _ = bench.chunk(b"later")
        assert not flushed.is_set()
        go_on.set()
        id_, _ = slow.result(timeout=30)
        flushing.result(timeout=30)
    assert bench.packer.arrived == bench.packer.packs and len(bench.packer.packs) == 1
    assert bench.map.has(Kind.CHUNK, id_) and not bench.map.has(Kind.CHUNK, later)
    bench.finish()
    assert bench.map.has(Kind.CHUNK, later) and len(bench.packer.arrived) == 2


def test_flush_takes_nodes_along(bench: Bench) -> None:
    id_, _ = bench.chunk(b"content")
    leaf = bench.packer.store_node(Kind.LEAF, b"a leaf")
    bench.finish()
    assert len(bench.packer.packs) == 1
    assert bench.map.has(Kind.CHUNK, id_) and bench.map.has(Kind.LEAF, leaf)


def test_what_the_store_refused_has_not_arrived(bench: Bench) -> None:
    bench.store.fail("put", StoreFull("no space"), after=1)
    bench.chunk(b"one")
    bench.finish()
    bench.chunk(b"two")
    with pytest.raises(StoreFull):
        bench.finish()
    assert len(bench.packer.packs) == 2 and bench.packer.arrived == bench.packer.packs[:1]
    bench.chunk(b"three")
    with pytest.raises(StoreFull):  # nor does flushing again wait for what will never come
        bench.packer.finish()
    bench.store.assert_all_fired()


def test_after_what_broke_packs_are_small_and_grow_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamella.packs.packer.RESUMED_TARGET", 1000)
    monkeypatch.setattr("lamella.packs.packer.BULK_TARGET", 3000)
    monkeypatch.setattr("lamella.packs.packer._RESUMED_STEP", 3)
    bench.packer = Packer(bench.keys, DOMAIN, bench.store, bench.map, bench.outbox, breaks=lambda: breaks)
    breaks = 1
    for number in range(60):
        bench.chunk(b"%d" % number * 300)
    sizes = [bench.packer.sizes[sha256] for sha256 in bench.packer.packs]
    before = len(sizes)
    breaks = 2
    for number in range(60):
        bench.chunk(b"%d" % (number + 100) * 150)
    later = [bench.packer.sizes[sha256] for sha256 in bench.packer.packs][before + 1 :]
    assert [size // 1000 for size in later[:5]] in ([1, 1, 2, 2, 2], [1, 1, 1, 2, 2]), later
    assert all(1000 <= size < 2000 for size in sizes[:3]), sizes
    assert all(2000 <= size < 3000 for size in sizes[3:6]), sizes
    assert len(sizes) > 8 and all(3000 <= size < 4500 for size in sizes[6:]), sizes
