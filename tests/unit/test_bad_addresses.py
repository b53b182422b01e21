"""Bad addresses between hosts: published once, applied once, cleared by reading, never a verdict."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamella.base.errors import StoreError, StoreUnavailable
from lamella.base.ids import ChunkId
from lamella.base.names import pack_name
from lamella.base.trust import Clear
from lamella.format.container import Blob, Kind
from lamella.format.lost import MAX_BAD, Address, Bad
from lamella.format.records import raw
from lamella.operations.backup.story import Request, plan_backup
from lamella.operations.look.listing import volumes
from lamella.operations.shared.findings import VerifyResult
from lamella.operations.shared.selection import select
from lamella.operations.verify.verify import VerifyOptions, verify
from lamella.repository.repository import Repository
from lamella.stores.base import Store
from lamella.stores.memory import MemoryStore
from tests.unit.small_repository import CHUNK, OPTIONS, Small, image

LEVELS = {
    "structure": VerifyOptions("structure"),
    "sample": VerifyOptions("sample", percent=100),
    "in turn": VerifyOptions("sample", budget=1 << 30),
    "full": VerifyOptions("full"),
    "restore": VerifyOptions("restore"),
}
DEEP = [name for name in LEVELS if name != "structure"]


@pytest.fixture
def small(tmp_path: Path) -> Small:
    """One snapshot with the chunks a, b and c, all in one pack."""
    small = Small.make(tmp_path)
    small.backup(image(tmp_path / "disk.img", "abc"))
    return small


def addresses(small: Small, kind: Kind = Kind.CHUNK) -> list[Address]:
    with small.opened() as repo:
        repo.refresh_map()
        found = [entry.name for entry in repo.blobs.packs()]
        rows = [(pack, repo.blobs.directory(pack)) for pack in (bytes.fromhex(name[-64:]) for name in found)]
        return [
            Address(pack, blob.kind, blob.id)
            for pack, directory in rows
            for blob in (directory.blobs if directory is not None else ())
            if blob.kind == kind
        ]


def blob_at(small: Small, one: Address) -> Blob:
    with small.opened() as repo:
        repo.refresh_map()
        (place,) = [row for row in repo.blobs.find(one.kind, one.id) if row.pack == one.pack]
        return place.blob


def length_of(small: Small, one: Address) -> int:
    return blob_at(small, one).sealed_length


def middle(small: Small, one: Address) -> int:
    """A position in the pack amid that blob."""
    return blob_at(small, one).offset + length_of(small, one) // 2


def spoiled(small: Small, one: Address) -> MemoryStore:
    """The store, with a flipped byte in that blob, or in that pack's head."""
    at = 80 if one.kind == Kind.DIRECTORY else middle(small, one)
    objects = small.store.objects()
    content = bytearray(objects[pack_name(one.pack)])
    content[at] ^= 1
    return MemoryStore({**objects, pack_name(one.pack): Clear(bytes(content))})


def proof(small: Small, level: str, store: Store | None = None, host: str = "one") -> VerifyResult:
    with small.opened(host, store=store) as repo:
        return verify(repo, select(repo, []), LEVELS[level])


def published(small: Small, store: Store) -> set[Address]:
    with small.opened("onlooker", store=store) as repo:
        return set(repo.catalogue.bad)


def commits(store: MemoryStore) -> int:
    return sum(name.startswith("w/") for name in store.objects())


def says_bad(small: Small, *found: Address) -> None:
    """Another host publishes a BAD that is not true."""
    with small.opened("other") as repo:
        repo.publish([raw(Bad(found))])


def in_map(repo: Repository, one: Address) -> bool:
    return any(place.pack == one.pack for place in repo.blobs.find(one.kind, one.id))


# -- publishing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", DEEP)
def test_a_bad_chunk_is_published_once(small: Small, level: str) -> None:
    bad = addresses(small)[1]
    store = spoiled(small, bad)
    before = commits(store)
    assert proof(small, level, store).recorded == 1
    assert published(small, store) == {bad}
    assert commits(store) == before + 1
    for host in ("one", "two"):
        again = proof(small, level, store, host)
        assert again.damaged
        assert again.recorded == 0
    assert commits(store) == before + 1


@pytest.mark.parametrize("level", LEVELS)
def test_a_bad_head_is_published_at_every_level(small: Small, level: str) -> None:
    head = Address.head(addresses(small)[0].pack)
    store = spoiled(small, head)
    assert proof(small, level, store, host="fresh").recorded == 1
    assert published(small, store) == {head}
    assert proof(small, level, store, host="two").recorded == 0


def test_a_node_that_does_not_open_is_published_by_a_look_at_the_structure(small: Small) -> None:
    (leaf,) = addresses(small, Kind.LEAF)
    store = spoiled(small, leaf)
    assert proof(small, "structure", store).recorded == 1
    assert published(small, store) == {leaf}


def test_nothing_is_published_where_nothing_is_bad(small: Small) -> None:
    before = commits(small.store)
    for level in LEVELS:
        assert (proof(small, level).recorded, proof(small, level).findings) == (0, [])
    assert commits(small.store) == before


def test_a_repair_examines_without_publishing(small: Small) -> None:
    bad = addresses(small)[0]
    store = spoiled(small, bad)
    with small.opened(store=store) as repo:
        result = verify(repo, select(repo, []), VerifyOptions("full", publish=False))
    assert (result.bad, result.recorded, published(small, store)) == ({bad}, 0, set())


class OneSector(MemoryStore):
    """A disk on which a byte in the middle of a blob cannot be read, for good or for a moment."""

    def __init__(self, small: Small, one: Address, error: StoreError) -> None:
        super().__init__(small.store.objects())
        self.error = error
        self.name, self.at = pack_name(one.pack), middle(small, one)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        content = super().get(name, offset, length)
        if name == self.name and offset <= self.at < offset + len(content):
            raise self.error
        return content


@pytest.mark.parametrize("level", ["in turn", "full"])
def test_of_a_pack_with_a_bad_sector_only_what_lies_there_is_bad(small: Small, tmp_path: Path, level: str) -> None:
    (tmp_path / "noise.img").write_bytes(os.urandom(4 * CHUNK))
    small.backup(tmp_path / "noise.img")
    *good, bad = [one for one in addresses(small) if length_of(small, one) > CHUNK]
    store = OneSector(small, bad, StoreError("input/output error"))
    result = proof(small, level, store)
    assert result.unrestorable
    assert published(small, store) == {bad}
    with small.opened(store=store) as repo:
        repo.refresh_map()
        assert [in_map(repo, one) for one in (*good, bad)] == [True, True, True, False]


def test_what_cannot_be_read_for_a_moment_is_not_published(small: Small) -> None:
    bad = addresses(small)[1]
    store = OneSector(small, bad, StoreUnavailable("a bad moment"))
    for level in DEEP:
        result = proof(small, level, store)
        assert result.damaged, level
        assert (result.bad, result.recorded) == (set(), 0), level
        assert published(small, store) == set()


class CannotTake(MemoryStore):
    """A store that a commit cannot be put into."""

    def put(self, name: str, content: object) -> None:
        raise StoreUnavailable("the link broke")


def test_what_cannot_be_recorded_changes_no_verdict(small: Small) -> None:
    bad = addresses(small)[1]
    store = CannotTake(spoiled(small, bad).objects())
    result = proof(small, "full", store)
    assert (result.damaged, result.recorded, result.bad) == (True, 0, {bad})
    (note,) = [one for one in result.findings if one.severity == "note"]
    assert note.kind == "record"
    assert "the link broke" in note.message


def test_very_many_are_published_over_several_verifications(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamella.operations.verify.objects.MAX_BAD", 2)
    monkeypatch.setattr("lamella.operations.verify.objects._MOST_RECORDS", 1)
    rows = addresses(small)
    objects = small.store.objects()
    content = bytearray(objects[pack_name(rows[0].pack)])
    for one in rows:
        content[middle(small, one)] ^= 1
    store = MemoryStore({**objects, pack_name(rows[0].pack): Clear(bytes(content))})
    assert [proof(small, "full", store).recorded for _ in range(3)] == [2, 1, 0]
    assert published(small, store) == set(rows)
    assert MAX_BAD == 4096


# -- what is known is read again ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", DEEP)
def test_what_others_found_is_read_again(small: Small, level: str) -> None:
    bad = addresses(small)[1]
    store = spoiled(small, bad)
    proof(small, "full", store)
    result = proof(small, level, store, host="two")
    rows = [one for one in result.findings if one.kind == "blob"]
    assert [(one.severity, one.obj) for one in rows] == [("damage", pack_name(bad.pack))]
    assert bad.id.hex()[:16] in rows[0].message
    assert len(result.unrestorable) == 1


def test_damage_that_left_a_sample_nothing_to_count_is_remembered_as_a_samples(tmp_path: Path) -> None:
    small = Small.make(tmp_path)
    small.backup(image(tmp_path / "disk.img", "a"))
    (bad,) = addresses(small)
    store = spoiled(small, bad)
    proof(small, "full", store, host="two")
    result = proof(small, "sample", store)
    assert (result.checked_chunks, result.damaged) == (0, True)
    with small.opened(store=store) as repo:
        row = volumes(repo)[0]["verified"]
        assert (row["level"], row["result"]) == ("sample", "damaged")


def test_a_small_sample_meets_what_others_found(small: Small) -> None:
    bad = addresses(small)[1]
    store = spoiled(small, bad)
    proof(small, "full", store)
    for number in range(3):
        with small.opened(f"h{number}", store=store) as repo:
            assert verify(repo, select(repo, []), VerifyOptions("sample", percent=1e-9)).unrestorable


@pytest.mark.parametrize("level", DEEP)
def test_a_false_alarm_dies_with_the_next_reading(small: Small, level: str) -> None:
    one, two, _ = addresses(small)
    says_bad(small, one, Address.head(one.pack), Address(one.pack, Kind.CHUNK, ChunkId(b"n" * 24)))
    with small.opened() as repo:
        repo.refresh_map()
        assert not in_map(repo, one)
    result = proof(small, level)
    assert (result.findings, result.unrestorable) == ([], [])
    with small.opened() as repo:
        repo.refresh_map()
        assert in_map(repo, one)
        assert in_map(repo, two)
        assert repo.suspects.packs() == []


def test_addresses_in_packs_that_are_gone_are_no_damage(small: Small) -> None:
    says_bad(small, Address(b"g" * 32, Kind.CHUNK, ChunkId(b"n" * 24)), Address.head(b"h" * 32))
    for level in LEVELS:
        assert proof(small, level).findings == []


# -- what another host makes of it -------------------------------------------------------------------------------------


def test_a_published_address_is_taken_out_of_the_map_once(small: Small) -> None:
    one, two, _ = addresses(small)
    with small.opened("two") as repo:
        repo.refresh_map()
        assert in_map(repo, one)
    says_bad(small, one)
    with small.opened("two") as repo:
        repo.refresh_map()
        assert [in_map(repo, row) for row in (one, two)] == [False, True]
        assert repo.suspects.packs() == [one.pack]
        repo.suspects.clear(one.pack, [(one.kind, one.id)])
    for _ in range(2):
        with small.opened("two") as repo:
            repo.refresh_map()
            assert in_map(repo, one), "what was read and is sound stays"
    says_bad(small, two)
    with small.opened("two") as repo:
        repo.refresh_map()
        assert [in_map(repo, row) for row in (one, two)] == [True, False]


def test_a_bad_head_takes_everything_in_the_pack_out(small: Small) -> None:
    rows = addresses(small)
    says_bad(small, Address.head(rows[0].pack))
    with small.opened("two") as repo:
        repo.refresh_map()
        assert not any(in_map(repo, row) for row in rows)


def test_a_pack_that_is_gone_has_its_turn_when_it_is_back(small: Small) -> None:
    one, *_ = addresses(small)
    says_bad(small, one)
    without = MemoryStore(small.store.objects())
    without.delete(pack_name(one.pack))
    other = MemoryStore({**small.store.objects()})
    with small.opened("two", store=without) as repo, pytest.raises(Exception, match="no packs"):
        repo.refresh_map()
    with small.opened("two", store=other) as repo:
        repo.refresh_map()
        assert not in_map(repo, one)


def test_a_hint_of_an_index_segment_does_not_bring_it_back(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, _ = addresses(small)
    with small.opened() as repo:
        repo.refresh_map()
        monkeypatch.setattr("lamella.packs.blobmap.WORTH_WRITING", 0)
        monkeypatch.setattr("lamella.packs.blobmap.WORTH_READING", 1)
        assert repo.blobs.write_segments()
    says_bad(small, one)
    with small.opened("fresh") as repo:
        repo.refresh_map()
        assert in_map(repo, two)
        assert not in_map(repo, one)


def saved_by_two(small: Small, disk: Path) -> int:
    """Let another host that reads the same source save it; returns the new chunks."""
    with small.opened("two") as repo:
        result = plan_backup(repo, [Request(None, small.source(disk))], OPTIONS).execute()
    assert result.complete, result
    return result.volumes[0].new_chunks


def test_another_host_stores_anew_what_was_found_bad(small: Small, tmp_path: Path) -> None:
    bad = addresses(small)[1]
    disk = tmp_path / "disk.img"
    small.store = spoiled(small, bad)
    small.store = MemoryStore(small.store.objects())
    assert saved_by_two(small, disk) == 0, "without being told it relies on the pack"
    proof(small, "full")
    assert saved_by_two(small, disk) == 1
    with small.opened("judge") as repo:
        result = verify(repo, select(repo, ["disk"]), VerifyOptions("full"))
        assert result.unrestorable == []
        assert [one.kind for one in result.findings] == ["blob", "pack"]
        assert verify(repo, select(repo, ["disk"]), VerifyOptions("restore")).unrestorable == []


def flood(small: Small, number: int, host: str) -> list[Address]:
    made = [Address(bytes([at]) * 32, Kind.CHUNK, ChunkId(bytes([at]) * 24)) for at in range(1, number + 1)]
    for one in made:
        small.publish([raw(Bad((one,)))], host)
    return made


def test_of_a_writers_flood_the_newest_addresses_count_and_nobody_elses_go(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    (true, *_) = addresses(small)
    small.publish([raw(Bad((true,)))], "honest")
    made = flood(small, 5, "flooding")
    with small.opened() as repo:
        assert repo.catalogue.bad == {true, *made}
    monkeypatch.setattr("lamella.history.authority.BAD_COUNTED", 3)
    with small.opened() as repo:
        assert repo.catalogue.bad == {true, *made[-3:]}
