"""What verification reads, remembers and says: levels, budgets, verdicts, intended volumes, bad places."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from lamella.base.errors import SourceError, StoreError, StoreUnavailable
from lamella.base.events import Event
from lamella.base.ids import ChunkId, VolumeId
from lamella.base.names import pack_name
from lamella.base.trust import Clear, Sealed
from lamella.crypto.chunk_id import identifier
from lamella.crypto.seal import PackSealer, new_salt
from lamella.format.container import Kind
from lamella.format.records import Run, RunVolume, raw
from lamella.memory.verdict_changes import forget_damage, record
from lamella.memory.verdicts import Verdicts, VolumeVerdict
from lamella.operations.backup.story import FailedRequest, Request, plan_backup
from lamella.operations.look.listing import volumes
from lamella.operations.shared.findings import VerifyResult
from lamella.operations.shared.selection import select
from lamella.operations.verify.verify import VerifyOptions, verify
from lamella.packs.building import build, raw_body
from lamella.packs.heads import genuine_head
from lamella.repository.repository import Repository
from lamella.stores.base import Store
from lamella.stores.memory import MemoryStore
from lamella_kit.fault_store import FaultStore
from tests.unit.small_repository import CHUNK, OPTIONS, Small, data, image

LETTERS = "abc.0def"


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small.make(tmp_path)


class Counting(MemoryStore):
    """Remembers what was read."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner.objects())
        self.read: list[tuple[str, int]] = []

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        content = super().get(name, offset, length)
        self.read.append((name, len(content)))
        return content

    def packs_read(self) -> list[str]:
        return [name for name, _ in self.read if name.startswith("p/")]


def proof(small: Small, options: VerifyOptions, store: Store | None = None, host: str = "one") -> VerifyResult:
    with small.opened(host, store=store) as repo:
        return verify(repo, select(repo, []), options)


def flip_chunk(small: Small, letter: str = "a") -> tuple[ChunkId, bytes]:
    """Flip a byte inside a sealed chunk; returns the id of the chunk and the name of its pack."""
    with small.opened() as repo:
        repo.refresh_map()
        (domain,) = {one.snapshot.added.domain_id for one in select(repo, [])}
        id_ = identifier(repo.keys.domain(domain), Kind.CHUNK)(data(letter))
        (place, *_) = repo.blobs.find(Kind.CHUNK, id_)
    flip(small.store, place.pack, place.blob.offset + place.blob.sealed_length // 2)
    return id_, place.pack


def flip(store: MemoryStore, pack: bytes, offset: int) -> None:
    name = f"p/{pack.hex()[:2]}/{pack.hex()}"
    content = bytearray(store.get(name))
    content[offset] ^= 1
    store.delete(name)
    store.put(name, Clear(bytes(content)))


def restorable(small: Small, host: str = "fresh") -> list[str]:
    return proof(small, VerifyOptions("restore"), host=host).unrestorable


# -- what is read ------------------------------------------------------------------------------------------------------


def test_structure_reads_no_data_and_of_known_trees_only_roots(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", "".join(chr(97 + number % 26) for number in range(300)))
    small.backup(disk)
    store = Counting(small.store)
    assert not proof(small, VerifyOptions("structure"), store).findings
    assert len(store.packs_read()) == 1, "the root"
    assert sum(size for name, size in store.read if name.startswith("p/")) < 2000
    store.read.clear()
    assert not proof(small, VerifyOptions("structure"), store, host="stranger").findings
    read = sum(size for name, size in store.read if name.startswith("p/"))
    assert read < 64 * 1024, "heads and nodes"


def test_structure_finds_a_pack_that_is_gone_or_has_another_length(small: Small, tmp_path: Path) -> None:
    small.backup(image(tmp_path / "disk.img", LETTERS))
    for pack in [name for name in small.store.objects() if name.startswith("p/")]:
        for content in (None, small.store.objects()[pack] + b"x"):
            changed = MemoryStore({**small.store.objects()})
            changed.delete(pack)
            if content is not None:
                changed.put(pack, Clear(content))
            result = proof(small, VerifyOptions("structure"), changed)
            assert result.damaged
            assert result.unrestorable, pack


def test_a_sample_reads_something_however_small(small: Small, tmp_path: Path) -> None:
    small.backup(image(tmp_path / "disk.img", "ab"))
    for _ in range(5):
        assert proof(small, VerifyOptions(percent=1e-9)).checked_bytes == CHUNK


def test_a_budget_reads_at_least_one_pack_and_in_the_end_all(small: Small, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    for letters in ("abc", "abd", "abe", "abf", "abg"):
        small.backup(image(disk, letters))
    store = Counting(small.store)
    everything = {name for name in store.objects() if name.startswith("p/")}
    assert len(everything) == 5
    seen: list[str] = []
    for _ in range(5):
        with small.opened(store=store) as repo:
            store.read.clear()
            verify(repo, select(repo, []), VerifyOptions(budget=1))
            whole = [name for name, size in store.read if size == store.stat(name) and name.startswith("p/")]
            assert len(whole) == 1
            seen += whole
    assert sorted(seen) == sorted(everything), "each pack once before any twice"
    with small.opened(store=store) as repo:
        store.read.clear()
        verify(repo, select(repo, []), VerifyOptions(budget=1 << 30))
        assert {name for name in store.packs_read() if name.startswith("p/")} == everything


def test_a_budgeted_run_that_is_stopped_keeps_what_it_read(small: Small, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    for letters in ("abc", "abd", "abe", "abf"):
        small.backup(image(disk, letters))

    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    with small.opened() as repo, pytest.raises(KeyboardInterrupt):
        verify(repo, select(repo, []), VerifyOptions(budget=1 << 30, workers=1), stop)
    with small.opened() as repo:
        repo.refresh_map()
        due = [one.time_ms for one in repo.suspects.due(None, repo.clock())]
    assert due == sorted(due)
    assert sum(time > 0 for time in due) == 1


def test_a_clock_that_was_wrong_once_does_not_spare_a_pack(small: Small, tmp_path: Path) -> None:
    small.backup(image(tmp_path / "disk.img", "abc"))
    with small.opened() as repo:
        repo.refresh_map()
        packs = [one.pack for one in repo.suspects.due(None, 1 << 50)]
        repo.suspects.prove(packs, 1 << 60)
        assert [one.pack for one in repo.suspects.due(None, repo.clock())] == packs


def test_with_both_the_smaller_amount_is_read(small: Small, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    for letters in ("abc", "abd", "abe", "abf"):
        small.backup(image(disk, letters))
    assert proof(small, VerifyOptions(budget=1 << 30, percent=100)).checked_chunks == 6
    assert proof(small, VerifyOptions(budget=1 << 30, percent=0.001)).checked_chunks < 6


# -- restoring without a target ----------------------------------------------------------------------------------------


def test_the_restore_level_names_the_bytes_that_are_lost(small: Small, tmp_path: Path) -> None:
    small.backup(image(tmp_path / "disk.img", LETTERS))
    flip_chunk(small, "c")
    result = proof(small, VerifyOptions("restore"), host="fresh")
    (finding,) = [one for one in result.findings if one.kind == "chunk"]
    assert finding.message.startswith(f"bytes {2 * CHUNK} to {3 * CHUNK}: ")
    assert len(result.unrestorable) == 1
    assert result.checked_bytes == 5 * CHUNK, "the others were read all the same"


def test_the_restore_level_notices_a_manifest_that_its_chunks_do_not_make(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that gave other bytes than its ids say would be noticed, too."""
    small.backup(image(tmp_path / "disk.img", LETTERS))
    monkeypatch.setattr("lamella.operations.verify.compare.identify_chunk", lambda repo, one: lambda content: b"x" * 24)
    result = proof(small, VerifyOptions("restore"))
    assert [one.kind for one in result.findings] == ["tree"]
    assert result.unrestorable


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_the_list_shows_the_deepest_look(small: Small, tmp_path: Path) -> None:
    small.backup(image(tmp_path / "disk.img", LETTERS))
    with small.opened() as repo:
        assert volumes(repo)[0]["verified"] is None
    proof(small, VerifyOptions("full"))
    proof(small, VerifyOptions("structure"))
    with small.opened() as repo:
        row = volumes(repo)[0]
        assert (row["verified"]["level"], row["verified"]["result"]) == ("full", "ok"), "the deeper look says more"
        assert row["verified"]["snapshot"] == row["latest"]
    with small.opened("two") as repo:
        assert volumes(repo)[0]["verified"] is None, "each host has its own"


def test_bad_news_stays_until_a_look_as_deep(small: Small, tmp_path: Path) -> None:
    small.backup(image(tmp_path / "disk.img", LETTERS))
    with small.opened() as repo:
        volume_id = VolumeId(b"v" * 16)

        def say(time_ms: int, level: str, result: str) -> str:
            record(repo.memory, [(volume_id, VolumeVerdict(time_ms, level, result, 1, "x", 0))])
            found = Verdicts(repo.memory).of(volume_id)  # one object says what was there when it was asked first
            return "" if found is None else f"{found.level} {found.result}"

        assert say(1, "full", "damaged") == "full damaged"
        assert say(2, "structure", "ok") == "full damaged"
        assert say(3, "sample", "ok") == "full damaged"
        assert say(4, "restore", "ok") == "restore ok"
        assert say(5, "structure", "incomplete") == "structure incomplete"
        assert say(6, "sample", "ok") == "restore ok"
        assert say(7, "full", "incomplete") == "full incomplete"
        assert say(8, "sample", "ok") == "full ok", "the volume is saved again; the look was as deep"
        assert say(9, "sample", "damaged") == "sample damaged"
        assert say(10, "sample", "ok") == "sample damaged", "it read other chunks"
        assert say(11, "structure", "incomplete") == "sample damaged"
        assert say(12, "full", "ok") == "full ok"
        assert say(13, "sample", "ok") == "full ok"
        assert say(14, "structure", "damaged") == "structure damaged"
        assert say(15, "structure", "ok") == "full ok", "it compared the same references"
        assert say(16, "sample", "damaged") == "sample damaged"
        forget_damage(repo.memory, [volume_id])
        found = Verdicts(repo.memory).of(volume_id)
        assert found is not None
        assert found.result != "damaged"


def _write(repo: Repository, content: object) -> None:
    repo.memory.replace(repo.memory.directory / "verified.json", json.dumps(content).encode())


def test_a_damaged_memory_of_verdicts_is_a_lost_one(small: Small) -> None:
    with small.opened() as repo:
        good = {"time_ms": 1, "level": "full", "result": "ok", "snapshots": 1, "newest": "x", "read_bytes": 0}
        bad: list[object] = [
            7,
            [],
            {},
            {**good, "time_ms": "x"},
            {**good, "level": "other"},
            {**good, "time_ms": 1 << 90},
        ]
        for row in bad:
            _write(repo, {"volumes": {"76" * 16: {"full": row}}})
            assert Verdicts(repo.memory).of(VolumeId(b"v" * 16)) is None
        whole: object
        for whole in (7, [], {"volumes": 3}, {"volumes": {"76" * 16: 3}}):
            _write(repo, {"volumes": whole})
            assert Verdicts(repo.memory).of(VolumeId(b"v" * 16)) is None


def test_a_state_directory_that_cannot_be_written_is_a_note(small: Small, tmp_path: Path) -> None:
    small.backup(image(tmp_path / "disk.img", "a"))
    with small.opened() as repo:
        (repo.memory.directory / "verified.json").mkdir()
        result = verify(repo, select(repo, []), VerifyOptions("structure"))
    assert [(one.kind, one.severity) for one in result.findings] == [("state", "note")]


# -- what runs intended ------------------------------------------------------------------------------------------------


def save_with_failure(small: Small, good: Path, failed: str) -> str:
    with small.opened() as repo:
        requests: list[Request | FailedRequest] = [
            Request(None, small.source(good)),
            FailedRequest(failed, SourceError("input/output error").message),
        ]
        return plan_backup(repo, requests, OPTIONS).execute().snapshot


def test_a_volume_that_failed_is_not_reported_fine(small: Small, tmp_path: Path) -> None:
    disk, other = image(tmp_path / "disk.img", "a"), image(tmp_path / "other.img", "b")
    small.backup(disk)
    small.backup(other)
    name = save_with_failure(small, disk, "other")
    result = proof(small, VerifyOptions("full"))
    assert not result.damaged
    assert result.incomplete
    (finding,) = result.findings
    assert (finding.obj, finding.severity) == ("other", "incomplete")
    assert name in finding.message
    assert "input/output error" in finding.message
    with small.opened() as repo:
        assert {row["volume"]: row["verified"]["result"] for row in volumes(repo)} == {
            "disk": "ok",
            "other": "incomplete",
        }
        assert not verify(repo, select(repo, ["disk"]), VerifyOptions("structure")).incomplete
        assert verify(repo, select(repo, ["other"]), VerifyOptions("structure")).incomplete
    small.backup(other)
    assert not proof(small, VerifyOptions("structure")).findings


def test_a_name_that_was_a_mistake_is_forgiven_by_the_next_run(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", "a")
    save_with_failure(small, disk, "never-there")
    assert proof(small, VerifyOptions("structure")).incomplete
    small.backup(disk)
    result = proof(small, VerifyOptions("structure"))
    assert not result.incomplete
    assert [(one.obj, one.severity) for one in result.findings] == [("never-there", "note")]


def test_a_run_whose_snapshot_is_not_there_is_damage(small: Small, tmp_path: Path) -> None:
    saved = small.backup(image(tmp_path / "disk.img", "a"))
    with small.opened() as repo:
        (state,) = repo.catalogue.volumes.values()
        rows = (RunVolume(state.volume_id, "disk", False, ""), RunVolume(VolumeId(b"x" * 16), "gone", False, ""))
        repo.publish([raw(Run(saved.snapshot, True, rows))])
    result = proof(small, VerifyOptions("structure"))
    assert [(one.kind, one.obj) for one in result.findings] == [("run", f"gone@{saved.snapshot}")]
    assert result.damaged


# -- bad places --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["full", "restore", "sample"])
def test_what_verification_found_bad_is_stored_anew_by_the_next_backup(
    small: Small, tmp_path: Path, level: str
) -> None:
    disk = image(tmp_path / "disk.img", LETTERS)
    small.backup(disk)
    id_, pack = flip_chunk(small)
    with small.opened() as repo:
        repo.refresh_map()
        assert repo.blobs.has(Kind.CHUNK, id_)
    assert proof(small, VerifyOptions(level, percent=100 if level == "sample" else None)).damaged
    small.backup(disk)
    with small.opened() as repo:
        repo.refresh_map()
        assert [place.pack != pack for place in repo.blobs.find(Kind.CHUNK, id_)] == [True]
    assert restorable(small) == [], "also for somebody who knows nothing"


def test_a_bad_node_is_stored_anew_without_a_verification(small: Small, tmp_path: Path) -> None:
    """Reading it as the base shows that it is bad."""
    disk = image(tmp_path / "disk.img", LETTERS)
    small.backup(disk)
    with small.opened() as repo:
        repo.refresh_map()
        (one,) = select(repo, [])
        (place,) = repo.blobs.find(Kind.LEAF, one.snapshot.added.root)
    flip(small.store, place.pack, place.blob.offset + 3)
    small.backup(disk)
    assert restorable(small) == []


def test_structure_remembers_damage_and_notices_that_it_is_mended(small: Small, tmp_path: Path) -> None:
    small.backup(image(tmp_path / "disk.img", LETTERS))
    sound = small.store.objects()
    id_, _ = flip_chunk(small)
    assert not proof(small, VerifyOptions("structure")).damaged, "a listing cannot tell"
    assert proof(small, VerifyOptions("full")).damaged
    assert proof(small, VerifyOptions("structure")).damaged, "but this host knows"
    mended = MemoryStore(sound)
    assert not proof(small, VerifyOptions("structure"), mended).damaged
    with small.opened(store=mended) as repo:
        repo.refresh_map()
        assert repo.blobs.has(Kind.CHUNK, id_)
        assert repo.suspects.packs() == []


def test_a_full_verification_clears_what_is_readable_again(small: Small, tmp_path: Path) -> None:
    small.backup(image(tmp_path / "disk.img", LETTERS))
    sound = small.store.objects()
    flip_chunk(small)
    proof(small, VerifyOptions("full"))
    with small.opened(store=MemoryStore(sound)) as repo:
        verify(repo, select(repo, []), VerifyOptions("full"))
        assert repo.suspects.packs() == []


def test_an_object_that_cannot_be_read_for_a_moment_is_not_suspected(small: Small, tmp_path: Path) -> None:
    """Only what is wrong for good is: storing it again would cost space."""
    small.backup(image(tmp_path / "disk.img", "a"))
    store = FaultStore(small.store)
    with small.opened(store=store) as repo:
        repo.refresh_map()
        (one,) = select(repo, [])
        for error in (StoreUnavailable("a bad moment"), StoreError("cut off")):
            store.fail("get", error)
            with pytest.raises(Exception, match="cannot be read"):
                list(repo.tree_reader(one.snapshot.added.domain_id).runs(repo.tree(one.snapshot)))
            suspected = repo.suspects.packs()
            assert bool(suspected) == (not error.retryable)


# -- garbage under good ids --------------------------------------------------------------------------------------------


def claim_everything(small: Small) -> None:
    """What whoever holds the data key can do: packs that claim every id there is, and hold garbage."""
    with small.opened() as repo:
        repo.refresh_map()
        for name in [entry.name for entry in repo.store.list("p/")]:
            head = genuine_head(repo.store, repo.keys, name)
            sealer = PackSealer(repo.keys.domain(head.domain_id), new_salt())
            blobs: list[tuple[Kind, ChunkId, Sealed, int]] = []
            for one in head.blobs:
                sealer.reserve(one.kind, one.id)
                sealed = sealer.seal(one.kind, one.id, raw_body(b"x" * one.content_length))
                blobs.append((one.kind, one.id, sealed, one.content_length))
            content, _ = build(repo.keys, head.domain_id, sealer, blobs)
            small.store.put(pack_name(hashlib.sha256(content).digest()), content)


@pytest.mark.parametrize("level", ["full", "restore", "sample", "structure"])
def test_garbage_beside_good_copies_is_a_note(small: Small, tmp_path: Path, level: str) -> None:
    small.backup(image(tmp_path / "disk.img", LETTERS))
    claim_everything(small)
    for host in ("one", "fresh", "one"):
        found = proof(small, VerifyOptions(level), host=host)
        assert not found.damaged
        assert found.unrestorable == []
    if level == "full":
        assert {one.severity for one in found.findings if one.kind in ("pack", "blob")} == {"note"}


def test_garbage_does_not_hide_that_the_good_copy_is_bad(small: Small, tmp_path: Path) -> None:
    small.backup(image(tmp_path / "disk.img", LETTERS))
    claim_everything(small)
    flip_chunk(small)
    for host in ("one", "fresh"):
        found = proof(small, VerifyOptions("full"), host=host)
        assert found.damaged
        assert found.unrestorable != []
