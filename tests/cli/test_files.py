"""`lamella files`: what an image holds, read by the kernel of a guest. One boot costs seconds, so tests share them."""

from __future__ import annotations

import io
import os
import shutil
import signal
import stat
import struct
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from lamella.operations.access.guest_kernel import find_kernel
from tests.cli.program import Lamella
from tests.features import require

ROOT = Path(__file__).resolve().parents[2]
KERNEL = ROOT / ".guest" / "vmlinuz"
WITHOUT_KVM = "guest-without-kvm"
MIB = 1 << 20
SIZE = 128 * MIB
FIRST, SYNCED = 62, 40
"""Files that were written and synchronised with everything; files that were fsynced alone, just before the moment."""
MAKERS = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f", "-m", "single"],
}


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the uncompressed kernel."""
    there = KERNEL.exists() and (KERNEL.parent / "lib").exists() and shutil.which("qemu-system-x86_64")
    require("files-guest", bool(there and shutil.which("busybox")), "needs qemu, busybox and tools/guest_kernel.py")
    folder = tmp_path_factory.mktemp("cache")
    kept = find_kernel(KERNEL).uncompressed(folder / "guest-kernel")
    assert kept != KERNEL and kept.stat().st_size > KERNEL.stat().st_size
    return folder


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, kernel_cache: Path, tmp_path: Path) -> Path:
    """A state directory that knows that KVM is not to be tried: that costs five seconds where it does not answer."""
    folder = tmp_path / "state-of-guests"
    folder.mkdir(mode=0o700)
    (folder / WITHOUT_KVM).touch()
    monkeypatch.setenv("LAMELLA_STATE_DIR", str(folder))
    monkeypatch.setenv("LAMELLA_CACHE_DIR", str(kernel_cache))
    monkeypatch.setattr("tests.cli.program.SECONDS", 280)
    return folder


def run(*words: str | Path) -> str:
    return subprocess.run([*map(str, words)], check=True, capture_output=True, text=True).stdout


@contextmanager
def mounted(device: Path, place: Path, kind: str) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    run("mount", "-t", kind, device, place)
    try:
        yield place
    finally:
        run("umount", place)


def crash_copy(folder: Path, kind: str, target: Path) -> dict[str, bytes]:
    """A copy of a file system in use, taken as a snapshot would be; what a reader must find in it."""
    require(kind if kind != "ext4" else "mkfs.ext4", bool(shutil.which(MAKERS[kind][0])), f"needs {MAKERS[kind][0]}")
    disk = folder / "live.img"
    with disk.open("wb") as file:
        file.truncate(SIZE if kind != "xfs" else 320 * MIB)
    run(*MAKERS[kind], disk)
    device = Path(run("losetup", "-f", "--show", disk).strip())
    try:
        try:
            with mounted(device, folder / "live", kind) as top:
                content = _fill(top)
                # What has reached the disk below the mounted file system, as a snapshot has it: the device itself
                # would show what is only in memory, too.
                shutil.copyfile(disk, target)
        except subprocess.CalledProcessError as error:
            require("mount", False, f"{kind} cannot be mounted here: {error.stderr}")
            raise
    finally:
        run("losetup", "-d", device)
    return content


def _fill(top: Path) -> dict[str, bytes]:
    chance = Random(1)
    content: dict[str, bytes] = {}
    for number in range(FIRST):
        name = f"first/{number:02}-é \n x" if number == 7 else f"first/{number:02}"
        content[name] = chance.randbytes(chance.choice([0, 1, 4096, 100_000]))
        (top / "first").mkdir(exist_ok=True)
        (top / name).write_bytes(content[name])
    (top / "odd").mkdir()
    (top / "odd" / "inside").symlink_to("../first/00")
    (top / "odd" / "outside").symlink_to("/etc/passwd")
    (top / "odd" / "up").symlink_to("../../../etc/passwd")
    os.mkfifo(top / "odd" / "pipe")
    if os.geteuid() == 0:
        os.mknod(top / "odd" / "device", stat.S_IFBLK | 0o666, os.makedev(8, 0))
    (top / "odd" / "setuid").write_bytes(b"x")
    (top / "odd" / "setuid").chmod(0o4755)
    os.link(top / "first" / "01", top / "odd" / "same")
    os.sync()
    (top / "synced").mkdir()
    for number in range(SYNCED):
        name = f"synced/{number:02}"
        content[name] = chance.randbytes(5000)
        with (top / name).open("wb") as file:
            file.write(content[name])
            file.flush()
            os.fsync(file.fileno())
    return content


@pytest.mark.parametrize("kind", MAKERS)
def test_every_file_that_was_fsynced_is_there(empty: Lamella, tmp_path: Path, kind: str) -> None:
    """The table of the design: without the journal 62 of 102 files are found, with it 102."""
    image = tmp_path / "disk.img"
    content = crash_copy(tmp_path, kind, image)
    before = image.read_bytes() if kind == "ext4" else b""
    empty.ok("backup", image)
    out = tmp_path / "out"
    done = empty.json("files", "get", "disk", "/", "--kernel", KERNEL, "--to", out, code=3)
    found = {str(path.relative_to(out)): path for path in out.rglob("*")}
    assert len(content) == FIRST + SYNCED
    assert {name: found[name].read_bytes() for name in content} == content
    assert done["journal"] == "replayed"
    # What could do harm outside is left out, and told.
    assert (out / "odd" / "inside").readlink() == Path("../first/00")
    assert not {"odd/outside", "odd/up", "odd/pipe", "odd/device"} & set(found)
    assert stat.S_IMODE(found["odd/setuid"].stat().st_mode) == 0o755
    assert found["odd/same"].read_bytes() == content["first/01"]
    told = " ".join(done["left_out"])
    assert all(word in told for word in ("odd/outside", "odd/up", "odd/pipe"))
    if before:
        assert image.read_bytes() == before
        mount = tmp_path / "restored.img"
        empty.ok("restore", "disk", "--to", mount)
        assert mount.read_bytes() == before  # the guest wrote into nothing but its overlay


def partitioned(folder: Path) -> Path:
    """A disk with three partitions: FAT, ext4, and one that holds nothing known."""
    require("mkfs.ext4", shutil.which("mkfs.ext4") is not None, "needs mkfs.ext4")
    image, part = folder / "disk.img", folder / "part.img"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    rows = [(0x0C, 1, 8), (0x83, 9, 32), (0x83, 41, 4)]  # an MBR: kind, start and length in MiB
    table = b"".join(struct.pack("<4xB3xII", kind, start * 2048, length * 2048) for kind, start, length in rows)
    with image.open("r+b") as file:
        file.seek(446)
        file.write(table + bytes(16) + b"\x55\xaa")
    source = folder / "source"
    (source / "home").mkdir(parents=True)
    (source / "home" / "letter.odt").write_text("dear")
    with part.open("wb") as file:
        file.truncate(32 * MIB)
    run("mkfs.ext4", "-q", "-F", "-d", source, part)
    with image.open("r+b") as file:
        file.seek(9 * MIB)
        file.write(part.read_bytes())
    with part.open("wb") as file:
        file.truncate(8 * MIB)
    run("busybox", "mkdosfs", part)
    with image.open("r+b") as file:
        file.seek(MIB)
        file.write(part.read_bytes())
    return image


def test_partitions_listing_finding_and_what_is_not_there(empty: Lamella, tmp_path: Path) -> None:
    empty.ok("backup", partitioned(tmp_path))
    second = ["--partition", "2", "--kernel", str(KERNEL)]
    rows = empty.json("files", "list", "disk", "home", "nothing", *second, code=3)
    assert [row["path"] for row in rows["entries"]] == ["home", "home/letter.odt"]
    assert rows["entries"][1]["size"] == 4 and rows["entries"][1]["mode"].startswith("-rw")
    assert (rows["partition"], rows["file_system"], rows["absent"]) == ("2", "ext4", ["nothing"])
    # People see the time of their place, programs UTC.
    there = empty.ok("files", "list", "disk", "home", *second, env={"TZ": "XYZ-7"})
    when = datetime.fromisoformat(rows["entries"][1]["time"]) + timedelta(hours=7)
    assert f"{when:%Y-%m-%d %H:%M}  home/letter.odt" in there.out
    found = empty.json("files", "find", "disk", "*.odt", *second)
    assert [row["path"] for row in found["entries"]] == ["home/letter.odt"]
    files = ["files", "list", "disk", "--kernel", str(KERNEL)]
    wrong = empty.run(*files, "--partition", "3")
    assert wrong.code == 1 and "unknown" in wrong.err and len(wrong.err.splitlines()) == 2
    for target in ("new", "there"):
        (tmp_path / "there").mkdir(exist_ok=True)
        absent = empty.run("files", "get", "disk", "nothing", *second, "--to", tmp_path / target)
        assert absent.code != 0, absent
    assert not (tmp_path / "new").exists() and (tmp_path / "there").exists(), "an empty directory tells nothing"
    several = empty.run(*files)
    assert several.code == 2 and "1 (0.0 GiB, FAT); 2 (0.0 GiB, ext4); 3" in several.err


def test_a_tar_goes_to_standard_output_with_kvm_or_without(empty: Lamella, tmp_path: Path, state: Path) -> None:
    (state / WITHOUT_KVM).unlink()
    empty.ok("backup", partitioned(tmp_path))
    words = ["files", "get", "disk", "home", "--kernel", str(KERNEL), "--partition", "2", "--to"]
    done = subprocess.run(
        [*empty.command, *empty.options, *words, "-"],
        env={**os.environ, **empty.env, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        check=True,
    )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert archive.getnames() == ["home", "home/letter.odt"]
        letter = archive.extractfile("home/letter.odt")
        assert letter is not None and letter.read() == b"dear"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        assert not (state / WITHOUT_KVM).exists()  # where there is none, nothing has to be remembered
    full = empty.run(*words, tmp_path)
    assert full.code == 2 and "not an empty" in full.err and len(full.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--kernel", "/nothing"], 2, "/nothing"),
        (["--kernel", "/etc/passwd"], 2, "no kernel"),
        (["../../etc", "--kernel", str(KERNEL)], 2, ".."),
        (["--kernel", str(KERNEL), "--seconds", "1"], 1, "in time"),
    ],
)
def test_bad_input_is_one_line(saved: Lamella, arguments: list[str], code: int, word: str) -> None:
    done = saved.run("-q", "files", "list", "disk", *arguments)
    assert done.code == code and word in done.err and len(done.err.splitlines()) == 1


Spoil = Callable[[bytearray, Random], None]


def _truncated(disk: bytearray, chance: Random) -> None:
    disk[len(disk) // 3 :] = bytes(len(disk) - len(disk) // 3)


def _mutated(disk: bytearray, chance: Random) -> None:
    for _ in range(2000):
        disk[chance.randrange(1024, len(disk) // 4)] = chance.randrange(256)


@pytest.mark.parametrize("spoil", [_truncated, _mutated])
def test_a_hostile_file_system_ends_in_one_line_and_harms_nothing(empty: Lamella, tmp_path: Path, spoil: Spoil) -> None:
    image = partitioned(tmp_path)
    disk = bytearray(image.read_bytes())
    part = bytearray(disk[9 * MIB : 41 * MIB])
    spoil(part, Random(7))
    disk[9 * MIB : 41 * MIB] = part
    image.write_bytes(disk)
    empty.ok("backup", image)
    out = tmp_path / "out"
    done = empty.run("files", "get", "disk", "/", "--partition", "2", "--kernel", KERNEL, "--to", out)
    assert done.code in (0, 1, 3)
    assert all(line.startswith("lamella: ") for line in done.err.splitlines())
    for path in out.rglob("*"):
        assert path.resolve().is_relative_to(out.resolve())


def guests_below(pid: int) -> list[int]:
    """The processes of QEMU that this process started."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split() if "qemu" in Path(f"/proc/{word}/cmdline").read_text()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_guest_does_not_outlive_the_command(empty: Lamella, tmp_path: Path, number: signal.Signals) -> None:
    empty.ok("backup", partitioned(tmp_path))
    words = [*empty.command, *empty.options, "files", "find", "disk", "*", "--partition", "2", "--kernel", str(KERNEL)]
    env = {**os.environ, **empty.env, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as command:
        guests: list[int] = []
        while not guests:
            assert command.poll() is None
            time.sleep(0.02)
            guests = guests_below(command.pid)
        command.send_signal(number)
        assert command.wait(30) == (-number if number == signal.SIGKILL else 130)
    deadline = time.monotonic() + 120
    while any(Path(f"/proc/{guest}").exists() for guest in guests):
        assert time.monotonic() < deadline
        time.sleep(0.1)
