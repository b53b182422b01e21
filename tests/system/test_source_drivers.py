"""The drivers against the source contract on real file systems, and what is special about each of them."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import lamella
from lamella.base.errors import CheckpointLost, SourceAtRisk, UsageError
from lamella.sources.base import Source
from lamella.sources.checkpoint_files import DIRECTORY
from lamella.sources.registry import open_source
from lamella_kit.image_files import mounted, sparse_file
from lamella_kit.source_changes import SIZE, overwrite
from lamella_kit.source_contract import ReadOnlySourceContract, SourceContract
from lamella_kit.source_reading import GRAIN, check_delta, pattern, whole
from tests.features import require
from tests.system import loop_fs

MACHINE = "0123456789abcdef"
OWNER = "00c0ffee"
NOBODY = 65534
_numbers = itertools.count()


class OnFileSystem:
    """Gives the suite a file system for all tests of a class, and each test an image in a directory of its own."""

    kind = ""
    options = ""
    driver: str | None = None

    @pytest.fixture(scope="class")
    @classmethod
    def top(cls) -> Iterator[Path]:
        with loop_fs.make(cls.kind, cls.options) as mount:
            yield mount

    @pytest.fixture(autouse=True)
    def _image(self, top: Path) -> None:
        self.top_directory = top
        self.place = top / f"machine-{next(_numbers)}"
        self.place.mkdir()
        (self.place / "disk.img").write_bytes(b"disk")

    def image(self) -> Path:
        return self.place / "disk.img"

    def make_source(self, image: Path) -> Source:
        return open_source(str(image), machine=MACHINE, owner=OWNER, driver=self.driver)

    def checkpoint_file(self, source: Source, checkpoint: str) -> Path:
        return self.top_directory / DIRECTORY / str(json.loads(checkpoint)["file"])


class TestFile(OnFileSystem, ReadOnlySourceContract):
    kind = "btrfs"
    driver = "file"


class TestBtrfs(OnFileSystem, SourceContract):
    kind = "btrfs"


class TestBtrfsCompressed(OnFileSystem, SourceContract):
    kind = "btrfs"
    options = "compress-force=zstd"

    def most_changed(self, touched: int) -> int:
        return 3 * touched  # a compressed extent holds 128 KiB, and is marked as a whole where it was cut


class TestBtrfsWithoutCopyOnWrite(OnFileSystem, SourceContract):
    kind = "btrfs"
    options = "nodatacow"


class TestBtrfsByExtentMaps(OnFileSystem, SourceContract):
    kind = "btrfs"
    driver = "reflink"


class TestXfs(OnFileSystem, SourceContract):
    kind = "xfs"


# -- which driver ---------------------------------------------------------------------------------------------------


def opened(image: Path, owner: str = OWNER, driver: str | None = None, checkpoint_dir: Path | None = None) -> Source:
    return open_source(str(image), machine=MACHINE, owner=owner, driver=driver, checkpoint_dir=checkpoint_dir)


def disk(directory: Path, content: bytes = b"disk") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    image = directory / "disk.img"
    image.write_bytes(content)
    return image


def everything(directory: Path) -> set[Path]:
    return set(directory.rglob("*"))


@contextmanager
def file_system_of(kind: str) -> Iterator[Path]:
    """A mount point; kinds beyond those of loop_fs: XFS that cannot share blocks, and ext4."""
    if kind in ("btrfs", "xfs"):
        with loop_fs.make(kind) as top:
            yield top
        return
    words = {"plain xfs": ["mkfs.xfs", "-q", "-f", "-m", "reflink=0"], "ext4": ["mkfs.ext4", "-q", "-F"]}[kind]
    loop_fs.need("xfs")
    require(words[0], shutil.which(words[0]) is not None, "no such program")
    with TemporaryDirectory() as place:
        image, top = Path(place, "image"), Path(place, "mount")
        top.mkdir()
        sparse_file(image, 320 << 20, {})
        subprocess.run([*words, str(image)], check=True, capture_output=True, timeout=60)
        with mounted(str(image), top, kind=words[0].removeprefix("mkfs."), options="loop"):
            yield top


@pytest.mark.parametrize(
    ("kind", "driver"), [("btrfs", "btrfs"), ("xfs", "reflink"), ("plain xfs", "file"), ("ext4", "file")]
)
def test_the_driver_follows_from_the_path(kind: str, driver: str) -> None:
    with file_system_of(kind) as top:
        image = disk(top / "images")
        (top / "link.img").symlink_to("images/disk.img")
        before = everything(top)
        source = opened(image)
        assert (source.driver, source.tracks) == (driver, driver != "file")
        assert opened(top / "link.img").driver == driver
        assert opened(image, owner="").driver == "file"
        plain = opened(image, driver="file")
        assert (plain.driver, plain.tracks) == ("file", False)
        assert plain.identity == source.identity == opened(top / "link.img").identity
        if driver != "btrfs":
            with pytest.raises(UsageError, match="on Btrfs"):
                opened(image, driver="btrfs")
        for name in ("btrfs", "reflink"):
            with pytest.raises(UsageError):
                opened(image, owner="", driver=name)
        assert everything(top) == before, "looking for a driver left something behind"


def test_a_forced_driver_reads_what_cannot_be_cloned_in_place() -> None:
    with file_system_of("ext4") as top:
        source = opened(disk(top), driver="reflink")
        assert not source.tracks
        with source.freeze() as frozen:
            assert (whole(frozen), frozen.checkpoint) == (b"disk", "")
            with pytest.raises(CheckpointLost, match="no checkpoint can be made: the file system cannot do it"):
                frozen.delta_since("", GRAIN)
        assert source.kept() == []


# -- where checkpoints go -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["btrfs", "xfs"])
def top(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of each kind, for tests that leave nothing but files below a directory of their own."""
    with loop_fs.make(request.param) as mount:
        yield mount


@pytest.fixture
def place(top: Path) -> Path:
    directory = top / f"place-{next(_numbers)}"
    directory.mkdir()
    return directory


def test_a_checkpoint_lies_at_the_top_for_its_owner_alone(top: Path, place: Path) -> None:
    image = disk(place / "a" / "b")
    source = opened(image)
    with source.freeze() as frozen:
        (file,) = (top / DIRECTORY).iterdir()
        name = hashlib.sha256(b"lamella source\0" + source.identity).hexdigest()[:16]
        assert file.name == f"{name}-{OWNER}-1"
        assert (top / DIRECTORY).stat().st_mode & 0o777 == 0o700
        assert file.stat().st_mode & 0o777 == 0o400
        assert everything(place) == {image.parent.parent, image.parent, image}
        assert json.loads(frozen.checkpoint)["file"] == file.name
    assert list((top / DIRECTORY).iterdir()) == []


def test_a_checkpoint_goes_where_it_was_asked_for(top: Path, place: Path) -> None:
    image, asked = disk(place / "images"), place / "pool" / DIRECTORY
    source = opened(image, checkpoint_dir=asked)
    with source.freeze() as frozen:
        source.keep(frozen.checkpoint)
        (file,) = asked.iterdir()
    image.write_bytes(b"disk!")
    other = opened(image, checkpoint_dir=asked)
    with other.freeze() as frozen:
        assert list(frozen.delta_since(other.kept()[0], GRAIN).changed.runs()) == [(0, 1)]
    other.drop(file.name)
    assert other.kept() == []


def test_a_subvolume_has_checkpoints_of_its_own() -> None:
    with loop_fs.make("btrfs") as top:
        for path in ("sub", "sub/inner"):
            subprocess.run(["btrfs", "subvolume", "create", str(top / path)], check=True, capture_output=True)
        image = disk(top / "sub" / "inner" / "images" / "work")
        with opened(image).freeze() as frozen:
            assert frozen.checkpoint
            assert len(list((top / "sub" / "inner" / DIRECTORY).iterdir())) == 1
        assert not (top / DIRECTORY).exists()
        assert not (top / "sub" / DIRECTORY).exists()


def test_a_directory_mounted_elsewhere_keeps_its_checkpoints_below(top: Path, place: Path) -> None:
    disk(place / "real" / "images")
    seen = place / "seen"
    seen.mkdir()
    subprocess.run(["mount", "--bind", str(place / "real"), str(seen)], check=True, timeout=60)
    try:
        with opened(seen / "images" / "disk.img").freeze() as frozen:
            assert frozen.checkpoint
            assert len(list((place / "real" / DIRECTORY).iterdir())) == 1
    finally:
        subprocess.run(["umount", str(seen)], check=True, timeout=60)


def test_a_planted_directory_is_passed_over() -> None:
    with loop_fs.make("xfs") as top:
        image = disk(top / "home" / "images")
        (top / DIRECTORY).mkdir()
        os.chown(top / DIRECTORY, NOBODY, NOBODY)
        (top / "home" / DIRECTORY).symlink_to(top)
        with opened(image).freeze() as frozen:
            assert frozen.checkpoint
            assert len(list((image.parent / DIRECTORY).iterdir())) == 1
        assert list((top / DIRECTORY).iterdir()) == []


# -- without privilege ----------------------------------------------------------------------------------------------


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root, capabilities included, for a while."""
    libc = ctypes.CDLL(None, use_errno=True)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    libc.prctl(4, 1)  # PR_SET_DUMPABLE: the change of user took /proc/self away from us
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        libc.prctl(4, 1)


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_a_user_keeps_checkpoints_in_the_topmost_directory_of_the_user(kind: str) -> None:
    with loop_fs.make(kind) as top:
        top.parent.chmod(0o755)
        home = top / "users" / "nobody"
        image = disk(home / "images", pattern(SIZE, 1))
        for path in (home, *everything(home)):
            os.chown(path, NOBODY, NOBODY)
        with as_nobody():
            source = opened(image)
            assert source.tracks
            with source.freeze() as frozen:
                source.keep(frozen.checkpoint)
                checkpoint = frozen.checkpoint
            assert len(list((home / DIRECTORY).iterdir())) == 1
            overwrite(image, 3 * GRAIN, b"x")
            with opened(image).freeze() as frozen:
                delta = frozen.delta_since(checkpoint, GRAIN)
                check_delta(delta, pattern(SIZE, 1), whole(frozen))
                assert len(delta.changed) <= 3
        assert not (top / DIRECTORY).exists()
        root = opened(image)
        assert root.kept() == []
        with root.freeze() as frozen:
            assert len(list((top / DIRECTORY).iterdir())) == 1
            with pytest.raises(CheckpointLost):
                frozen.delta_since(checkpoint, GRAIN)


# -- compressed extents that look alike -----------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["btrfs", "reflink"])
@pytest.mark.parametrize("options", ["compress-force=zstd", "compress-force=lzo", "compress=zstd"])
def test_all_but_the_first_block_of_a_compressed_extent_is_overwritten(options: str, driver: str) -> None:
    """The new extent lies next to the old one, where its address and length make the same line of an extent map."""
    length = 2 * GRAIN
    before = b"before--" * (length // 8)
    after = before[:4096] + b"after---" * ((length - 4096) // 8)
    with loop_fs.make("btrfs", options) as top:
        for number in range(10):
            image = disk(top, before)
            source = opened(image, driver=driver)
            with source.freeze() as frozen:
                source.keep(frozen.checkpoint)
                checkpoint = frozen.checkpoint
            overwrite(image, 4096, after[4096:])
            with source.freeze() as frozen:
                assert whole(frozen) == after
                delta = frozen.delta_since(checkpoint, GRAIN)
                assert list(delta.changed.runs()) == [(0, 2)], f"try {number}"
            source.drop(checkpoint)
            image.unlink()
            os.sync()


# -- what cannot be cloned ------------------------------------------------------------------------------------------


def assert_read_in_place(source: Source, content: bytes, why: str) -> None:
    with source.freeze() as frozen:
        assert frozen.checkpoint == ""
        assert whole(frozen) == content
        with pytest.raises(CheckpointLost, match=why):
            frozen.delta_since("", GRAIN)
    assert source.kept() == []


def test_checkpoints_on_another_file_system(place: Path, tmp_path: Path) -> None:
    source = opened(disk(place), checkpoint_dir=tmp_path / "kept")
    assert_read_in_place(source, b"disk", "on another file system")
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_directory_that_cannot_be_had(place: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").symlink_to(place)
    assert_read_in_place(opened(disk(place), checkpoint_dir=tmp_path / "kept"), b"disk", "no directory to keep it in")


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_a_file_system_that_is_read_only(kind: str) -> None:
    with loop_fs.make(kind) as top:
        image = disk(top)
        subprocess.run(["mount", "-o", "remount,ro", str(top)], check=True, timeout=60)
        assert_read_in_place(opened(image), b"disk", "the file system is read-only")


@pytest.mark.parametrize("options", ["", "nodatacow", "nodatasum"])
def test_any_mixture_of_files_with_and_without_checksums(options: str) -> None:
    with loop_fs.make("btrfs") as top:
        flags = {"plain.img": "", "nocow.img": "+C"}
        for name, flag in flags.items():
            (top / name).touch()
            if flag:
                subprocess.run(["chattr", flag, str(top / name)], check=True, timeout=60)
            (top / name).write_bytes(pattern(SIZE, 1))
        if options:
            subprocess.run(["mount", "-o", f"remount,{options}", str(top)], check=True, timeout=60)
            (top / "later.img").write_bytes(pattern(SIZE, 1))
            subprocess.run(["mount", "-o", "remount,datacow,datasum", str(top)], check=True, timeout=60)
        for image in sorted(top.glob("*.img")):
            source = opened(image)
            with source.freeze() as frozen:
                source.keep(frozen.checkpoint)
                checkpoint = frozen.checkpoint
            overwrite(image, 5 * GRAIN, b"x" * 4096)
            with source.freeze() as frozen:
                delta = frozen.delta_since(checkpoint, GRAIN)
                check_delta(delta, pattern(SIZE, 1), whole(frozen))
                assert list(delta.changed.runs()) == [(5, 6)], image.name


# -- a file system that is nearly full ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_nothing_is_frozen_where_hardly_any_space_is_left(kind: str) -> None:
    with loop_fs.make(kind) as top:
        image = disk(top / "images")
        space = os.statvfs(top)
        fill = (space.f_bavail - space.f_blocks // 25) * space.f_frsize
        with (top / "fill").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, fill)
        os.sync()
        before = everything(top)
        with pytest.raises(SourceAtRisk, match="nearly full") as caught, opened(image).freeze():
            pytest.fail("a nearly full file system was frozen")
        assert caught.value.exit_code == 22
        assert everything(top) == before
        with opened(image, driver="file").freeze() as frozen:
            assert whole(frozen) == b"disk"
        (top / "fill").unlink()
        os.sync()
        with opened(image).freeze() as frozen:
            assert frozen.checkpoint


# -- kills, crashes, restarts ---------------------------------------------------------------------------------------

KILLED = """
import fcntl, json, os, signal, sys
from pathlib import Path
from lamella.sources.registry import open_source

image, call, when, nth = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
module = fcntl if call == "ioctl" else os
real, count = getattr(module, call), 0

def deadly(*args, **kwargs):
    global count
    if call == "ioctl" and args[1] != 0x40049409:
        return real(*args, **kwargs)
    count += 1
    if count == nth and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*args, **kwargs)
    if count == nth and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(module, call, deadly)
source = open_source(image, machine="0123456789abcdef", owner="00c0ffee")
with source.freeze() as frozen:
    frozen.delta_since(source.kept()[0], 1 << 16)
    source.keep(frozen.checkpoint)
    source.drop(source.kept()[0])
raise RuntimeError("was not killed")
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("call", "nth"), [("ioctl", 1), ("link", 1), ("fsync", 1), ("fsync", 2), ("unlink", 1)])
def test_killed_anywhere_there_is_one_moment_too_many_at_most(
    top: Path, place: Path, call: str, nth: int, when: str
) -> None:
    content = pattern(SIZE, 1)
    image = disk(place, content)
    source = opened(image)
    with source.freeze() as frozen:
        source.keep(frozen.checkpoint)
        base = frozen.checkpoint
    overwrite(image, 0, b"x" * 5000)
    changed = image.read_bytes()
    environment = {**os.environ, "PYTHONPATH": str(Path(lamella.__path__[0]).parent)}
    command = [sys.executable, "-c", KILLED, str(image), call, when, str(nth)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = opened(image).kept()
    named = call != "ioctl" and (call, when) != ("link", "before")
    dropped = (call, when) == ("unlink", "after")
    assert len(kept) == 1 + named - dropped
    contents = {base: content}
    with opened(image).freeze() as frozen:
        for checkpoint in kept:
            check_delta(frozen.delta_since(checkpoint, GRAIN), contents.get(checkpoint, changed), changed)
    for checkpoint in kept:
        source.drop(checkpoint)
    assert source.kept() == []
    assert list((top / DIRECTORY).iterdir()) == []


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_a_checkpoint_is_known_again_after_a_restart(kind: str, tmp_path: Path) -> None:
    with loop_fs.make(kind) as top:
        image = disk(top / "images", pattern(SIZE, 1))
        source = opened(image)
        with source.freeze() as frozen:
            source.keep(frozen.checkpoint)
            checkpoint = frozen.checkpoint
        device = next(line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if str(top) in line)
        subprocess.run(["umount", str(top)], check=True, timeout=60)
        subprocess.run(["mount", "-t", kind, device, str(top)], check=True, timeout=60)
        overwrite(image, 5 * GRAIN, b"x")
        after = opened(image)
        assert after.kept() == [checkpoint]
        with after.freeze() as frozen:
            assert list(frozen.delta_since(checkpoint, GRAIN).changed.runs()) == [(5, 6)]


def test_a_checkpoint_of_another_file_system_is_lost() -> None:
    with loop_fs.make("xfs") as top:
        image = disk(top / "images")
        source = opened(image)
        with source.freeze() as frozen:
            source.keep(frozen.checkpoint)
            token = json.loads(frozen.checkpoint)
        token["system"] = "0" * 32
        with source.freeze() as frozen, pytest.raises(CheckpointLost, match="another file system"):
            frozen.delta_since(json.dumps(token, sort_keys=True, separators=(",", ":")), GRAIN)
