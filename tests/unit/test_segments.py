"""Index segments spare reading heads, and whatever is wrong with them costs time only."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.errors import IntegrityError, StoreUnavailable, UnknownFormat
from lamella.base.ids import ChunkId, DomainId
from lamella.base.names import pack_name
from lamella.base.trust import Opened, Sealed
from lamella.crypto.derive import Keys
from lamella.format import segment
from lamella.format.container import FIRST_READ, Blob, Kind, aligned
from lamella.format.segment import Covered, segment_hash, segment_name
from lamella.packs import census
from lamella.packs.blobmap import WORTH_WRITING, BlobMap
from lamella.packs.building import build_single
from lamella.packs.cache import Cache
from lamella.packs.contents import Contents
from lamella.packs.segments import packs_named, read_segment
from lamella.packs.suspects import Suspects
from lamella.stores.memory import MemoryStore
from tests.counting_store import CountingStore
from tests.unit.small_repository import Small
from tests.unit.test_repository_blobmap import DOMAIN, OTHER

MANY = WORTH_WRITING + 44


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    with Small.make(tmp_path_factory.mktemp("keys")).opened() as repo:
        return repo.keys


class World:
    """Packs of two chunks each in a store, and machines that look at it."""

    def __init__(self, keys: Keys, count: int = MANY, domain: DomainId = DOMAIN) -> None:
        self.keys = keys
        self.memory = MemoryStore()
        self.chunks: dict[ChunkId, tuple[bytes, bytes]] = {}
        """Id -> pack and content."""
        self.add(count, domain)

    def add(self, count: int, domain: DomainId = DOMAIN) -> None:
        """Put more packs."""
        for _ in range(count):
            contents = [os.urandom(8), os.urandom(12)]
            sealed, ids = build_single(self.keys, domain, [(Kind.CHUNK, content) for content in contents])
            sha256 = hashlib.sha256(sealed).digest()
            self.memory.put(pack_name(sha256), sealed)
            self.chunks.update((id_, (sha256, content)) for id_, content in zip(ids, contents, strict=True))

    def machine(self) -> Machine:
        """One that never saw the store."""
        return Machine(self)

    def machine_that_writes(self) -> Machine:
        """One that wrote segments."""
        machine = self.machine()
        machine.map.refresh()
        assert machine.map.write_segments() > 0
        return machine

    def put_segment(self, content: bytes, domain: DomainId = DOMAIN, kind: Kind = Kind.INDEX) -> str:
        """Put a segment made by hand; its name."""
        sealed, _ = build_single(self.keys, domain, [(kind, content)])
        name = segment_name(hashlib.sha256(sealed).digest())
        self.memory.put(name, sealed)
        return name

    def segments(self) -> list[str]:
        """The names of the segments there are."""
        return sorted(name for name in self.memory.objects() if segment_hash(name))

    def rows(self) -> list[Covered]:
        """What an honest segment says."""
        machine = self.machine()
        machine.map.refresh()
        found = []
        for pack in sorted({pack for pack, _ in self.chunks.values()}):
            directory = machine.map.directory(pack)
            assert directory is not None
            found.append(Covered(pack, directory.blobs))
        return found


class Machine:
    """A map with an empty cache."""

    def __init__(self, world: World) -> None:
        self.store = CountingStore(world.memory)
        self.cache = Cache.open(None)
        self.map = BlobMap(self.cache, world.keys, self.store)
        self.contents = Contents(self.store, world.keys, self.map)

    def heads_read(self) -> int:
        return self.store.count("get", "p/")


# -- what they are for -------------------------------------------------------------------------------------------------


def test_a_fresh_machine_opens_a_large_repository_with_few_requests(keys: Keys) -> None:
    world = World(keys, 5000)
    writer = world.machine()
    assert writer.map.refresh() == 5000
    assert writer.heads_read() == 5000
    assert writer.map.write_segments() > 0
    fresh = world.machine()
    assert fresh.map.refresh() == 5000
    assert fresh.heads_read() == 0
    assert len(fresh.store.calls) <= 5, fresh.store.by_kind()
    id_, (pack, content) = next(iter(world.chunks.items()))
    assert fresh.contents.get(DOMAIN, Kind.CHUNK, id_) == content
    assert fresh.store.count("get", pack_name(pack)) == 2, "its head once, then the chunk"
    assert fresh.heads_read() == 2


def test_a_pack_is_opened_once_before_a_place_in_it_is_given_out(keys: Keys) -> None:
    world = World(keys)
    world.machine_that_writes()
    fresh = world.machine()
    fresh.map.refresh()
    for id_, (pack, _) in world.chunks.items():
        (place,) = fresh.map.find(Kind.CHUNK, id_)
        assert place.pack == pack
        assert place.header is not None and place.header.encode() == world.memory.objects()[pack_name(pack)][:72]
        assert fresh.map.has(Kind.CHUNK, id_)
    assert fresh.heads_read() == MANY


@pytest.mark.parametrize("count", [0, 1, WORTH_WRITING])
def test_few_packs_are_not_worth_a_segment(keys: Keys, count: int) -> None:
    world = World(keys, count)
    machine = world.machine()
    machine.map.refresh()
    assert machine.map.write_segments() == 0
    assert world.segments() == []
    assert machine.store.count("list", "i/") == (1 if count >= 64 else 0)


def test_what_is_covered_is_not_covered_again(keys: Keys) -> None:
    world = World(keys)
    first = world.machine()
    first.map.refresh()
    assert first.map.write_segments() > 0
    assert first.map.write_segments() == 0
    other = world.machine()
    other.map.refresh()
    other.map.open_hinted()
    assert other.map.write_segments() == 0
    world.add(WORTH_WRITING + 1)
    other.map.refresh()
    assert other.map.write_segments() > 0
    # The first one does not know of it yet, has the same packs by now, and looks before it writes.
    first.map.refresh()
    assert first.map.write_segments() == 0
    assert len(world.segments()) == 2


def test_only_opened_packs_are_named(keys: Keys) -> None:
    world = World(keys)
    world.machine_that_writes()
    for name in world.segments():
        world.memory.delete(name)
    packs = {pack for pack, _ in world.chunks.values()}
    bad = sorted(packs)[:30]
    for pack in bad:
        content = world.memory.objects()[pack_name(pack)]
        world.memory.delete(pack_name(pack))
        world.memory.put(pack_name(pack), Sealed(content[:100] + bytes(20) + content[120:]))
    world.machine_that_writes()
    (name,) = world.segments()
    assert packs_named(world.memory, keys, name) == packs - set(bad)


def test_a_pack_of_which_the_map_leaves_something_out_is_not_named(keys: Keys) -> None:
    world = World(keys)
    machine = world.machine()
    machine.map.refresh()
    id_, (pack, _) = next(iter(world.chunks.items()))
    Suspects(machine.cache).mark(pack, [(Kind.CHUNK, id_)])
    machine.map.write_segments()
    (name,) = world.segments()
    assert packs_named(world.memory, keys, name) == {pack for pack, _ in world.chunks.values()} - {pack}


def test_domains_have_segments_of_their_own(keys: Keys) -> None:
    world = World(keys)
    world.add(MANY, OTHER)
    world.add(10, DomainId(b"few packs in it."))
    world.machine_that_writes()
    found = {read_segment(world.memory, keys, name)[0] for name in world.segments()}
    assert found == {DOMAIN, OTHER}


def test_a_lost_segment_is_written_again(keys: Keys) -> None:
    world = World(keys)
    machine = world.machine_that_writes()
    (name,) = world.segments()
    world.memory.delete(name)
    world.add(64)
    machine.map.refresh()
    machine.map.open_hinted()
    assert machine.map.write_segments() > 0
    assert len(world.segments()) == 1


def test_a_segment_goes_when_most_of_its_packs_are_gone(keys: Keys) -> None:
    world = World(keys)
    machine = world.machine_that_writes()
    other = world.machine()
    other.map.refresh()
    (name,) = world.segments()
    packs = sorted({pack for pack, _ in world.chunks.values()})
    for upto in (len(packs) // 2, len(packs)):
        gone = [pack for pack in packs[:upto] if pack_name(pack) in world.memory.objects()]
        for pack in gone:
            world.memory.delete(pack_name(pack))
        assert world.segments() == [name]
        for one in (machine, other):
            one.map.refresh()
        dropped = machine.map.drop_stale_segments()
        assert dropped == (upto == len(packs))
    assert world.segments() == []
    assert machine.map.drop_stale_segments() == 0
    assert other.map.drop_stale_segments() == 1


# -- what may be wrong with them ---------------------------------------------------------------------------------------


def truncated(world: World) -> None:
    world.put_segment(segment.encode(world.rows())[:-7])


def with_packs_that_are_not_there(world: World) -> None:
    rows = world.rows()
    for pack, _ in rows[::2]:
        world.memory.delete(pack_name(pack))
        world.chunks = {id_: value for id_, value in world.chunks.items() if value[0] != pack}
    world.put_segment(segment.encode(rows))


def with_exchanged_directories(world: World) -> None:
    """Every pack is said to hold what the next one holds; their lengths are the same."""
    rows = world.rows()
    world.put_segment(
        segment.encode([Covered(a.pack, b.blobs) for a, b in zip(rows, rows[1:] + rows[:1], strict=True)])
    )


def with_invented_contents(world: World) -> None:
    """The lengths fit; none of the ids is in any pack."""
    rows = world.rows()
    world.put_segment(
        segment.encode(
            [Covered(pack, [blob._replace(id=ChunkId(os.urandom(24))) for blob in blobs]) for pack, blobs in rows]
        )
    )


def with_lengths_that_do_not_fit(world: World) -> None:
    rows = world.rows()
    world.put_segment(
        segment.encode(
            [
                Covered(pack, [blob._replace(sealed_length=25, content_length=4) for blob in blobs])
                for pack, blobs in rows
            ]
        )
    )


def under_the_key_of_another_domain(world: World) -> None:
    world.put_segment(segment.encode(world.rows()), OTHER)


def twice(world: World) -> None:
    rows = world.rows()
    world.put_segment(segment.encode(rows))
    world.put_segment(segment.encode(rows[: len(rows) // 2]))
    world.put_segment(segment.encode(rows), OTHER)


def of_another_kind(world: World) -> None:
    world.put_segment(segment.encode(world.rows()), kind=Kind.DOCUMENT)


def of_another_version(world: World) -> None:
    world.put_segment(b"\x02" + segment.encode(world.rows())[1:])


def with_a_flipped_byte(world: World) -> None:
    name = world.put_segment(segment.encode(world.rows()))
    content = bytearray(world.memory.objects()[name])
    content[len(content) // 2] ^= 1
    world.memory.delete(name)
    world.memory.put(name, Sealed(bytes(content)))


def that_is_not_one(world: World) -> None:
    world.memory.put(segment_name(bytes(32)), Sealed(b"not a container"))
    world.memory.put("i/short", Sealed(b""))
    world.memory.put("i/" + "zz" * 32, Sealed(b""))


def in_huge_numbers(world: World) -> None:
    for _ in range(500):
        world.put_segment(os.urandom(200))


@pytest.mark.parametrize(
    "wrong",
    [
        truncated,
        with_packs_that_are_not_there,
        with_exchanged_directories,
        with_invented_contents,
        with_lengths_that_do_not_fit,
        under_the_key_of_another_domain,
        twice,
        of_another_kind,
        of_another_version,
        with_a_flipped_byte,
        that_is_not_one,
        in_huge_numbers,
    ],
)
def test_a_wrong_segment_costs_time_only(keys: Keys, wrong: Callable[[World], None]) -> None:
    world = World(keys, 100)
    wrong(world)
    fresh = world.machine()
    packs = {pack for pack, _ in world.chunks.values()}
    assert fresh.map.refresh() == len(packs)
    assert fresh.store.count("get", "i/") <= 8 + 1
    for id_, (pack, content) in world.chunks.items():
        assert fresh.contents.get(DOMAIN, Kind.CHUNK, id_) == content
        (place,) = fresh.map.find(Kind.CHUNK, id_)
        assert (place.pack, place.domain_id) == (pack, DOMAIN)
    assert census.troubled(fresh.map) == []
    assert {pack_name(pack) for pack in packs} == {entry.name for entry in fresh.map.packs(DOMAIN)}
    assert list(fresh.map.packs(OTHER)) == []


def test_a_chunk_that_only_a_segment_claims_is_not_there(keys: Keys) -> None:
    world = World(keys, 100)
    rows = world.rows()
    invented = ChunkId(b"i" * 24)
    first = rows[0]
    rows[0] = Covered(first.pack, [first.blobs[0]._replace(id=invented), *first.blobs[1:]])
    world.put_segment(segment.encode(rows))
    fresh = world.machine()
    fresh.map.refresh()
    assert not fresh.map.has(Kind.CHUNK, invented)
    assert fresh.map.find(Kind.CHUNK, invented) == []
    assert fresh.heads_read() == 1, "the head of the pack that was named"


def test_a_pack_whose_head_is_bad_is_trouble_whatever_a_segment_says(keys: Keys) -> None:
    world = World(keys, 100)
    world.put_segment(segment.encode(world.rows()))
    id_, (pack, _) = next(iter(world.chunks.items()))
    damaged = bytearray(world.memory.objects()[pack_name(pack)])
    damaged[100] ^= 1
    world.memory.delete(pack_name(pack))
    world.memory.put(pack_name(pack), Sealed(bytes(damaged)))
    fresh = world.machine()
    fresh.map.refresh()
    assert fresh.map.find(Kind.CHUNK, id_) == []
    assert [name for name, _ in census.troubled(fresh.map)] == [pack_name(pack)]
    with pytest.raises(IntegrityError):
        fresh.contents.get(DOMAIN, Kind.CHUNK, id_)


def test_a_store_out_of_reach_is_not_a_bad_segment(keys: Keys) -> None:
    class Away(CountingStore):
        def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
            if name.startswith("i/"):
                raise StoreUnavailable("away")
            return super().get(name, offset, length)

        def stat(self, name: str) -> int:
            raise StoreUnavailable("away")

    world = World(keys, 100)
    world.put_segment(segment.encode(world.rows()))
    with pytest.raises(StoreUnavailable):
        BlobMap(Cache.open(None), keys, Away(world.memory)).refresh()


def test_hints_survive_in_the_cache_and_go_with_their_packs(tmp_path: Path, keys: Keys) -> None:
    world = World(keys, 100)
    world.put_segment(segment.encode(world.rows()))
    cache = Cache.open(tmp_path / "cache")
    BlobMap(cache, keys, world.memory).refresh()
    cache.close()
    store = CountingStore(world.memory)
    again = BlobMap(Cache.open(tmp_path / "cache"), keys, store)
    id_, (pack, _) = next(iter(world.chunks.items()))
    world.memory.delete(pack_name(pack))
    again.refresh()
    assert store.count("get") == 0
    assert again.find(Kind.CHUNK, id_) == []


# -- the bytes ---------------------------------------------------------------------------------------------------------

blobs = st.lists(
    st.tuples(st.binary(min_size=24, max_size=24), st.integers(0, 1000), st.integers(0, 1000)),
    min_size=1,
    max_size=5,
    unique_by=lambda blob: blob[0],
)


@given(st.dictionaries(st.binary(min_size=32, max_size=32), blobs, max_size=6))
def test_what_is_encoded_is_decoded(packs: dict[bytes, list[tuple[bytes, int, int]]]) -> None:
    rows = [Covered(pack, placed(found)) for pack, found in sorted(packs.items())]
    assert list(segment.decode(Opened(segment.encode(rows)), "i/x")) == rows
    assert len(segment.encode(rows)) == 8 + sum(segment.row_size(len(row.blobs)) for row in rows)


def placed(found: list[tuple[bytes, int, int]]) -> list[Blob]:
    offset = aligned(72 + 24 + 5 + 4 + 32 * len(found) + 16)
    result = []
    for id_, rlen, less in found:
        sealed = max(21, 21 + rlen - less)
        result.append(Blob(Kind.CHUNK, ChunkId(id_), offset, sealed, rlen))
        offset = aligned(offset + sealed)
    return result


@given(st.binary(max_size=300))
def test_any_bytes_are_a_segment_or_refused(content: bytes) -> None:
    for whole in (content, b"\x01\0\0\0" + content, b"\x01\0\0\0\x01\0\0\0" + content):
        try:
            rows = list(segment.decode(Opened(whole), "i/x"))
        except (IntegrityError, UnknownFormat):
            continue
        assert segment.encode(rows) == whole


def test_the_layout_is_the_specified_one() -> None:
    (blob,) = placed([(b"x" * 24, 5, 0)])
    expected = (
        b"\x01\0\0\0\x01\0\0\0" + b"p" * 32 + (24 + 5 + 4 + 32 + 16).to_bytes(4, "little") + b"\x01\0\0\0"
        + b"x" * 24 + (26).to_bytes(3, "little") + b"\x01" + (5).to_bytes(4, "little")
    )  # fmt: skip
    assert segment.encode([Covered(b"p" * 32, [blob])]) == expected


def test_no_more_is_read_than_the_heads_would_cost(keys: Keys) -> None:
    world = World(keys, 100)
    for _ in range(20):
        world.put_segment(os.urandom(1 << 20))
    fresh = world.machine()
    fresh.map.refresh()
    names = {name for method, name in fresh.store.calls if method == "get" and name.startswith("i/")}
    assert sum(world.memory.stat(name) for name in names) <= 100 * FIRST_READ
