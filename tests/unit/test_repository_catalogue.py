"""What commits add up to: names, whose word counts, conflicts, and records of later versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lamella.base.errors import RepositoryError
from lamella.base.ids import DomainId, SnapId
from lamella.crypto.sign import sign
from lamella.format.owners import Give, Join
from lamella.format.records import Confirm, File, FileGone, RawRecord, Ref, Volume, prune_signed_message, raw
from lamella.history.latest import before, latest
from lamella.operations.prune.needed import history_troubles
from lamella.repository.repository import Repository
from tests.unit.small_repository import WRITER, Small, snapshot_record, volume_record

DOMAIN = DomainId(bytes([7] * 16))
UNKNOWN_REQUIRED, UNKNOWN_OPTIONAL = RawRecord(0x0123, b"later"), RawRecord(0x8123, b"later")


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small.make(tmp_path)


@pytest.fixture
def one(small: Small) -> Iterator[Repository]:
    with small.opened() as repo:
        yield repo


@pytest.fixture
def two(small: Small) -> Iterator[Repository]:
    """Another host, with a writer's secret."""
    with small.opened("two", WRITER) as repo:
        yield repo


def volume(by: Repository, number: int, name: str, identity: bytes = b"file:x") -> Volume:
    """A volume that this host creates."""
    return volume_record(by.memory.creator().id, number, name, identity)


def shown(repo: Repository) -> list[str]:
    repo.reload()
    return sorted(repo.catalogue.shown_names().values())


# -- names -------------------------------------------------------------------------------------------------------------


def test_volumes_of_one_name_are_told_apart(one: Repository) -> None:
    first, second = volume(one, 1, "disk"), volume(one, 2, "disk")
    one.publish([first])
    assert shown(one) == ["disk"]
    one.publish([second, volume(one, 3, "other")])
    assert shown(one) == sorted([*(f"disk~{made.volume_id.hex()[:4]}" for made in (first, second)), "other"])


def test_the_last_word_of_the_author_counts_even_when_its_clock_went_back(small: Small, one: Repository) -> None:
    one.clock = lambda: 2_000_000_000_000
    one.publish([raw(volume(one, 1, "before"))])
    one.clock = lambda: 1_000_000_000_000
    one.publish([raw(volume(one, 1, "after", b"file:new"))])
    assert shown(one) == ["after"]
    (state,) = one.catalogue.volumes.values()
    assert state.identity == b"file:new" and state.owners == {one.own_writer}


def test_another_writers_name_is_not_believed(one: Repository, two: Repository) -> None:
    one.publish([volume(one, 1, "mine")])
    two.reload()
    two.publish([volume(one, 1, "stolen")])
    assert shown(one) == ["mine"]
    assert any("not believed" in note for note in one.catalogue.notes)
    assert next(iter(one.catalogue.volumes.values())).owners == {one.own_writer}


def test_another_writers_name_counts_when_the_prune_key_signed_it(small: Small, two: Repository) -> None:
    two.publish([volume(two, 1, "theirs")])
    with small.opened() as admin:
        admin.publish([volume(two, 1, "renamed", b"file:elsewhere")])
        assert shown(admin) == ["renamed"]
        (state,) = admin.catalogue.volumes.values()
        assert state.owners == {two.own_writer} and state.identity == b"file:elsewhere"
        assert admin.catalogue.notes == []
    two.reload()
    two.publish([volume(two, 1, "back again")])  # the author's later word
    assert shown(two) == ["back again"]


def test_a_signature_from_another_place_does_not_count(small: Small, one: Repository, two: Repository) -> None:
    """Copying a signed record into another commit does not carry the signature along."""
    one.publish([volume(one, 9, "admins")])
    one.reload()
    signed = next(
        record
        for chain in one.history.chains.values()
        for commit in chain.commits
        for record in commit.body.records
        if record.type == Volume.TYPE
    )
    two.publish([volume(two, 5, "theirs")])
    three = volume(two, 5, "forged")
    forged = RawRecord(signed.type, raw(three).value[:-64] + signed.value[-64:])
    with small.opened("three", WRITER) as repo:
        repo.publish([forged])
    assert shown(one) == ["admins", "theirs"]


def test_nobody_owns_what_somebody_else_created(one: Repository, two: Repository) -> None:
    """Neither by being first, nor by a smaller id, nor by saying that it was the creator."""
    disk = volume(one, 1, "disk")
    two.publish([replace(disk, name="first"), replace(disk, creator=two.memory.creator().id, name="taken")])
    one.reload()
    one.publish([raw(disk), raw(snapshot_record(1, volume=disk.volume_id))])
    two.reload()
    two.publish([raw(snapshot_record(2, volume=disk.volume_id))])
    for repo in (one, two):
        assert shown(repo) == ["disk"]
        (state,) = repo.catalogue.volumes.values()
        assert state.owners == {one.own_writer} and state.own == (repo is one)
        assert {shot.name: (shot.claim, shot.counts) for shot in state.snapshots} == {
            "snap-0001": (False, True),
            "snap-0002": (True, repo is two),
        }


def test_an_id_that_does_not_follow_is_a_claim_unless_the_prune_key_signed(one: Repository, two: Repository) -> None:
    """As a repair makes it from a tree note: nobody knows who created the volume."""
    found = replace(volume(two, 1, "found"), nonce=bytes(16))
    two.publish([found, raw(snapshot_record(1, volume=found.volume_id))])
    digits = found.volume_id.hex()[:4]
    assert shown(one) == [f"found~{digits}"] and shown(two) == ["found"]
    assert [shot.claim for shot in one.catalogue.snapshots] == [True]
    one.publish([found])
    assert shown(one) == ["found"] == shown(two)
    assert [shot.claim for shot in one.catalogue.snapshots] == [False]


def test_who_joins_owns_what_the_other_owns_and_who_is_given_a_volume_that_one(
    one: Repository, two: Repository
) -> None:
    mine, also = volume(one, 1, "mine"), volume(one, 2, "also")
    one.publish([mine, also])
    two.reload()
    two.publish([raw(Join(two.memory.creator().id, one.memory.creator().id)), volume(one, 1, "stolen")])
    assert shown(one) == ["also", "mine"]  # without the signature nobody joins
    one.publish([Give(mine.volume_id, two.memory.creator().id)])
    two.reload()
    two.publish([volume(one, 1, "given"), volume(one, 2, "not given")])
    assert shown(one) == ["also", "given"]
    one.publish([Join(two.memory.creator().id, one.memory.creator().id)])
    assert shown(one) == ["given", "not given"]  # these hold wherever they stand
    assert all(state.own for state in two.catalogue.volumes.values()) is False
    two.reload()
    assert all(state.own for state in two.catalogue.volumes.values())


def test_snapshots_without_a_volume_record_are_listed(one: Repository) -> None:
    one.publish([raw(snapshot_record(1, volume=77))])
    one.reload()
    (state,) = one.catalogue.volumes.values()
    assert (state.name, state.record, len(state.snapshots)) == ("volume-00000000", None, 1)
    assert any("no name" in note for note in one.catalogue.notes)


# -- clear files -------------------------------------------------------------------------------------------------------


def test_only_the_prune_key_says_what_files_are(one: Repository, two: Repository) -> None:
    expected = dict(one.catalogue.files)
    assert {"lamella", "readme.txt", "restore.py"} < set(expected)
    assert len(expected) == 5
    forged = File("restore.py", 3, bytes(32))
    two.publish([forged, FileGone("readme.txt", expected["readme.txt"].size, expected["readme.txt"].sha256)])
    one.reload()
    assert one.catalogue.files == expected
    assert sum("without the prune key's signature" in note for note in one.catalogue.notes) == 2


def test_a_signed_file_replaces_and_a_signed_end_removes(one: Repository) -> None:
    made = File("extra", 3, bytes(32))
    one.publish([made])
    one.reload()
    assert replace(one.catalogue.files["extra"], signature=made.signature) == made
    one.publish([FileGone("extra", 3, b"x" * 32)])  # of other bytes
    one.reload()
    assert "extra" in one.catalogue.files
    one.publish([FileGone("extra", 3, bytes(32))])
    one.reload()
    assert "extra" not in one.catalogue.files
    assert one.catalogue.notes == []


# -- records that are not understood -----------------------------------------------------------------------------------


def test_a_required_record_of_a_later_version_ends_the_reading_of_its_chain(small: Small, one: Repository) -> None:
    one.publish([raw(snapshot_record(1))])
    head = one.publish([raw(snapshot_record(2)), UNKNOWN_REQUIRED]).head
    one.publish([raw(snapshot_record(3))])
    one.reload()
    assert not one.catalogue.read_only
    assert [shot.name for shot in one.catalogue.snapshots] == ["snap-0001"]
    text = f"commit {head.seq} of writer {head.writer.hex()[:8]} has a record of a later version (type 0x0123)"
    assert one.catalogue.unread == {head.writer: text} and text in one.catalogue.notes
    with pytest.raises(RepositoryError, match="may only read"):
        one.publish([raw(snapshot_record(4))])
    (trouble,) = history_troubles(one)
    assert trouble.message == text and "upgrade" in trouble.hint
    with small.opened("two") as repo:  # another writer goes on
        repo.publish([raw(snapshot_record(5))])
        repo.reload()
        assert sorted(shot.name for shot in repo.catalogue.snapshots) == ["snap-0001", "snap-0005"]


def test_a_record_of_a_later_version_that_the_prune_key_signed_stops_all_publication(
    small: Small, one: Repository
) -> None:
    chain = one.history.chains[one.own_writer]  # type: ignore[index]
    assert chain.head is not None and one.keys.prune_seed is not None
    plain = RawRecord(UNKNOWN_REQUIRED.type, b"later" + bytes(64))
    message = prune_signed_message(one.keys.root, chain.writer, chain.head.seq + 1, chain.head.sha256, plain)
    one.publish([RawRecord(plain.type, b"later" + sign(one.keys.prune_seed, message))])
    for host in ("one", "two"):
        with small.opened(host) as repo:
            assert repo.catalogue.read_only
            with pytest.raises(RepositoryError, match="may only read"):
                repo.publish([raw(snapshot_record(2))])


def test_an_optional_record_of_a_later_version_is_passed_over(one: Repository) -> None:
    disk = volume(one, 1, "disk")
    one.publish([UNKNOWN_OPTIONAL, disk, raw(snapshot_record(1, volume=disk.volume_id))])
    one.reload()
    assert (one.catalogue.read_only, one.catalogue.notes) == (False, [])
    assert len(one.catalogue.snapshots) == 1
    one.publish([])


def test_unknown_records_survive_checkpoints(small: Small, one: Repository) -> None:
    one.publish([UNKNOWN_OPTIONAL])
    for _ in range(70):
        one.publish([])
    with small.opened("two") as repo:
        assert not repo.history.whole
        (chain,) = repo.history.chains.values()
        assert UNKNOWN_OPTIONAL in [entry.record for entry in chain.entries]
        assert not repo.catalogue.read_only


def test_a_malformed_record_is_a_note(one: Repository) -> None:
    one.publish([RawRecord(Volume.TYPE, b"short"), raw(snapshot_record(1))])
    one.reload()
    assert len(one.catalogue.snapshots) == 1
    assert any("commit 2" in note for note in one.catalogue.notes)
    assert not one.catalogue.read_only


def test_a_snapshot_with_a_required_part_of_a_later_version_is_listed_but_not_usable(one: Repository) -> None:
    one.publish([raw(replace(snapshot_record(1), inner=(RawRecord(0x0001, b""),)))])
    one.publish([raw(replace(snapshot_record(2), inner=(RawRecord(0x8777, b""),)))])
    one.reload()
    assert [shot.added.usable for shot in one.catalogue.snapshots] == [False, True]


# -- conflicts and confirmations ---------------------------------------------------------------------------------------


def test_a_snapshot_id_published_twice_is_a_conflict_and_both_are_listed(one: Repository, two: Repository) -> None:
    first = one.publish([raw(snapshot_record(1))]).head
    two.reload()
    second = two.publish([raw(replace(snapshot_record(1), name="impostor"))]).head
    one.reload()
    shots = {shot.ref.writer: shot for shot in one.catalogue.snapshots}
    assert set(shots) == {first.writer, second.writer}
    assert all(shot.conflict for shot in shots.values())
    assert {shot.name for shot in shots.values()} == {"snap-0001", "impostor"}
    assert sum("published twice" in note for note in one.catalogue.notes) == 1


def test_an_impostor_does_no_harm_to_the_owners_snapshot(one: Repository, two: Repository) -> None:
    disk = volume(one, 1, "disk")
    head = one.publish([disk, raw(snapshot_record(1, volume=disk.volume_id))]).head
    two.reload()
    two.publish([raw(replace(snapshot_record(1, volume=disk.volume_id), name="impostor"))])
    one.reload()
    assert {shot.name: shot.conflict for shot in one.catalogue.snapshots} == {"snap-0001": False, "impostor": True}
    assert head.writer == one.own_writer


def test_only_the_author_confirms(one: Repository, two: Repository) -> None:
    head = one.publish([raw(snapshot_record(1))]).head
    ref = Ref(head.writer, head.seq, SnapId((1).to_bytes(16, "big")))
    two.publish([raw(Confirm((ref,)))])
    one.reload()
    assert [shot.confirmed for shot in one.catalogue.snapshots] == [False]
    one.publish([raw(Confirm((ref._replace(seq=9),)))])
    one.reload()
    assert [shot.confirmed for shot in one.catalogue.snapshots] == [False]
    one.publish([raw(Confirm((ref,)))])
    one.reload()
    assert [shot.confirmed for shot in one.catalogue.snapshots] == [True]


def test_snapshots_are_in_the_order_of_their_moments(one: Repository) -> None:
    for number, moment in ((1, 3000), (2, 1000), (3, 2000)):
        one.publish([raw(snapshot_record(number, time_ms=moment))])
    one.reload()
    (state,) = one.catalogue.volumes.values()
    assert [shot.added.time_ms for shot in state.snapshots] == [1000, 2000, 3000]
    # The latest is told by the chain, not by the clock.
    assert [shot.name for shot in latest(state.snapshots)] == ["snap-0003"]


def test_checkpoints_carry_the_order_of_what_they_carry(small: Small, one: Repository, two: Repository) -> None:
    one.publish([raw(snapshot_record(1))])
    two.reload()
    two.publish([raw(snapshot_record(2))])
    for _ in range(70):
        two.publish([])
    with small.opened("three") as repo:
        shots = {shot.name: shot for shot in repo.catalogue.snapshots}
        assert before(shots["snap-0001"], shots["snap-0002"]) is True
        assert before(shots["snap-0002"], shots["snap-0001"]) is False
        repo.reload(whole=True)
        shots = {shot.name: shot for shot in repo.catalogue.snapshots}
        assert before(shots["snap-0001"], shots["snap-0002"]) is True
        assert before(shots["snap-0002"], shots["snap-0001"]) is False


def test_writers_say_who_they_are(one: Repository, two: Repository) -> None:
    two.publish([])
    one.reload()
    assert {writer.label for writer in one.catalogue.writers.values()} == {"one", "two"}
    assert all(writer.machine for writer in one.catalogue.writers.values())
