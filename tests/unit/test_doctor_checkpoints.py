"""What doctor says of checkpoint files, and which of them it removes: real files, real ledgers, no clones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.ids import ChunkId, SnapId, VolumeId, WriterId
from lamella.format.records import Ref
from lamella.memory.host import Host
from lamella.memory.intervals import GRAIN, Intervals
from lamella.memory.ledger import Ledger, LedgerEntry
from lamella.operations.doctor.checkpoints import (
    FOREIGN,
    LEFTOVER,
    NEEDED,
    UNKNOWN,
    CheckpointExamination,
    FoundCheckpoint,
)
from lamella.sources.checkpoint_files import DIRECTORY, Token, source_name
from lamella.sources.file import FileSource, path_of
from tests.unit.small_repository import Small

REF = Ref(WriterId(b"w" * 16), 7, SnapId(b"s" * 16))


class Desk:
    """Two images with checkpoints beside them, and a ledger that names some of these."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.small = Small.make(place / "hosts")
        self.host: Host = self.small.host()
        self.images = [place / "a.img", place / "b.img"]
        self.directory = place / DIRECTORY
        self.directory.mkdir(mode=0o700)
        for image in self.images:
            image.write_bytes(b"image")

    def identity(self, image: Path) -> bytes:
        return FileSource(image, self.host.machine).identity

    def file(self, image: Path, number: int, owner: str = "") -> Path:
        path = self.directory / f"{source_name(self.identity(image))}-{owner or self.host.owner}-{number}"
        path.write_bytes(b"x" * 5000)
        return path

    def text(self, path: Path) -> str:
        with path.open("rb") as file:
            return Token.of(file.fileno(), path.name, "btrfs").text

    def record(self, image: Path, checkpoint: str) -> None:
        with self.small.opened() as repo:
            volume = VolumeId(source_name(self.identity(image)).encode())
            entry = LedgerEntry(REF, ChunkId(b"r" * 24), 5, 16, self.identity(image), "btrfs", checkpoint)
            Ledger(repo.memory, repo.keys).record(volume, entry)

    def examination(self, *more: Path) -> CheckpointExamination:
        return CheckpointExamination(self.host, list(more), None)

    def states(self, *more: Path) -> dict[Path, str]:
        found = self.examination(*more).judged()
        return {one.file.path: one.state for one in found if one.file.path.parent == self.directory}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def paths(judged: list[FoundCheckpoint]) -> set[Path]:
    return {one.file.path for one in judged}


def test_a_path_is_found_again_in_an_identity(desk: Desk) -> None:
    image = desk.images[0]
    assert path_of(desk.identity(image), desk.host.machine) == image.resolve()
    assert path_of(desk.identity(image), "0" * 16) is None
    assert path_of(b"lvm:x", desk.host.machine) is None
    odd = desk.place / os.fsdecode(b"odd\xff:name")
    assert path_of(desk.identity(odd), desk.host.machine) == odd.resolve()


def test_every_file_is_judged(desk: Desk) -> None:
    needed, leftover = desk.file(desk.images[0], 3), desk.file(desk.images[0], 4)
    foreign = desk.file(desk.images[0], 1, "0badcafe")
    unknown = desk.file(desk.images[1], 1)
    for name in ("notes.txt", needed.name + ".bak", "." + needed.name):
        (desk.directory / name).write_bytes(b"not ours")
    (desk.directory / f"{needed.name}0").symlink_to(needed)
    desk.record(desk.images[0], desk.text(needed))
    expected = {needed: NEEDED, leftover: LEFTOVER, foreign: FOREIGN, unknown: UNKNOWN}
    assert desk.states() == expected
    assert desk.states(desk.images[1]) == expected | {unknown: LEFTOVER}
    (one,) = [one for one in desk.examination().judged() if one.file.path == needed]
    assert one.image == str(desk.images[0].resolve())
    assert one.file.held_bytes == needed.stat().st_blocks * 512
    assert one.file.changed_ms == needed.stat().st_ctime_ns // 1_000_000
    check = desk.examination().check()
    assert (check.name, check.ok) == ("checkpoints", False)
    assert "1 needed, 1 leftover, 1 unknown source, 1 other owner" in check.message


def test_the_moment_that_intervals_lead_to_is_needed(desk: Desk) -> None:
    image = desk.images[0]
    base, between, newest = (desk.file(image, number) for number in (1, 2, 3))
    desk.record(image, desk.text(base))
    intervals = Intervals(desk.host, desk.identity(image))
    delta = Delta.bounded(GRAIN, 5, 5, ChunkSet(), ChunkSet())
    intervals.add(desk.text(base), desk.text(between), delta)
    intervals.add(desk.text(between), desk.text(newest), delta)
    assert desk.states() == {base: LEFTOVER, between: LEFTOVER, newest: NEEDED}


def test_fix_removes_leftovers_only(desk: Desk) -> None:
    needed, leftover = desk.file(desk.images[0], 3), desk.file(desk.images[0], 4)
    others = {desk.file(desk.images[0], 1, "0badcafe"), desk.file(desk.images[1], 1)}
    (desk.directory / "notes.txt").write_bytes(b"mine")
    desk.record(desk.images[0], desk.text(needed))
    removed, failed = desk.examination().remove_leftovers(0.0)
    assert (paths(removed), failed) == ({leftover}, [])
    assert set(desk.directory.iterdir()) == {needed, *others, desk.directory / "notes.txt"}
    assert desk.examination().check().ok


def test_fix_waits_for_no_backup_that_is_running(desk: Desk) -> None:
    leftovers = [desk.file(image, 4) for image in desk.images]
    with desk.host.source_lock(desk.identity(desk.images[0]), 0.0):
        removed, failed = desk.examination(*desk.images).remove_leftovers(0.0)
    assert paths(removed) == {leftovers[1]}
    assert [(check.ok, str(desk.images[0]) in check.message) for check in failed] == [(False, True)]
    assert leftovers[0].exists()


def test_the_files_of_an_owner_are_removed_when_asked_for(desk: Desk) -> None:
    needed, leftover = desk.file(desk.images[0], 3), desk.file(desk.images[0], 4)
    theirs = {desk.file(image, number, "0badcafe") for image in desk.images for number in (1, 2)}
    third = desk.file(desk.images[0], 1, "0badcaff")
    desk.record(desk.images[0], desk.text(needed))
    removed, failed = desk.examination().remove_owned_by("0badcafe")
    assert (paths(removed), failed) == (theirs, [])
    assert set(desk.directory.iterdir()) == {needed, leftover, third}
    # One's own id removes what no known source made too, and still nothing that is needed.
    unknown = desk.file(desk.images[1], 9)
    removed, _ = desk.examination().remove_owned_by(desk.host.owner)
    assert paths(removed) == {leftover, unknown}
    assert set(desk.directory.iterdir()) == {needed, third}


def test_the_image_need_not_exist(desk: Desk) -> None:
    gone = desk.place / "deleted" / "machine" / "c.img"
    leftover = desk.file(gone, 1)
    assert desk.states(gone) == {leftover: LEFTOVER}


def test_a_directory_that_others_may_write_to_is_left_alone(desk: Desk) -> None:
    desk.file(desk.images[0], 1)
    desk.directory.chmod(0o777)
    assert desk.states(desk.images[0]) == {}


def test_a_configured_directory_is_looked_at_too(desk: Desk, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    moved = desk.file(desk.images[0], 1).rename(other / desk.file(desk.images[0], 1).name)
    found = CheckpointExamination(desk.host, [desk.images[0]], other).judged()
    assert {one.file.path for one in found} >= {moved}
