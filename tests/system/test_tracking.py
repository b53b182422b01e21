"""Incremental backups on real copy-on-write file systems: what is read, what is kept, what is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

import pytest

from lamella.base.clock import now_ms
from lamella.base.errors import SourceAtRisk
from lamella.crypto.slots import key_file
from lamella.memory.host import Host
from lamella.operations.backup.story import BackupOptions, BackupResult, Request, VolumeResult, plan_backup
from lamella.operations.moments.monitor import monitor
from lamella.operations.restore.restore import RestoreOptions, plan_restore
from lamella.operations.shared.selection import select
from lamella.repository.create import SlotWanted, create_repository
from lamella.repository.repository import Repository
from lamella.sources.base import Source
from lamella.sources.checkpoint_files import DIRECTORY
from lamella.sources.registry import open_source
from lamella.stores.url import open_store
from tests.cli.program import Lamella
from tests.system import loop_fs
from tests.system.soak import soak

KEY = b"tracking" * 8
SECRET = key_file(KEY)
CHUNK = 1 << 16
CHUNKS = 160
_numbers = count()
FILE_SYSTEMS = {"btrfs": ("btrfs", ""), "compressed": ("btrfs", "compress-force=zstd"), "xfs": ("xfs", "")}


@dataclass
class World:
    """An image on a tracked file system; state, cache and two repositories elsewhere."""

    top: Path
    work: Path
    image: Path = field(init=False)
    host: Host = field(init=False)

    def __post_init__(self) -> None:
        self.image = self.top / f"machine-{next(_numbers)}" / "vm.img"
        self.image.parent.mkdir()
        self.chance = Random(5)
        # Compresses well, so that compress-force makes extents of 128 KiB of it; no two chunks are the same.
        content = b"".join((b"chunk %6d " % number * (CHUNK // 13 + 1))[:CHUNK] for number in range(CHUNKS))
        self.image.write_bytes(content)
        os.sync()
        self.host = Host("5" * 16, "tracking", self.work / "state", self.work / "cache")
        for number in (0, 1):
            store = open_store(str(self.work / f"repo{number}"), create=True)
            create_repository(store, self.host, [SlotWanted(SECRET, admin=True)], now_ms)

    def source(self) -> Source:
        return open_source(str(self.image), machine=self.host.machine, owner=self.host.owner)

    def opened(self, number: int = 0) -> Repository:
        return Repository.open(open_store(str(self.work / f"repo{number}")), SECRET, self.host)

    def backup(self, number: int = 0, reread_bytes: int = 0, *, deltas: bool = False) -> VolumeResult:
        """Back up; what was saved must be what is there."""
        expected = self.image.read_bytes()
        with self.opened(number) as repo:
            # A host that lost its state is another writer, which an admin lets act for the one of before.
            options = BackupOptions(chunk_log2=16, reread_bytes=reread_bytes, adopt=True, deltas=deltas)
            result = plan_backup(repo, [Request("vm", self.source())], options).execute()
        told = [text for text in result.warnings if "the source shrank" not in text]
        assert (result.complete, told) == (True, [])
        assert self.restored(result, number) == expected
        return result.volumes[0]

    def restored(self, result: BackupResult, number: int) -> bytes:
        target = self.work / "restored.img"
        with self.opened(number) as repo:
            (one,) = select(repo, [f"vm@{result.snapshot}"])
            plan_restore(repo, one, target, RestoreOptions(overwrite=True)).execute()
        return target.read_bytes()

    def scribble(self, pieces: int) -> set[int]:
        """Write that many blocks of 4 KiB into chunks of their own; returns these."""
        chunks = set(self.chance.sample(range(CHUNKS), pieces))
        with self.image.open("r+b", buffering=0) as file:
            for chunk in chunks:
                file.seek(chunk * CHUNK + self.chance.randrange(16) * 4096)
                file.write(self.chance.randbytes(4096))
        return chunks

    def kept(self) -> list[Path]:
        """The checkpoint files of this image."""
        found = [Path(json.loads(text)["file"]) for text in self.source().kept()]
        return [self.top / DIRECTORY / path for path in found]


@pytest.fixture(scope="module", params=sorted(FILE_SYSTEMS))
def any_top(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    with loop_fs.make(*FILE_SYSTEMS[request.param]) as mount:
        yield request.param, mount


@pytest.fixture(scope="module")
def btrfs_top() -> Iterator[Path]:
    with loop_fs.make("btrfs") as mount:
        yield mount


@pytest.fixture
def world(btrfs_top: Path, tmp_path: Path) -> World:
    return World(btrfs_top, tmp_path)


# -- what is read ----------------------------------------------------------------------------------------------------


def test_only_what_changed_and_the_sample_is_read(any_top: tuple[str, Path], tmp_path: Path) -> None:
    name, top = any_top
    world = World(top, tmp_path)
    assert world.backup().mode == "full"
    for pieces in (20, 0, 3):
        chunks = world.scribble(pieces)
        row = world.backup()
        assert (row.mode, row.reason) == ("incremental", "")
        assert row.changed_chunks == len(chunks)
        read = row.read_bytes - row.sampled_bytes
        # A compressed extent is 128 KiB, and is marked as a whole where it was cut.
        most = 3 if name == "compressed" else 1
        assert len(chunks) * CHUNK <= read <= most * len(chunks) * CHUNK
        assert 0 < row.sampled_bytes <= 64 * CHUNK
        assert row.stored_bytes <= len(chunks) * (CHUNK + 100)
        assert len(world.kept()) == 1


def test_blocks_that_changed_are_stored_alone(any_top: tuple[str, Path], tmp_path: Path) -> None:
    """What the chunks held before comes from the checkpoint file, and from nowhere else."""
    world = World(any_top[1], tmp_path)
    noise = Random(8).randbytes(6 * CHUNK)
    with world.image.open("r+b") as file:
        file.write(noise)
    world.backup(deltas=True)
    for chunk in (1, 3):
        with world.image.open("r+b") as file:
            file.seek(chunk * CHUNK + 30_000)
            file.write(b"x" * 500)
    os.sync()
    row = world.backup(deltas=True)
    assert (row.mode, row.changed_chunks, row.delta_chunks) == ("incremental", 2, 2)
    assert row.stored_bytes < CHUNK // 2
    world.kept()[0].unlink()
    with world.image.open("r+b") as file:
        file.seek(5 * CHUNK)
        file.write(b"y")
    row = world.backup(deltas=True)
    assert (row.mode, row.changed_chunks, row.delta_chunks) == ("compare", 1, 0), "nothing else is a base"


def test_zeros_are_not_read(any_top: tuple[str, Path], tmp_path: Path) -> None:
    name, top = any_top
    world = World(top, tmp_path)
    world.backup()
    os.truncate(world.image, 64 * CHUNK)
    os.truncate(world.image, CHUNKS * CHUNK)
    row = world.backup()
    assert row.mode == "incremental"
    assert row.read_bytes - row.sampled_bytes <= (4 if name == "compressed" else 2) * CHUNK


@pytest.mark.parametrize("size", [50 * CHUNK + 7, CHUNKS * CHUNK + 3 * CHUNK + 1, 1])
def test_another_size_is_incremental_too(any_top: tuple[str, Path], tmp_path: Path, size: int) -> None:
    world = World(any_top[1], tmp_path)
    world.backup()
    world.scribble(2)
    os.truncate(world.image, size)
    row = world.backup()
    assert (row.mode, row.source_bytes) == ("incremental", size)
    os.truncate(world.image, CHUNKS * CHUNK)
    assert world.backup().mode == "incremental"


def test_rereading_everything(world: World) -> None:
    world.backup()
    row = world.backup(reread_bytes=CHUNKS * CHUNK)
    assert (row.mode, row.sampled_bytes) == ("incremental", CHUNKS * CHUNK)


# -- what the host forgets -------------------------------------------------------------------------------------------


def test_a_lost_cache_costs_nothing(world: World) -> None:
    world.backup()
    shutil.rmtree(world.host.cache_dir)
    chunks = world.scribble(5)
    row = world.backup()
    assert (row.mode, row.read_bytes - row.sampled_bytes) == ("incremental", len(chunks) * CHUNK)


def test_a_lost_state_costs_a_comparison(world: World) -> None:
    world.backup()
    shutil.rmtree(world.host.state_dir)
    chunks = world.scribble(5)
    row = world.backup()
    assert (row.mode, row.reason) == ("compare", "this host keeps no checkpoint of the last backup")
    assert row.read_bytes == CHUNKS * CHUNK
    assert row.stored_bytes <= len(chunks) * (CHUNK + 100)
    assert len(world.kept()) == 1, "the moment that the lost state named is known by its name"
    assert world.backup().mode == "incremental"


def deleted(world: World) -> None:
    world.kept()[0].unlink()


def edited(world: World) -> None:
    with world.kept()[0].open("r+b") as file:
        file.write(b"edited")


def copied(world: World) -> None:
    """Another file with the same bytes and the same name."""
    file = world.kept()[0]
    beside = file.with_name("beside")
    shutil.copy2(file, beside)
    beside.rename(file)


@pytest.mark.parametrize("what", [deleted, edited, copied])
def test_a_moment_that_is_not_what_it_was_is_not_compared_with(world: World, what: Callable[[World], None]) -> None:
    world.backup()
    what(world)
    world.scribble(2)
    row = world.backup()
    # What no ledger names is removed before the run, and its name may be used again.
    assert row.mode == "compare"
    assert row.reason.startswith("the checkpoint ")
    assert len(world.kept()) == 1
    assert world.backup().mode == "incremental"


def test_an_image_replaced_by_another_file(world: World) -> None:
    world.backup()
    other = world.image.with_name("other.img")
    content = bytearray(world.image.read_bytes())
    content[7 * CHUNK : 7 * CHUNK + 5] = b"other"
    other.write_bytes(content)
    other.rename(world.image)
    row = world.backup()
    assert row.changed_chunks == 1
    assert row.read_bytes - row.sampled_bytes == CHUNKS * CHUNK, "nothing is shared with the moment that was kept"


# -- several repositories, and monitor -------------------------------------------------------------------------------


def test_two_repositories_do_not_disturb_each_other(any_top: tuple[str, Path], tmp_path: Path) -> None:
    world = World(any_top[1], tmp_path)
    assert [world.backup(number).mode for number in (0, 1)] == ["full", "full"]
    first = world.scribble(4)
    assert world.backup(0).changed_chunks == len(first)
    second = world.scribble(4)
    row = world.backup(1)
    assert (row.mode, row.changed_chunks) == ("incremental", len(first | second))
    row = world.backup(0)
    assert (row.mode, row.changed_chunks) == ("incremental", len(second))
    assert len(world.kept()) == 2


def test_monitor_gives_space_back_and_backups_stay_incremental(any_top: tuple[str, Path], tmp_path: Path) -> None:
    name, top = any_top
    world = World(top, tmp_path)
    world.backup(0)
    touched = world.scribble(3)
    world.backup(1)
    for size in (CHUNKS * CHUNK, 100 * CHUNK + 5, CHUNKS * CHUNK):
        touched |= world.scribble(3)
        os.truncate(world.image, size)
        done = monitor(world.host, world.source())
        assert done.intervals >= 1
        assert len(world.kept()) == 1
    touched |= world.scribble(3)
    for number in (0, 1):
        row = world.backup(number)
        assert row.mode == "incremental", row.reason
        assert row.changed_chunks <= len(touched | set(range(100, CHUNKS)))
        read = row.read_bytes - row.sampled_bytes
        assert read <= (3 if name == "compressed" else 1) * CHUNK * (len(touched) + 3)
    assert not list((world.host.state_dir / "intervals").glob("*/*.json")), "no base leads on by an interval any more"


def test_monitor_after_the_state_was_lost_does_nothing_wrong(world: World) -> None:
    world.backup()
    monitor(world.host, world.source())
    shutil.rmtree(world.host.state_dir / "intervals")
    world.scribble(2)
    done = monitor(world.host, world.source())
    assert (done.intervals, done.dropped) == (0, 1)
    assert any("compare everything" in note for note in done.notes)
    row = world.backup()
    assert (row.mode, row.changed_chunks) == ("compare", 2)


# -- kills, foreign files, full file systems -------------------------------------------------------------------------

KILLS = """
import os, signal, sys
from pathlib import Path
import lamella.operations.backup.story as story
import lamella.operations.moments.monitor as monitor_module
from lamella.memory.intervals import Intervals
from lamella.memory.ledger import Ledger
from lamella.sources.reflink.reflink import ClonedSource
from tests.system.test_tracking import World, Host

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def killed_after(function):
    def call(*args, **options):
        function(*args, **options)
        die()
    return call

what, image, work, runs = sys.argv[1:]
points = {
    "publishing": (story, "publish", False),
    "published": (story, "publish", True),
    "before keep": (ClonedSource, "keep", False),
    "after keep": (ClonedSource, "keep", True),
    "after the ledger": (Ledger, "record", True),
    "before drop": (ClonedSource, "drop", False),
    "after drop": (ClonedSource, "drop", True),
    "after an interval": (Intervals, "add", True),
}
place, name, after = points[what]
setattr(place, name, killed_after(getattr(place, name)) if after else die)
world = World.__new__(World)
world.image, world.work = Path(image), Path(work)
world.host = Host("5" * 16, "tracking", world.work / "state", world.work / "cache")
if runs == "monitor":
    monitor_module.monitor(world.host, world.source())
else:
    world.backup()
"""


def killed(world: World, what: str, runs: str) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLS, what, str(world.image), str(world.work), runs],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, (done.returncode, done.stderr)


@pytest.mark.parametrize(
    ("runs", "what"),
    [
        ("backup", "publishing"),
        ("backup", "published"),
        ("backup", "before keep"),
        ("backup", "after keep"),
        ("backup", "after the ledger"),
        ("backup", "before drop"),
        ("backup", "after drop"),
        ("monitor", "before keep"),
        ("monitor", "after an interval"),
        ("monitor", "after drop"),
    ],
)
def test_what_a_kill_leaves_is_gone_after_the_next_run(world: World, runs: str, what: str) -> None:
    world.backup()
    world.scribble(3)
    killed(world, what, runs)
    left = len(world.kept())
    assert left == (1 if what == "after drop" else 2)
    world.scribble(2)
    row = world.backup()
    assert row.mode == "incremental", row.reason
    assert len(world.kept()) == 1


def test_foreign_files_stay(world: World) -> None:
    world.backup()
    own = world.kept()[0]
    source, owner, number = own.name.split("-")
    foreign = {
        own.with_name("notes.txt"): b"mine",
        own.with_name(f"{source}-{'0' * 8}-{number}"): b"another owner's",
        own.with_name(f"{'0' * 16}-{owner}-{number}"): b"another source's",
        own.with_name(f"{source}-{owner}-0{number}"): b"not a number of ours",
        own.with_name(own.name + ".bak"): b"copy",
    }
    for path, content in foreign.items():
        path.write_bytes(content)
    folder = own.with_name(f"{source}-{owner}-77")
    folder.mkdir()
    link = own.with_name(f"{source}-{owner}-78")
    link.symlink_to(world.image)
    world.scribble(1)
    world.backup()
    monitor(world.host, world.source())
    world.backup(1)
    assert {path: path.read_bytes() for path in foreign} == foreign
    assert folder.is_dir()
    assert link.is_symlink()
    folder.rmdir()
    for path in [*foreign, link]:
        path.unlink()


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_a_nearly_full_file_system_is_left_alone(kind: str, tmp_path: Path) -> None:
    with loop_fs.make(kind) as top:
        world = World(top, tmp_path)
        world.backup()
        _fill(top)
        before = {path: path.stat().st_mtime_ns for path in top.rglob("*")}
        objects = sorted(path.name for path in (tmp_path / "repo0").rglob("*"))
        with world.opened() as repo, pytest.raises(SourceAtRisk, match="nearly full") as caught:
            plan_backup(repo, [Request("vm", world.source())], BackupOptions()).execute()
        assert caught.value.exit_code == 22
        with pytest.raises(SourceAtRisk):
            monitor(world.host, world.source())
        key = tmp_path / "key"
        key.write_bytes(KEY)
        key.chmod(0o600)
        command = Lamella({"LAMELLA_REPO": str(tmp_path / "repo0")}, ["--keyfile", str(key)])
        assert command.run("backup", f"other={world.image}").code == 22
        assert {path: path.stat().st_mtime_ns for path in top.rglob("*")} == before
        assert sorted(path.name for path in (tmp_path / "repo0").rglob("*")) == objects
        (top / "filler").unlink()
        os.sync()
        assert world.backup().mode == "incremental"


def _fill(top: Path) -> None:
    """Leave less than 5 % of a file system free."""
    with (top / "filler").open("wb") as file:
        for share in (1, 2, 4, 8):
            while True:
                found = os.statvfs(top)
                free = found.f_bavail * found.f_frsize
                piece = max(1 << 20, free // 2 // share)
                if free * 25 < found.f_blocks * found.f_frsize:
                    return
                try:
                    os.posix_fallocate(file.fileno(), file.tell(), piece)
                except OSError:
                    break
                file.seek(piece, os.SEEK_CUR)


# -- all of it at random ---------------------------------------------------------------------------------------------


def test_a_short_soak() -> None:
    """`python -m tests.system.soak` is the long form."""
    counts = soak("btrfs", "compress-force=zstd", seed=3, seconds=8)
    assert counts["rounds"] > 0
    assert counts["incremental"] + counts["full"] + counts["compare"] > 0


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_where_space_is_short_the_oldest_moment_of_a_repository_that_is_away_goes(kind: str, tmp_path: Path) -> None:
    """Moments of disks that are away must not end the backups of those that are here, and not one more goes."""
    with loop_fs.make(kind) as top:
        world = World(top, tmp_path)
        rounds = [0, 1, 0]
        for number in rounds:
            world.backup(number)
            world.image.write_bytes(os.urandom(60 << 20))  # the moment of 1 alone keeps what is written over here
            os.sync()
        before = world.kept()
        _fill(top)
        with world.opened() as repo:
            result = plan_backup(repo, [Request("vm", world.source())], BackupOptions()).execute()
        assert result.volumes[0].mode == "incremental" and "a moment was given up" in result.warnings[0]
        assert len(before) == 2 and len(world.kept()) == 1 and not set(before) & set(world.kept())
        (top / "filler").unlink()
        os.sync()
        assert [world.backup(number).mode for number in (1, 0, 1)] == ["compare", "incremental", "incremental"]
