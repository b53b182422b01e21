"""`doctor --forget-host`: nothing of a host that leaves stays, and nothing goes that is not its own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from lamella.sources.checkpoint_files import DIRECTORY
from tests.cli.program import Lamella, environment
from tests.system import loop_fs

MIB = 1 << 20
_numbers = count()


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    with loop_fs.make("btrfs") as mount:
        yield mount


@pytest.fixture
def tracked(top: Path) -> Path:
    place = top / f"machine-{next(_numbers)}"
    place.mkdir()
    path = place / "vm.img"
    path.write_bytes(os.urandom(2 * MIB + 4096 * next(_numbers)))
    return path


def moments(image: Path) -> list[Path]:
    """Checkpoints of this image: the other tests' lie in the same directory of the file system."""
    size = image.stat().st_size
    return sorted(path for path in image.parents[1].glob(f"{DIRECTORY}/*") if path.stat().st_size == size)


def places() -> tuple[Path, Path]:
    return Path(os.environ["LAMELLA_STATE_DIR"]), Path(os.environ["LAMELLA_CACHE_DIR"])


def test_everything_of_the_host_goes_and_its_snapshots_stay(empty: Lamella, tracked: Path, tmp_path: Path) -> None:
    state, cache = places()
    empty.ok("backup", tracked)
    empty.ok("list")
    (state / "somebody-elses").write_text("kept")
    before = moments(tracked)
    assert len(before) == 1
    shown = empty.json("doctor", "--forget-host", "-n")
    assert [row["file"] for row in shown["removed"]] == [str(before[0])]
    assert str(state / "repo") in shown["memory"]
    refused = empty.run("doctor", "--forget-host")  # nobody can be asked
    assert refused.code == 2
    assert "-y" in refused.err
    assert moments(tracked) == before
    done = empty.ok("doctor", "--forget-host", "-y")
    assert "forgotten" in done.err
    assert moments(tracked) == []
    assert [path.name for path in state.iterdir()] == ["somebody-elses"]
    assert not cache.exists()
    empty.ok("restore", "vm", "--to", tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes() == tracked.read_bytes()


def test_it_is_a_new_host_afterwards(empty: Lamella, tracked: Path) -> None:
    empty.ok("backup", tracked)
    empty.ok("doctor", "--forget-host", "-y")
    (row,) = empty.json("backup", tracked, "--adopt")["volumes"]
    assert (row["mode"], row["stored_bytes"]) == ("compare", 0)
    assert len(moments(tracked)) == 1


def test_another_owners_moments_stay(empty: Lamella, tracked: Path, tmp_path: Path) -> None:
    other = {"LAMELLA_STATE_DIR": str(tmp_path / "other-state"), "LAMELLA_CACHE_DIR": str(tmp_path / "other-cache")}
    second = Lamella({**empty.env, **other}, empty.options)
    empty.ok("backup", tracked)
    (ours,) = moments(tracked)
    second.ok("backup", "other=" + str(tracked), "--adopt")
    assert len(moments(tracked)) == 2
    second.ok("doctor", "--forget-host", "-y")
    assert moments(tracked) == [ours]
    assert not (tmp_path / "other-state").exists()


def test_a_moment_that_cannot_be_removed_keeps_the_memory(empty: Lamella, tracked: Path) -> None:
    """The memory says where the moments are: without it nobody would find them again."""
    state, _ = places()
    empty.ok("backup", tracked)
    (moment,) = moments(tracked)
    folder = os.open(moment.parent, os.O_RDONLY)
    try:
        os.system(f"chattr +i {moment}")
        done = empty.run("doctor", "--forget-host", "-y")
    finally:
        os.system(f"chattr -i {moment}")
        os.close(folder)
    assert done.code == 1
    assert "TROUBLE" in done.out
    assert (state / "repo").exists()
    empty.ok("doctor", "--forget-host", "-y")
    assert moments(tracked) == []


def test_nothing_is_forgotten_while_a_backup_runs(empty: Lamella, tmp_path: Path) -> None:
    """The backup would remember the host anew, and "forgotten" would not be true. A first backup has no moment yet."""
    state, _ = places()
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(12 * MIB))
    running = subprocess.Popen(
        [*empty.command, *empty.options, "backup", str(image), "--limit-rate", "3M"], env=environment(empty.env)
    )
    try:
        until = time.monotonic() + 60
        while not list(state.glob("sources/*.lock")) and time.monotonic() < until:
            time.sleep(0.01)
        done = empty.run("doctor", "--forget-host", "-y")
        assert (done.code, "is running" in done.err) == (11, True), done
        assert (state / "repo").exists()
    finally:
        running.wait(60)
    empty.ok("doctor", "--forget-host", "-y")
    assert not state.exists()


def test_what_others_keep_in_the_same_directory_stays(lamella: Lamella, tmp_path: Path) -> None:
    """A repository above all: somebody chose the directory of the backups for the state and the cache, too."""
    (top := tmp_path / "backups").mkdir()
    places = {"LAMELLA_STATE_DIR": str(top), "LAMELLA_CACHE_DIR": str(top)}
    here = Lamella({**places, "LAMELLA_REPO": str(top / "repo")}, lamella.options)
    disk = tmp_path / "disk.img"
    disk.write_bytes(os.urandom(MIB))
    here.ok("init", "-q")
    here.ok("backup", disk)
    names = """
        sources/main.c profiles/work.toml intervals/notes intervals/0123456789abcdef/raw names/children machine.d/x
        repo/notes.json repo/0123456789abcdef0123456789abcdef/disk.img 0123456789abcdef0123456789abcdef/x
        guest-kernel/vmlinuz
    """
    theirs = [top / name for name in names.split()]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("kept")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "writer.json").write_text("kept")
    (top / "repo" / ("1" * 32)).symlink_to(tmp_path / "elsewhere")
    shown = here.json("doctor", "--forget-host", "-n")["memory"]
    assert shown and str(top / "repo") not in shown and str(top / "sources") not in shown
    here.ok("doctor", "--forget-host", "-y")
    assert all(path.read_text() == "kept" for path in [*theirs, tmp_path / "elsewhere" / "writer.json"])
    assert not list(top.glob("**/writer.json")) and not list(top.glob("**/cache.sqlite*"))
    here.ok("restore", "disk", "--to", tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes() == disk.read_bytes()


def test_words_that_make_no_sense(empty: Lamella) -> None:
    assert empty.run("doctor", "--forget-host", "--fix", "-y").code == 2
    assert empty.run("doctor", "-n").code == 2
    done = empty.ok("doctor", "--forget-host", "-y", "-q")
    assert (done.out, done.err) == ("", "") or "to remove" in done.out
