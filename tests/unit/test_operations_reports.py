"""What a repository says about itself: lists, differences, fingerprints, verification and the doctor."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lamella.base.errors import UsageError
from lamella.base.events import Event, Progress
from lamella.base.trust import Clear, Sealed
from lamella.cli.progress import Standing, Tally
from lamella.crypto.slots import key_file
from lamella.format.records import UNSIGNED, raw
from lamella.operations.copy.copy import plan_copy
from lamella.operations.doctor.doctor import examine
from lamella.operations.look.description import describe
from lamella.operations.look.diff import compare
from lamella.operations.look.listing import snapshots, volumes
from lamella.operations.shared.heads import fingerprint
from lamella.operations.shared.selection import find_volume, select
from lamella.operations.verify.verify import VerifyOptions, verify
from lamella.stores.memory import MemoryStore
from tests.unit.small_repository import ADMIN, CHUNK, OPTIONS, WRITER, Small, image, snapshot_record

LETTERS = "abc.0def"


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small.make(tmp_path)


# -- lists -------------------------------------------------------------------------------------------------------------


def test_an_empty_repository(small: Small) -> None:
    with small.opened() as repo:
        assert (volumes(repo), snapshots(repo)) == ([], [])
        row = describe(repo)
    assert (row["volumes"], row["snapshots"], row["role"], row["id_algorithm"]) == (0, 0, "admin", "hmac-sha256")
    assert [writer["this_host"] for writer in row["writers"]] == [True]


def test_volumes_and_snapshots_are_listed(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", LETTERS)
    first = small.backup(disk, options=replace(OPTIONS, domain="vms"))
    image(disk, LETTERS + "x", tail=100)
    second = small.backup(disk)
    small.backup(image(tmp_path / "alpha.img", "a"), "two", secret=WRITER)
    with small.opened() as repo:
        rows = volumes(repo)
        assert [(row["volume"], row["snapshots"], row["size"]) for row in rows] == [
            ("alpha", 1, CHUNK),
            ("disk", 2, 9 * CHUNK + 100),
        ]
        assert (rows[1]["domain"], rows[1]["latest"]) == ("vms", second.snapshot)
        runs = snapshots(repo)
        assert [row["volumes"] for row in runs] == [["disk"], ["disk"], ["alpha"]]
        assert [row["time"] for row in runs] == sorted(row["time"] for row in runs)
        # The second is known to this host to be whole, and not yet to others.
        assert [row["confirmed"] for row in runs] == [True, True, False]
        assert all((row["result"], row["failed"]) == ("complete", []) for row in runs)
        of_disk = snapshots(repo, find_volume(repo, "disk"))
        assert [row["snapshot"] for row in of_disk] == [first.snapshot, second.snapshot]
        row = describe(repo)
        assert (row["volumes"], row["snapshots"]) == (2, 3)
        assert sorted((writer["label"], writer["this_host"]) for writer in row["writers"]) == [
            ("one", True),
            ("two", False),
        ]
    with small.opened("two", WRITER) as repo:
        assert describe(repo)["role"] == "writer"
        assert [row["confirmed"] for row in snapshots(repo)] == [True, False, True]


def test_a_snapshot_tells_what_the_run_did(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", LETTERS, tail=100)
    small.backup(disk, options=replace(OPTIONS, documents={"notes": b"xyz"}))
    image(disk, "xbc.0def", tail=100)
    small.backup(disk)
    with small.opened() as repo:
        first, second = (describe(repo, one) for one in select(repo, []))
    assert (first["mode"], first["changed_chunks"], first["new_chunks"]) == ("full", 8, 7)
    assert (second["mode"], second["changed_chunks"], second["new_chunks"]) == ("compare", 1, 1)
    assert first["size"] == 8 * CHUNK + 100
    assert first["data_bytes"] == 7 * CHUNK
    assert first["documents"] == [{"name": "notes", "size": 3}]
    assert (second["documents"], second["chunk_size"]) == ([], CHUNK)
    assert 0 < second["stored_bytes"] < first["stored_bytes"]


def test_a_failed_volume_is_listed_with_its_run(small: Small) -> None:
    with small.opened() as repo:
        assert repo.own_writer is not None
        repo.publish([raw(snapshot_record(1))])
        repo.reload()
        (row,) = snapshots(repo)
        assert (row["result"], row["volumes"]) == ("complete", ["volume-00000000"])


def test_the_fingerprint_names_the_history(small: Small) -> None:
    with small.opened() as one, small.opened("two") as two:
        before = fingerprint(one)
        assert re.fullmatch(r"([A-Z2-7]{4}-){3}[A-Z2-7]{4}", before)
        assert fingerprint(two) == before
        one.publish([])
        two.reload()
        assert fingerprint(two) != before
        one.reload()
        assert fingerprint(one) == fingerprint(two)


# -- differences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "ranges"),
    [
        ("abcd", "abcd", []),
        ("abcd", "xycd", [(0, 2 * CHUNK, "data")]),
        ("abcd", "a0.d", [(CHUNK, 2 * CHUNK, "zero")]),
        ("a..0", "a00.", []),
        ("abcd", "x0yd", [(0, CHUNK, "data"), (CHUNK, CHUNK, "zero"), (2 * CHUNK, CHUNK, "data")]),
        ("ab", "abcd", [(2 * CHUNK, 2 * CHUNK, "data")]),
        ("ab", "ab0.", []),
        ("abcd", "ab", []),
        ("a" * 65, "b" + "a" * 64, [(0, CHUNK, "data")]),
    ],
)
def test_differences(small: Small, tmp_path: Path, before: str, after: str, ranges: list[tuple[int, int, str]]) -> None:
    disk = image(tmp_path / "disk.img", before)
    small.backup(disk)
    image(disk, after)
    small.backup(disk)
    with small.opened() as repo:
        one, other = select(repo, [])
        found = compare(repo, one, other)
        assert found.ranges == ranges
        assert (found.size_a, found.size_b) == (len(before) * CHUNK, len(after) * CHUNK)
        assert compare(repo, one, one).ranges == []


def test_only_snapshots_of_one_volume_are_compared(small: Small, tmp_path: Path) -> None:
    for name in "ab":
        small.backup(image(tmp_path / f"{name}.img", "abc"))
    with small.opened() as repo, pytest.raises(UsageError, match="one volume"):
        compare(repo, *select(repo, ["a", "b"]))


# -- verification ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [VerifyOptions("all"), VerifyOptions(percent=0), VerifyOptions(percent=101)])
def test_verification_refuses_what_makes_no_sense(small: Small, options: VerifyOptions) -> None:
    with small.opened() as repo, pytest.raises(UsageError, match="levels are"):
        verify(repo, [], options)


def test_levels_read_as_much_as_they_say(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", LETTERS)
    small.backup(disk)
    image(disk, LETTERS.replace("a", "x"))
    small.backup(disk)
    seen: list[Event] = []

    def note(event: Event) -> None:
        seen.append(event)

    with small.opened() as repo:
        everything = select(repo, [])
        results = {
            name: verify(repo, everything, options, note)
            for name, options in {
                "structure": VerifyOptions("structure"),
                "all": VerifyOptions("sample", percent=100),
                "full": VerifyOptions("full"),
                "restore": VerifyOptions("restore"),
            }.items()
        }
    assert {name: result.checked_bytes // CHUNK for name, result in results.items()} == {
        "structure": 0,
        "all": 7,  # what both snapshots share is read once
        "full": 7,
        "restore": 12,  # each snapshot as a whole
    }
    assert {name: result.checked_chunks for name, result in results.items()} == {
        "structure": 12,  # both trees are known to be whole: their roots say how many chunks they have
        "all": 7,
        "full": 7,
        "restore": 12,
    }
    assert not any(result.findings for result in results.values())
    assert all(isinstance(event, Progress) for event in seen)
    assert {event.stage for event in seen if isinstance(event, Progress)} == {"verify", "packs"}


def standings(events: list[Event]) -> list[Standing]:
    """What people would see of the last stage, from its first byte on."""
    found = [event for event in events if isinstance(event, Progress)]
    tally = Tally()
    shown = [(tally.add(event), event) for event in found if event.stage == found[-1].stage]
    return [standing for standing, event in shown if event.done_bytes]


def check_all_volumes_together(seen: list[Event], parts: int, total: int) -> None:
    """The bar knows the sum from its first drawing on, never goes back, and ends where all is done."""
    rows = standings(seen)
    assert {(row.total, row.volumes) for row in rows} == {(total, parts)}, rows
    assert [row.done for row in rows] == sorted(row.done for row in rows), rows
    assert rows[-1].done == total and {row.number for row in rows} == set(range(1, parts + 1))


@pytest.mark.parametrize("level", ["structure", "sample", "full", "restore"])
def test_progress_of_a_verification_is_that_of_all_snapshots(small: Small, tmp_path: Path, level: str) -> None:
    disk = image(tmp_path / "disk.img", LETTERS)
    small.backup(disk)
    image(disk, LETTERS.replace("a", "x"))
    small.backup(disk)
    small.backup(image(tmp_path / "other.img", LETTERS, tail=100))
    seen: list[Event] = []

    def note(event: Event) -> None:
        seen.append(event)

    with small.opened() as repo:
        verify(repo, select(repo, []), VerifyOptions(level, percent=100 if level == "sample" else None), note)
    check_all_volumes_together(seen, 3, 3 * len(LETTERS) * CHUNK + 100)


def test_progress_of_a_copy_is_that_of_all_snapshots(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", LETTERS)
    small.backup(disk)
    small.backup(disk)
    small.backup(image(tmp_path / "other.img", LETTERS, tail=100))
    (tmp_path / "there").mkdir()
    target = Small.make(tmp_path / "there")
    seen: list[Event] = []

    def note(event: Event) -> None:
        seen.append(event)

    with small.opened() as here, target.opened() as there:
        assert plan_copy(here, there, []).execute(note).complete
    check_all_volumes_together(seen, 3, 3 * len(LETTERS) * CHUNK + 100)


def test_zeros_where_there_was_a_hole_are_no_change(small: Small, tmp_path: Path) -> None:
    """ext4 gives space that was never written as data while its zeros are in memory, and as a hole afterwards."""
    disk = image(tmp_path / "disk.img", "a..b")
    small.backup(disk)
    for letters in ("a00b", "a..b", "a0.b"):
        image(disk, letters)
        (row,) = small.backup(disk).volumes
        assert (row.changed_chunks, row.changed_bytes, row.new_chunks) == (0, 0, 0), (letters, row)
    image(disk, "a00b", fill=1)
    assert small.backup(disk).volumes[0].changed_chunks == 2


def test_objects_that_belong_to_nothing_are_notes(small: Small) -> None:
    small.store.put("stray", Clear(b"x"))
    small.store.put("p/stray", Clear(b"x"))
    small.store.put("i/" + "0" * 64, Clear(b"x"))
    small.store.put("keys/stray", Clear(b"x"))
    with small.opened() as repo:
        result = verify(repo, [], VerifyOptions("structure"))
    assert sorted((finding.severity, finding.obj) for finding in result.findings) == [
        ("note", "keys/"),
        ("note", "p/stray"),
        ("note", "stray"),
    ]
    assert not result.damaged


def test_changed_clear_files_are_damage(small: Small) -> None:
    for name in ("readme.txt", "restore.py"):
        content = small.store.objects()[name]
        small.store.delete(name)
        small.store.put(name, Clear(content + b"#"))
    with small.opened() as repo:
        result = verify(repo, [], VerifyOptions("structure"))
        assert sorted(finding.obj for finding in result.findings) == ["readme.txt", "restore.py"]
        small.store.delete("readme.txt")
        result = verify(repo, [], VerifyOptions("structure"))
        assert [finding.message for finding in result.findings if finding.obj == "readme.txt"] == ["is missing"]


def test_records_that_are_not_believed_are_notes(small: Small, tmp_path: Path) -> None:
    small.backup(image(tmp_path / "disk.img", "a"))
    with small.opened() as repo:
        (state,) = repo.catalogue.volumes.values()
    assert state.record is not None
    stolen = replace(state.record, name="stolen", signature=UNSIGNED)
    with small.opened("two", WRITER) as repo:
        repo.publish([stolen])
    with small.opened() as repo:
        result = verify(repo, select(repo, []))
        assert [(finding.kind, finding.severity) for finding in result.findings] == [("commit", "note")]
        assert not result.damaged


# -- the doctor --------------------------------------------------------------------------------------------------------


def outcome(small: Small, store: MemoryStore | None, secret: object = ADMIN, host: str = "one") -> dict[str, bool]:
    checks = examine(small.host(host), store, secret)  # type: ignore[arg-type]
    return {check.name: check.ok for check in checks}


def test_a_healthy_host_and_repository(small: Small) -> None:
    before = small.store.objects()
    found = outcome(small, small.store)
    assert all(found.values())
    assert {"python", "zstd", "state directory", "cache directory", "repository", "locks", "secret"} <= set(found)
    assert found["immutable names"]
    assert small.store.objects() == before
    assert set(outcome(small, None)) == {"python", "zstd", "state directory", "cache directory"}


def test_what_ails_a_host(small: Small, tmp_path: Path) -> None:
    assert not outcome(small, small.store, key_file(b"?" * 32))["secret"]
    assert not outcome(small, MemoryStore())["repository"]
    (tmp_path / "bad").write_bytes(b"")
    assert not outcome(small, None, host="bad")["state directory"]


def test_a_destination_that_replaces_objects_is_found(small: Small) -> None:
    class Careless(MemoryStore):
        def put(self, name: str, content: Sealed | Clear) -> None:
            self.delete(name)
            super().put(name, content)

    assert not outcome(small, Careless(small.store.objects()))["immutable names"]


def test_a_history_that_went_backwards_ails(small: Small) -> None:
    with small.opened() as repo:
        newest = repo.publish([]).head.name
    small.store.delete(newest)
    assert not outcome(small, small.store)["history"]
