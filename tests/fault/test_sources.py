"""Sources that grow, shrink, vanish or fail half-way, and what runs write when nothing or little changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError, NothingMatched, SourceError, UsageError
from lamella.operations.backup.story import BackupOptions, FailedRequest, Request, plan_backup
from lamella.operations.restore.restore import RestoreOptions, plan_restore
from lamella.operations.shared.selection import select
from lamella.operations.shared.streaming import read_document
from lamella.repository.repository import Repository
from lamella.sources.base import Source
from lamella.sources.file import FileSource
from lamella.sources.local_target import PARTIAL_SUFFIX
from lamella.stores.memory import MemoryStore
from lamella_kit.fault_store import FaultStore
from lamella_kit.scripted_source import DisturbedSource
from tests.fault.world import (
    CHUNK,
    SECRET,
    Truth,
    backup,
    check_rescue,
    check_sound,
    host_at,
    init,
    volume,
)

MACHINE = "0123456789abcdef"
CONTENT = b"".join(bytes([number]) * CHUNK for number in range(1, 150)) + b"tail"
OTHER = b"other" * 20000


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, len(CONTENT) // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def vanish(path: Path) -> None:
    path.unlink()


def fail(path: Path) -> None:
    raise SourceError(f"{path}: Input/output error at offset 4194304", obj=str(path))


def disturbed(path: Path, deed: Callable[[Path], None]) -> Source:
    """The real driver on a real file; the deed is done before the second range of it is read."""

    def before_read(number: int, offset: int) -> None:
        if number == 2:
            deed(path)

    return DisturbedSource(FileSource(path, MACHINE), before_read)


DEEDS = [grow, shrink, empty, vanish, fail]


def names(store: MemoryStore, prefix: str) -> set[str]:
    return {name for name in store.objects() if name.startswith(prefix)}


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("before", [False, True], ids=["first backup", "later backup"])
def test_one_volume_fails_and_the_other_is_saved(tmp_path: Path, deed: Callable[[Path], None], before: bool) -> None:
    store, host, truth = MemoryStore(), host_at(tmp_path / "host"), Truth()
    init(store, host)
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    if before:
        truth.learn(backup(store, host, FileSource(path, MACHINE), volume(OTHER, "other")), all_contents())
        path.write_bytes(CONTENT[::-1])
    result = backup(store, host, disturbed(path, deed), volume(OTHER, "other"))
    rows = {row.volume: row for row in result.volumes}
    assert not result.complete and result.snapshot
    assert (rows["disk"].result, rows["other"].result) == ("failed", "complete")
    assert str(path) in rows["disk"].error
    truth.learn(result, {"other": OTHER})
    check_sound(store, host, truth, tmp_path)
    with Repository.open(store, SECRET, host) as repo:
        run = repo.catalogue.runs[result.snapshot]
        assert not run.complete
        assert {row.name: (row.failed, bool(row.reason)) for row in run.volumes} == {
            "disk": (True, True),
            "other": (False, False),
        }
        # The failed volume shows no snapshot of this run, not even a partial one.
        assert f"disk@{result.snapshot}" not in {one.text for one in select(repo, [])}
    path.write_bytes(CONTENT)
    result = backup(store, host, FileSource(path, MACHINE), volume(OTHER, "other"))
    assert result.complete
    truth.learn(result, all_contents())
    check_sound(store, host, truth, tmp_path)
    check_rescue(store.objects(), truth, tmp_path)


def all_contents() -> dict[str, bytes]:
    return {"disk": CONTENT, "other": OTHER}


@pytest.mark.parametrize("deed", DEEDS)
def test_the_only_volume_fails_and_nothing_is_committed(tmp_path: Path, deed: Callable[[Path], None]) -> None:
    store, host = MemoryStore(), host_at(tmp_path / "host")
    init(store, host)
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    before = names(store, "w/")
    result = backup(store, host, disturbed(path, deed))
    assert (result.snapshot, result.complete) == ("", False)
    assert names(store, "w/") == before


def test_a_source_that_could_not_even_be_opened(tmp_path: Path) -> None:
    store, host, truth = MemoryStore(), host_at(tmp_path / "host"), Truth()
    init(store, host)
    requests: list[Request | FailedRequest] = [
        FailedRequest("gone", "gone.img: No such file"),
        Request(None, volume(OTHER, "other")),
    ]
    with Repository.open(store, SECRET, host) as repo:
        result = plan_backup(repo, requests, BackupOptions(chunk_log2=16, workers=1)).execute()
        assert not result.complete and [row.failed for row in repo.catalogue.runs[result.snapshot].volumes]
        assert {row.name: row.failed for row in repo.catalogue.runs[result.snapshot].volumes} == {
            "gone": True,
            "other": False,
        }
    truth.learn(result, {"other": OTHER})
    check_sound(store, host, truth, tmp_path)


def test_a_source_that_vanished_before_it_was_frozen(tmp_path: Path) -> None:
    store, host, truth = MemoryStore(), host_at(tmp_path / "host"), Truth()
    init(store, host)
    gone = FileSource(tmp_path / "gone.img", MACHINE)
    result = backup(store, host, gone, volume(OTHER, "other"))
    assert not result.complete and {row.volume: row.result for row in result.volumes} == {
        "gone": "failed",
        "other": "complete",
    }
    truth.learn(result, {"other": OTHER})
    check_sound(store, host, truth, tmp_path)


# -- what a run writes ------------------------------------------------------------------------------------------------


def test_nothing_changed_writes_one_commit_and_nothing_else(tmp_path: Path) -> None:
    store, host, truth = MemoryStore(), host_at(tmp_path / "host"), Truth()
    init(store, host)
    options = BackupOptions(chunk_log2=16, workers=1, documents={"settings": b"unchanged"})
    truth.learn(backup(store, host, volume(CONTENT), options=options), {"disk": CONTENT})
    for _ in range(3):
        before = store.objects()
        result = backup(store, host, volume(CONTENT), options=options)
        truth.learn(result, {"disk": CONTENT})
        (added,) = set(store.objects()) - set(before)
        assert added.startswith("w/") and {name: store.objects()[name] for name in before} == before
        assert (result.stored_bytes, result.volumes[0].changed_chunks, result.volumes[0].new_chunks) == (0, 0, 0)
    assert len(truth.volumes) == 4
    check_sound(store, host, truth, tmp_path)
    with Repository.open(store, SECRET, host) as repo:
        assert all(read_document(repo, one, "settings") == b"unchanged" for one in select(repo, []))


def test_a_small_change_writes_one_pack_and_one_commit(tmp_path: Path) -> None:
    store, host, truth = MemoryStore(), host_at(tmp_path / "host"), Truth()
    init(store, host)
    content = CONTENT
    truth.learn(backup(store, host, volume(content)), {"disk": content})
    for offset in (0, len(content) // 2, len(content) - 1):
        before = set(store.objects())
        content = content[:offset] + bytes([content[offset] ^ 0xFF]) + content[offset + 1 :]
        result = backup(store, host, volume(content))
        truth.learn(result, {"disk": content})
        kinds = sorted(name.split("/")[0] for name in set(store.objects()) - before)
        assert kinds == ["p", "w"] and result.volumes[0].changed_chunks == 1
    check_sound(store, host, truth, tmp_path)
    check_rescue(store.objects(), truth, tmp_path)


@pytest.mark.parametrize(
    "sizes", [[0, 5, 0, CHUNK], [CHUNK * 65, CHUNK * 64, CHUNK * 64 + 1, 1], [CHUNK * 3 + 5, CHUNK * 70, CHUNK * 2]]
)
def test_a_volume_that_changes_its_size(tmp_path: Path, sizes: list[int]) -> None:
    store, host, truth = MemoryStore(), host_at(tmp_path / "host"), Truth()
    init(store, host)
    for size in sizes:
        content = (CONTENT * 2)[:size]
        truth.learn(backup(store, host, volume(content)), {"disk": content})
    check_sound(store, host, truth, tmp_path)
    check_rescue(store.objects(), truth, tmp_path)


# -- targets ----------------------------------------------------------------------------------------------------------


def test_a_restore_that_fails_half_way_leaves_the_old_file_and_a_clear_name(tmp_path: Path) -> None:
    store, host = MemoryStore(), host_at(tmp_path / "host")
    init(store, host)
    backup(store, host, volume(CONTENT))
    target = tmp_path / "target.img"
    target.write_bytes(b"precious")
    faulty = FaultStore(store)
    with Repository.open(faulty, SECRET, host) as repo:
        one = select(repo, ["disk"])[0]
        plan = plan_restore(repo, one, target, RestoreOptions(workers=1, overwrite=True))
        faulty.flip_byte(-1, times=200)
        with pytest.raises(LamellaError):
            plan.execute()
    assert target.read_bytes() == b"precious"
    left = [path.name for path in tmp_path.glob("target.img*")]
    assert left == ["target.img"] or sorted(left) == ["target.img", "target.img" + PARTIAL_SUFFIX]


def test_existing_targets_need_consent(tmp_path: Path) -> None:
    store, host = MemoryStore(), host_at(tmp_path / "host")
    init(store, host)
    backup(store, host, volume(CONTENT))
    target = tmp_path / "target.img"
    target.write_bytes(b"precious")
    with Repository.open(store, SECRET, host) as repo:
        with pytest.raises(UsageError):
            plan_restore(repo, select(repo, ["disk"])[0], target).execute()
        assert target.read_bytes() == b"precious"
        with pytest.raises(NothingMatched):
            select(repo, ["disk@1999"])
        plan_restore(repo, select(repo, ["disk"])[0], target, RestoreOptions(overwrite=True)).execute()
    assert target.read_bytes() == CONTENT


def test_a_foreign_target_in_place_becomes_exactly_the_volume(tmp_path: Path) -> None:
    """Old bytes where the volume has holes or zeros must not shine through."""
    store, host = MemoryStore(), host_at(tmp_path / "host")
    init(store, host)
    content = b"a" * CHUNK + bytes(5 * CHUNK) + b"b" * CHUNK + bytes(CHUNK)
    backup(store, host, volume(content))
    target = tmp_path / "target.img"
    for foreign in (b"\xff" * len(content), b"\xff" * (2 * len(content)), b"\xff" * 100):
        target.write_bytes(foreign)
        with Repository.open(store, SECRET, host) as repo:
            options = RestoreOptions(workers=1, overwrite=True, in_place=True)
            plan_restore(repo, select(repo, ["disk"])[0], target, options).execute()
        assert target.read_bytes() == content
