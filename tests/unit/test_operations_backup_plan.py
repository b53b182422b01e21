"""What a run decides before it reads: which volume a source is, under what name, with what base, in which domain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lamella.base.errors import IntegrityError, RolledBack, UsageError
from lamella.base.names import pack_hash, pack_name
from lamella.base.trust import Sealed
from lamella.format.container import Kind
from lamella.format.records import RawRecord, raw
from lamella.operations.backup.plan import MAX_DOCUMENT, VolumePlan, check_documents
from lamella.operations.backup.publish import snapshot_name
from lamella.operations.backup.story import BackupOptions, FailedRequest, Request, plan_backup
from lamella.operations.restore.restore import RestoreOptions, plan_restore
from lamella.operations.shared.selection import select
from lamella.operations.shared.streaming import read_document
from lamella.operations.verify.verify import VerifyOptions, verify
from lamella.repository.repository import Repository
from lamella_kit.tracked_source import TrackedDisk
from tests.unit.small_repository import OPTIONS, WRITER, Small, image, snapshot_record

LETTERS = "abc.0def"


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small.make(tmp_path)


def planned(repo: Repository, small: Small, path: Path, host: str = "one", name: str | None = None,
            options: BackupOptions = OPTIONS) -> VolumePlan:  # fmt: skip
    (row,) = plan_backup(repo, [Request(name, small.source(path, host))], options).rows
    return row


def restored(small: Small, selector: str, host: str = "one") -> bytes:
    target = small.place / "restored.img"
    with small.opened(host) as repo:
        plan_restore(repo, select(repo, [selector])[0], target, RestoreOptions(overwrite=True)).execute()
    return target.read_bytes()


# -- names -------------------------------------------------------------------------------------------------------------


def test_the_first_backup_is_full_and_the_next_compares(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", LETTERS)
    with small.opened() as repo:
        row = planned(repo, small, disk)
        assert (row.volume, row.mode, row.base, row.driver) == ("disk", "full", None, "file")
        assert row.record is not None
    first = small.backup(disk)
    with small.opened() as repo:
        row = planned(repo, small, disk)
        assert (row.volume, row.mode, row.record) == ("disk", "compare", None)
        assert row.base is not None
        assert row.base.name == first.snapshot
        assert planned(repo, small, disk, name="disk").volume_id == row.volume_id


def test_another_name_for_a_known_source_is_refused(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", "a")
    small.backup(disk, name="system")
    with small.opened() as repo, pytest.raises(UsageError, match="already backed up as system") as caught:
        planned(repo, small, disk, name="disk")
    assert caught.value.hint == "leave the name out, or write system=SOURCE"


def test_a_name_that_is_taken_is_refused(small: Small, tmp_path: Path) -> None:
    small.backup(image(tmp_path / "disk.img", "a"))
    (tmp_path / "sub").mkdir()
    other = image(tmp_path / "sub" / "disk.img", "b")
    with small.opened() as repo:
        for name in (None, "disk"):
            with pytest.raises(UsageError, match="belongs to another source") as caught:
                planned(repo, small, other, name=name)
            assert "--adopt" in caught.value.hint
        assert planned(repo, small, other, name="disk2").record is not None


@pytest.mark.parametrize("name", ["a@b", "", "-x", "a/b", "x" * 129])
def test_bad_names_are_refused(small: Small, tmp_path: Path, name: str) -> None:
    disk = image(tmp_path / "disk.img", "a")
    with small.opened() as repo, pytest.raises(UsageError, match="not a volume name"):
        planned(repo, small, disk, name=name)
    with small.opened() as repo, pytest.raises(UsageError, match="not a volume name"):
        planned(repo, small, disk, options=replace(OPTIONS, domain=name))


def test_one_run_names_each_source_and_volume_once(small: Small, tmp_path: Path) -> None:
    disk, other = image(tmp_path / "disk.img", "a"), image(tmp_path / "other.img", "b")
    link = tmp_path / "link.img"
    link.symlink_to(disk)
    with small.opened() as repo:
        for requests, text in (
            ([Request(None, small.source(disk)), Request("x", small.source(link))], "the same source"),
            ([Request(None, small.source(disk)), Request("disk", small.source(other))], "would be called disk"),
        ):
            with pytest.raises(UsageError, match=text):
                assert plan_backup(repo, requests, OPTIONS).rows


def test_a_source_that_could_not_be_opened_makes_the_run_incomplete(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", "ab")
    with small.opened() as repo:
        plan = plan_backup(repo, [FailedRequest("gone", "no such file"), Request(None, small.source(disk))], OPTIONS)
        assert [row.volume for row in plan.rows] == ["disk"]
        result = plan.execute()
        assert not result.complete
        assert [(row.volume, row.result, row.error) for row in result.volumes] == [
            ("gone", "failed", "no such file"),
            ("disk", "complete", ""),
        ]
        run = repo.catalogue.runs[result.snapshot]
        assert not run.complete
        assert [(row.name, row.failed, row.reason) for row in run.volumes] == [
            ("gone", True, "no such file"),
            ("disk", False, ""),
        ]


def test_nothing_saved_publishes_nothing(small: Small) -> None:
    before = small.store.objects()
    with small.opened() as repo:
        result = plan_backup(repo, [FailedRequest("gone", "no such file")], OPTIONS).execute()
    assert (result.snapshot, result.complete) == ("", False)
    assert small.store.objects() == before


# -- adopting ----------------------------------------------------------------------------------------------------------


def moved(tmp_path: Path, letters: str) -> Path:
    (tmp_path / "moved").mkdir(exist_ok=True)
    return image(tmp_path / "moved" / "disk.img", letters)


ADOPT = replace(OPTIONS, adopt=True)


def test_adopting_goes_on_with_the_volume_from_a_new_source(small: Small, tmp_path: Path) -> None:
    small.backup(image(tmp_path / "disk.img", "abcd"))
    new = moved(tmp_path, "abcx")
    result = small.backup(new, options=ADOPT)
    assert [row.new_chunks for row in result.volumes] == [1]
    with small.opened() as repo:
        (state,) = repo.catalogue.volumes.values()
        assert len(state.snapshots) == 2
        assert state.identity == small.source(new).identity
        assert planned(repo, small, new).record is None  # known from now on
        with pytest.raises(UsageError, match="belongs to another source"):
            planned(repo, small, tmp_path / "disk.img")
    assert restored(small, "disk") == new.read_bytes()


def test_an_admin_adopts_another_writers_volume_and_a_writer_adds_claims(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", "abcd")
    small.backup(disk)
    with small.opened("two", WRITER) as repo:
        (theirs,) = repo.catalogue.volumes.values()
        own = planned(repo, small, disk, "two")  # a name is one's own: whatever others call theirs
        assert own.volume_id != theirs.volume_id and any("--adopt" in note for note in own.notes)
        claim = planned(repo, small, disk, "two", options=ADOPT)
        assert (claim.volume_id, claim.record, claim.handover) == (theirs.volume_id, None, None)
        assert any("count as claims" in note for note in claim.notes)
    result = small.backup(disk, "two", ADOPT)
    assert [(row.mode, row.changed_chunks, row.stored_bytes) for row in result.volumes] == [("compare", 0, 0)]
    with small.opened() as repo:
        (state,) = repo.catalogue.volumes.values()
        assert state.identity == small.source(disk, "two").identity
        assert len(state.snapshots) == 2
        assert repo.catalogue.notes == []
        assert not verify(repo, select(repo, []), VerifyOptions("full")).findings


def test_a_name_two_volumes_share_cannot_be_adopted(small: Small, tmp_path: Path) -> None:
    with small.opened() as one, small.opened("two") as two:
        for repo, host in ((one, "one"), (two, "two")):
            # Planned and executed apart: neither sees the other's commit before it publishes.
            repo.reload = lambda *, whole=False, stored=False: None  # type: ignore[method-assign]
            plan_backup(repo, [Request(None, small.source(image(tmp_path / "disk.img", "a"), host))], OPTIONS).execute()
    other = moved(tmp_path, "b")
    with small.opened("three") as repo:
        assert len(repo.catalogue.volumes) == 2
        with pytest.raises(UsageError, match="several volumes could be meant"):
            planned(repo, small, other, "three", options=ADOPT)
    with small.opened("one") as repo:  # its own one is meant
        assert repo.catalogue.volumes[planned(repo, small, other, "one", options=ADOPT).volume_id].own


# -- domains and chunk sizes -------------------------------------------------------------------------------------------


def test_volumes_of_one_domain_share_chunks_and_others_do_not(small: Small, tmp_path: Path) -> None:
    shared = replace(OPTIONS, domain="vms")
    first = small.backup(image(tmp_path / "a.img", LETTERS), options=shared)
    assert [row.new_chunks for row in first.volumes] == [6]
    second = small.backup(image(tmp_path / "b.img", LETTERS), options=shared)
    assert [(row.mode, row.changed_chunks, row.new_chunks) for row in second.volumes] == [("full", 7, 0)]
    for name, domain in (("c", None), ("d", None), ("e", "another")):
        path = image(tmp_path / f"{name}.img", LETTERS)
        result = small.backup(path, options=replace(OPTIONS, domain=domain))
        assert [row.new_chunks for row in result.volumes] == [6]
    with small.opened() as repo:
        domains = {state.name: state.snapshots[0].added.domain_id for state in repo.catalogue.volumes.values()}
        assert domains["a"] == domains["b"]
        assert len(set(domains.values())) == 4


def test_two_new_volumes_of_one_run_share_their_new_domain(small: Small, tmp_path: Path) -> None:
    paths = [image(tmp_path / f"{name}.img", LETTERS) for name in "ab"]
    with small.opened() as repo:
        requests = [Request(None, small.source(path)) for path in paths]
        plan = plan_backup(repo, requests, replace(OPTIONS, domain="vms"))
        assert len({row.domain_id for row in plan.rows}) == 1
        result = plan.execute()
        assert [row.new_chunks for row in result.volumes] == [6, 0]
        assert len({shot.name for shot in repo.catalogue.snapshots}) == 1


def test_the_domain_of_a_known_volume_stays(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", LETTERS)
    small.backup(disk)
    with pytest.raises(UsageError, match="chosen at its first backup"):
        small.backup(disk, options=replace(OPTIONS, domain="vms"))
    with small.opened() as repo:  # one that is configured is for new volumes
        (row,) = plan_backup(repo, [Request(None, small.source(disk), domain="vms")], OPTIONS).rows
        assert row.domain_id == repo.catalogue.snapshots[0].added.domain_id


def test_the_chunk_size_is_fixed_at_the_first_backup(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", LETTERS)
    small.backup(disk, options=replace(OPTIONS, chunk_log2=18))
    with small.opened() as repo:
        for log2 in (None, 18):
            assert planned(repo, small, disk, options=replace(OPTIONS, chunk_log2=log2)).chunk_log2 == 18
        with pytest.raises(UsageError, match="is 256 KiB since its first backup"):
            planned(repo, small, disk, options=replace(OPTIONS, chunk_log2=16))
    other = image(tmp_path / "other.img", LETTERS)
    small.backup(other, options=replace(OPTIONS, chunk_log2=None))
    with small.opened() as repo:
        assert {shot.added.chunk_log2 for shot in repo.catalogue.snapshots} == {17, 18}
    assert restored(small, "other") == other.read_bytes()


# -- bases -------------------------------------------------------------------------------------------------------------


def test_a_snapshot_that_lacks_packs_is_no_base_for_others(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", "ab")
    small.backup(disk)
    image(disk, "abc")
    small.backup(disk)
    with small.opened() as repo:
        older, newer = [shot for state in repo.catalogue.volumes.values() for shot in state.snapshots]
    small.store.delete(pack_name(newer.added.packs[0]))
    with small.opened("two") as repo:
        row = planned(repo, small, disk, "two", options=ADOPT)
        assert row.base is not None
        assert row.base.ref == older.ref
        assert any("lacks packs" in note for note in row.notes)


def test_without_any_usable_base_all_is_stored_anew(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", LETTERS)
    small.backup(image(tmp_path / "other.img", "z"))
    others = set(small.store.objects())
    small.backup(disk)
    for name in [name for name in small.store.objects() if pack_hash(name) and name not in others]:
        small.store.delete(name)
    result = small.backup(disk)
    assert [(row.mode, row.new_chunks) for row in result.volumes] == [("full", 6)]
    assert any("stored again" in warning for warning in result.warnings)
    assert restored(small, "disk") == disk.read_bytes()


def test_a_repository_that_lost_all_its_packs_is_not_continued(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", LETTERS)
    small.backup(disk)
    for name in [name for name in small.store.objects() if pack_hash(name)]:
        small.store.delete(name)
    with small.opened() as repo, pytest.raises(IntegrityError, match="lists no packs"):
        planned(repo, small, disk)


def test_snapshots_in_conflict_or_of_a_later_version_are_no_base(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", "ab")
    small.backup(disk)
    with small.opened() as repo:
        (good,) = repo.catalogue.snapshots
        later = replace(good.added, snap_id=snapshot_record(5).snap_id, inner=(RawRecord(1, b""),), time_ms=2**41)
        twice = replace(good.added, snap_id=snapshot_record(6).snap_id, time_ms=2**41)
        repo.publish([raw(later), raw(twice)])
        repo.publish([raw(twice)])
    with small.opened() as repo:
        row = planned(repo, small, disk)
        assert row.base is not None
        assert row.base.ref == good.ref


def test_another_writer_who_publishes_an_id_again_changes_nothing(small: Small, tmp_path: Path) -> None:
    """Else one record would make this host read and compare everything in every run from then on."""
    disk = TrackedDisk("disk", bytearray(range(256)) * 4096)
    with small.opened("one") as repo:
        plan_backup(repo, [Request("disk", disk.source())], OPTIONS).execute()
        (own,) = repo.catalogue.snapshots
    with small.opened("two") as repo:
        repo.publish([raw(own.added)])
    with small.opened("one") as repo:
        assert {one.conflict for one in repo.catalogue.snapshots if one.claim} == {True}
        assert {one.conflict for one in repo.catalogue.snapshots if not one.claim} == {False}
        (row,) = plan_backup(repo, [Request(None, disk.source())], OPTIONS).rows
        assert (row.mode, row.reason) == ("incremental", "")
        (row,) = plan_backup(repo, [Request(None, disk.source())], replace(OPTIONS)).rows
        assert row.base is not None
        assert row.base.ref == own.ref


def test_a_history_that_is_wrong_plans_nothing(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", "a")
    small.backup(disk)
    newest = sorted(name for name in small.store.objects() if name.startswith("w/"))[-1]
    small.store.delete(newest)
    with small.opened() as repo, pytest.raises(RolledBack):
        planned(repo, small, disk)


def test_another_writers_content_is_read_before_it_is_shared(small: Small, tmp_path: Path) -> None:
    """A pack of another writer may hold something else than it lists: nothing is built on it unread."""
    shared = replace(OPTIONS, domain="vms")
    small.backup(image(tmp_path / "a.img", LETTERS), options=shared)
    packs = [name for name in small.store.objects() if pack_hash(name)]
    honest = dict(small.store.objects())
    for name in packs:
        content = bytearray(honest[name])
        with small.opened() as repo:
            repo.refresh_map()
            directory = repo.blobs.directory(pack_hash(name) or b"")
        assert directory is not None
        for blob in directory.blobs:
            if blob.kind == Kind.CHUNK:
                content[blob.offset] ^= 1
        small.store.delete(name)
        small.store.put(name, Sealed(bytes(content)))
    path = image(tmp_path / "b.img", LETTERS)
    result = small.backup(path, "two", shared)
    assert [row.new_chunks for row in result.volumes] == [6]
    assert restored(small, "b", "two") == path.read_bytes()


# -- documents ---------------------------------------------------------------------------------------------------------


def test_documents_come_back_as_they_were(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", "a")
    documents = {"config.xml": b"<vm/>", "empty": b"", "large": bytes(range(256)) * 4096}
    small.backup(disk, options=replace(OPTIONS, documents=documents))
    with small.opened() as repo:
        (one,) = select(repo, ["disk"])
        assert {name: read_document(repo, one, name) for name in documents} == documents
        with pytest.raises(UsageError, match="no document nothing") as caught:
            read_document(repo, one, "nothing")
        assert "config.xml" in caught.value.hint


@pytest.mark.parametrize(
    ("documents", "text"),
    [
        ({"a": bytes(MAX_DOCUMENT + 1)}, "at most 1 MiB"),
        ({f"d{number}": bytes(MAX_DOCUMENT) for number in range(17)}, "16 MiB together"),
        ({"a/b": b""}, "not a volume name"),
    ],
)
def test_documents_have_limits(documents: dict[str, bytes], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        check_documents(documents)


def test_names_of_snapshots_sort_in_the_order_of_time() -> None:
    """Two runs of a second: the status took the older, good, for the newest, and the failed was forgotten."""
    names = [snapshot_name(1_764_000_000_000 + ms) for ms in range(2100)]
    assert names == sorted(names) and len(set(names)) == len(names)
