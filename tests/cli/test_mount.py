"""`lamella mount`: what is feared of a file system that somebody else serves, seen through the kernel."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cli.program import ROOT, Lamella, Terminal
from tests.features import require

MIB = 1 << 20
CHUNK = 1 << 17
NOBODY = 65534


@pytest.fixture(autouse=True)
def fuse() -> None:
    there = find_spec("mfusepy") is not None and shutil.which("fusermount3") and os.access("/dev/fuse", os.R_OK)
    require("fuse", bool(there), "needs mfusepy, fusermount3 and /dev/fuse")


@pytest.fixture
def place_of_mount(tmp_path: Path) -> Iterator[Path]:
    """An empty directory, with nothing mounted on it afterwards."""
    path = tmp_path / "mounted"
    path.mkdir()
    yield path
    subprocess.run(["umount", "-l", path], capture_output=True, check=False)


Mount = Callable[..., int]


@pytest.fixture
def mount(saved: Lamella, place_of_mount: Path) -> Iterator[Mount]:
    """Mounts in the background; returns the process's number."""
    found: list[int] = []

    def mounted() -> int:
        pid = saved.json("mount", place_of_mount)["pid"]
        assert isinstance(pid, int)
        found.append(pid)
        return pid

    yield mounted
    for pid in found:
        if runs(pid):
            os.kill(pid, signal.SIGKILL)


def runs(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_mounted(path: Path) -> bool:
    return f" {path} fuse.lamella " in Path("/proc/mounts").read_text()


def test_every_snapshot_is_there_with_its_bytes_size_time_tags_and_documents(
    saved: Lamella, image: Path, place_of_mount: Path, mount: Mount, tmp_path: Path
) -> None:
    first = image.read_bytes()
    note = tmp_path / "note"
    note.write_text("of the second")
    with image.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"new" * 1000)
        file.truncate(9 * MIB + 4097)
    second = image.read_bytes()
    saved.ok("backup", image, "--document", f"note={note}", "--document", f"disk.img={note}")
    rows = saved.json("list")["snapshots"]
    saved.ok("tag", f"disk@{rows[0]['snapshot']}", "old days")
    mount()
    volume = place_of_mount / "disk"
    names = [row["snapshot"] for row in rows]
    assert names_in(place_of_mount) == ["disk"]
    assert names_in(volume) == sorted([*names, "latest", "^old days"])
    assert (volume / "latest").readlink() == Path(names[1])
    assert (volume / "^old days").readlink() == Path(names[0])
    assert (volume / "^old days" / "disk.img").read_bytes() == first
    assert (volume / "latest" / "disk.img").read_bytes() == second
    assert names_in(volume / names[1]) == ["disk.img", "disk.img.document", "note"]
    assert (volume / "latest" / "note").read_text() == (volume / "latest" / "disk.img.document").read_text()
    for row, content in zip(rows, (first, second), strict=True):
        status = (volume / row["snapshot"] / "disk.img").stat()
        assert status.st_size == len(content) <= status.st_blocks * 512
        assert datetime.fromtimestamp(status.st_mtime, UTC).replace(microsecond=0) == datetime.fromisoformat(
            row["time"]
        ).replace(microsecond=0)
    with (volume / "latest" / "disk.img").open("rb") as file:  # odd ranges, across chunks and the end
        for offset, length in ((1, 1), (CHUNK - 1, 2), (MIB - 3, 5 * MIB), (len(second) - 10, 100), (len(second), 9)):
            file.seek(offset)
            assert file.read(length) == second[offset : offset + length]


def test_a_loop_device_works_over_it(image: Path, place_of_mount: Path, mount: Mount) -> None:
    require("loop", shutil.which("losetup") is not None and os.geteuid() == 0, "needs root and losetup")
    mount()
    path = place_of_mount / "disk" / "latest" / "disk.img"
    made = subprocess.run(["losetup", "-r", "-f", "--show", path], capture_output=True, text=True, check=False)
    require("loop", made.returncode == 0, made.stderr)
    device = Path(made.stdout.strip())
    try:
        assert device.read_bytes() == image.read_bytes()
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def test_nothing_can_be_written_and_nobody_else_sees_it(saved: Lamella, place_of_mount: Path, mount: Mount) -> None:
    mount()
    folder = place_of_mount / "disk" / "latest"
    for attempt in (
        lambda: (folder / "disk.img").open("r+b"),
        lambda: (folder / "disk.img").unlink(),
        lambda: (folder / "new").write_text("x"),
        lambda: (place_of_mount / "new").mkdir(),
    ):
        with pytest.raises(OSError) as raised:
            attempt()
        assert raised.value.errno in (errno.EROFS, errno.EPERM, errno.EACCES)
    if os.geteuid() == 0:
        for path in (*place_of_mount.parents, place_of_mount):
            if path.stat().st_uid == 0 and path.is_relative_to("/tmp") and path != place_of_mount:
                path.chmod(path.stat().st_mode | 0o011)
        seen = subprocess.run(["ls", place_of_mount], user=NOBODY, capture_output=True, text=True, check=False)
        assert seen.returncode != 0 and seen.stdout == "" and "ermission denied" in seen.stderr


@pytest.mark.parametrize("how", ["fusermount3", "SIGTERM", "SIGINT", "SIGHUP"])
def test_it_ends_as_it_is_asked_to(place_of_mount: Path, mount: Mount, how: str) -> None:
    pid = mount()
    assert is_mounted(place_of_mount)
    assert os.getsid(pid) == pid
    if how == "fusermount3":
        held = (place_of_mount / "disk" / "latest" / "disk.img").open("rb")
        busy = subprocess.run(["fusermount3", "-u", place_of_mount], capture_output=True, check=False)
        assert busy.returncode != 0 and runs(pid) and held.read(10)  # never taken from under a reader
        held.close()
        subprocess.run(["fusermount3", "-u", place_of_mount], check=True)
    else:
        os.kill(pid, getattr(signal, how))
    wait_for(lambda: not runs(pid) and not is_mounted(place_of_mount))
    assert names_in(place_of_mount) == []


def test_in_the_foreground_it_stays_and_ctrl_c_ends_it_well(saved: Lamella, place_of_mount: Path) -> None:
    command = [*saved.command, *saved.options, "mount", "--foreground", str(place_of_mount)]
    env = {**os.environ, **saved.env, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None and program.stderr is not None
        assert f"mounted at {place_of_mount}" in program.stdout.readline()
        assert (place_of_mount / "disk" / "latest" / "disk.img").stat().st_size == 8 * MIB
        program.send_signal(signal.SIGINT)
        assert program.wait(30) == 0
        assert program.stderr.read() == ""
    assert not is_mounted(place_of_mount)


def test_a_killed_server_leaves_no_reader_hanging(saved: Lamella, place_of_mount: Path, mount: Mount) -> None:
    pid = mount()
    descriptor = os.open(place_of_mount / "disk" / "latest" / "disk.img", os.O_RDONLY)
    assert os.pread(descriptor, 1, 0)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not runs(pid))
    with pytest.raises(OSError) as raised:
        os.pread(descriptor, 4096, 6 * MIB)
    assert raised.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    with suppress(OSError):
        os.close(descriptor)
    done = saved.run("mount", place_of_mount)
    assert done.code == 2 and len(done.err.splitlines()) == 1 and f"fusermount3 -u {place_of_mount}" in done.err
    subprocess.run(["fusermount3", "-u", place_of_mount], check=True)
    mount()
    assert (place_of_mount / "disk" / "latest").exists()


def test_a_damaged_chunk_is_eio_for_its_range_alone_and_named_in_the_log(
    image: Path, place: Path, place_of_mount: Path, mount: Mount, saved: Lamella
) -> None:
    pack = max((path for path in (place / "p").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    with pack.open("r+b") as file:
        file.seek(100_000)  # inside a chunk; there is padding, too
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    content = image.read_bytes()
    log = Path(saved.json("mount", place_of_mount)["log"])
    bad = []
    with (place_of_mount / "disk" / "latest" / "disk.img").open("rb", buffering=0) as volume:
        for offset in range(0, len(content), 4096):
            try:
                assert os.pread(volume.fileno(), 4096, offset) == content[offset : offset + 4096]
            except OSError as error:
                assert error.errno == errno.EIO
                bad.append(offset)
        with pytest.raises(OSError):
            os.pread(volume.fileno(), CHUNK, bad[0])  # the same a second time
    first = bad[0] // CHUNK * CHUNK
    assert bad == list(range(first, first + CHUNK, 4096))
    said = log.read_text().splitlines()
    assert len(said) == 1 and "disk.img: chunk " in said[0] and pack.name in said[0]
    subprocess.run(["fusermount3", "-u", place_of_mount], check=True)


def test_a_repository_that_vanishes_is_waited_for(image: Path, place: Path, place_of_mount: Path, mount: Mount) -> None:
    mount()
    away = place.with_name("away")
    got: list[bytes] = []
    with (place_of_mount / "disk" / "latest" / "disk.img").open("rb") as file:
        assert os.pread(file.fileno(), 10, 6 * MIB) == bytes(10)  # the tree is known now
        (place / "p").rename(place / "q")  # what is open in a directory goes with it when that is moved
        place.rename(away)
        reader = threading.Thread(target=lambda: got.append(os.pread(file.fileno(), 4096, 4096)))
        reader.start()
        reader.join(1.5)
        assert reader.is_alive() and not got
        assert names_in(place_of_mount) == ["disk"]  # others are served meanwhile
        (away / "q").rename(away / "p")
        away.rename(place)
        reader.join(30)
    assert got == [image.read_bytes()[4096:8192]]


@pytest.mark.parametrize("what", ["missing", "file", "full", "mounted"])
def test_a_wrong_place_is_one_line(
    saved: Lamella, tmp_path: Path, mount: Mount, place_of_mount: Path, what: str
) -> None:
    path = tmp_path / what
    if what == "file":
        path.touch()
    elif what == "full":
        (path / "something").mkdir(parents=True)
    elif what == "mounted":
        mount()
        path = place_of_mount
    done = saved.run("mount", path)
    assert done.code == 2 and done.out == "" and len(done.err.splitlines()) == 1 and str(path) in done.err


def test_a_wrong_key_is_told_by_the_command_that_was_typed(
    saved: Lamella, place_of_mount: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_bytes(os.urandom(32))
    other.chmod(0o600)
    done = Lamella(saved.env, ["--keyfile", str(other)]).run("mount", place_of_mount)
    assert done.code == 12 and len(done.err.splitlines()) == 1
    assert not is_mounted(place_of_mount)


def test_the_passphrase_is_asked_for_and_the_terminal_let_go(place: Path, image: Path, place_of_mount: Path) -> None:
    env = {"LAMELLA_REPO": str(place)}
    one = Lamella({**env, "LAMELLA_PASSPHRASE": "some words"})
    one.ok("init", "-q")
    one.ok("backup", image)
    with Terminal(["mount", place_of_mount], env) as terminal:
        terminal.expect("assphrase")
        terminal.type("some words")
        terminal.expect("mounted at")
        assert terminal.end() == 0
        assert (place_of_mount / "disk" / "latest" / "disk.img").read_bytes() == image.read_bytes()
    assert is_mounted(place_of_mount)  # the terminal is closed now
    subprocess.run(["fusermount3", "-u", place_of_mount], check=True)


@pytest.mark.parametrize(("fault", "word"), [("ImportError('x')", "lamella[fuse]"), ("OSError('x')", "fuse3")])
def test_what_is_missing_is_named(saved: Lamella, place_of_mount: Path, tmp_path: Path, fault: str, word: str) -> None:
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "mfusepy.py").write_text(f"raise {fault}\n")
    done = saved.run("mount", place_of_mount, env={"PYTHONPATH": f"{tmp_path / 'before'}:{ROOT / 'src'}"})
    assert done.code == 1 and len(done.err.splitlines()) == 1 and word in done.err
