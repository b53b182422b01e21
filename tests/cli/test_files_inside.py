"""`lamella files` where the file system lies in something else, or is none that the guest reads by itself.

The disks of a server and a laptop come from tests/cli/encrypted_disks.py: this host may have no device-mapper.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

from lamella.base.errors import KeyRefused, LamellaError, UsageError
from lamella.cli.commands.files.asking import Key
from lamella.operations.access import guest_supply
from lamella.operations.access.guest_kernel import GuestKernel
from tests.cli.encrypted_disks import KEY, partition_table, unpacked
from tests.cli.program import Lamella, Terminal
from tests.cli.test_files import KERNEL, MIB, guests_below, kernel_cache, mounted, run, state
from tests.fat import LATER, OLD, fat16
from tests.features import require

pytestmark = pytest.mark.slow
__all__ = ["kernel_cache", "state"]  # fixtures
GUEST = ["--kernel", str(KERNEL)]


def program(name: str) -> None:
    require("files-guest", shutil.which(name) is not None, f"needs {name}")


def test_logical_volumes_of_a_server(empty: Lamella, tmp_path: Path) -> None:
    program("lvm")
    empty.ok("backup", unpacked("server", tmp_path))
    several = empty.run("files", "list", "server", *GUEST)
    assert several.code == 2
    for part in (
        "1 (0.0 GiB, ext4)",
        "srv/data (0.0 GiB, ext4)",
        "srv/root (0.0 GiB, ext4)",
        "srv/swap (0.0 GiB, swap)",
    ):
        assert part in several.err
    out = tmp_path / "out"
    done = empty.json("files", "get", "server", "home", "--partition", "srv/root", "--to", out, *GUEST)
    assert (done["partition"], done["journal"]) == ("srv/root", "replayed")
    assert (out / "home/letter").read_text() == "server\n" and (out / "home/synced").read_text() == "fsynced\n"
    thin = empty.json("files", "list", "server", "home/letter", "--partition", "srv/data", *GUEST)
    assert [row["size"] for row in thin["entries"]] == [len("thin\n")]


def test_a_laptops_key_is_typed_and_goes_nowhere_but_into_the_guest(empty: Lamella, tmp_path: Path) -> None:
    """Logical volumes inside of LUKS; the slot's memory needs a larger guest; the first passphrase is wrong."""
    program("cryptsetup")
    empty.ok("backup", unpacked("laptop", tmp_path))
    places = tmp_path / "places"
    places.mkdir()
    env = {**empty.env, "TMPDIR": str(places)}
    words = ["-q", "files", "list", "laptop", "home", "--partition", "lap/home", *GUEST]
    with Terminal([*empty.options, *words], env, empty.command) as terminal:
        for typed in ("wrong", KEY):
            terminal.expect("Passphrase of the encrypted partition 2: ")
            terminal.type(typed)
        seen = look_for_the_key(terminal._process.pid, places)
        assert terminal.end() == 0
    assert seen, "no guest was looked at"
    assert "home/synced" in terminal.seen and "That is not its passphrase" in terminal.seen
    assert KEY not in terminal.seen


def look_for_the_key(pid: int, places: Path) -> int:
    """Look at what others can see of the guests while they run; how many guests were looked at."""
    looked: set[int] = set()
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        for guest in guests_below(pid):
            looked.add(guest)
            assert KEY.encode() not in Path(f"/proc/{guest}/cmdline").read_bytes()
            assert KEY.encode() not in Path(f"/proc/{guest}/environ").read_bytes()
        for path in places.rglob("*"):
            if path.is_file():
                assert KEY.encode() not in path.read_bytes()
        time.sleep(0.1)
    return len(looked)


def test_a_key_from_a_file(empty: Lamella, tmp_path: Path) -> None:
    program("cryptsetup")
    empty.ok("backup", unpacked("laptop", tmp_path))
    key = tmp_path / "luks-key"
    key.write_text(KEY)
    words = ["-q", "files", "list", "laptop", "home/letter", *GUEST, "--partition", "lap/home"]
    assert "home/letter" in empty.ok(*words, "--luks-key-file", key).out


def test_a_wrong_key_file_and_no_key_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = tmp_path / "luks-key"
    key.write_text(KEY + "\n")
    assert Key(key)("2", 0) == f"{KEY}\n".encode()
    with pytest.raises(KeyRefused, match="does not open partition 2") as refused:
        Key(key)("2", 1)
    assert refused.value.exit_code == 12 and "line end" in (refused.value.hint or "")
    monkeypatch.setattr("lamella.cli.terminal.has_terminal", lambda: False)
    with pytest.raises(UsageError, match="partition 2 is encrypted") as absent:
        Key(None)("2", 0)
    assert "--luks-key-file" in (absent.value.hint or "")


@pytest.mark.parametrize("content", [None, b"", b"x" * ((8 << 20) + 1)])
def test_what_is_no_key_file(tmp_path: Path, content: bytes | None) -> None:
    place = tmp_path / "luks-key"
    if content is not None:
        place.write_bytes(content)
    with pytest.raises(UsageError, match="key"):
        Key(place)("2", 0)


def test_ntfs_says_that_its_journal_was_reset(empty: Lamella, tmp_path: Path) -> None:
    for name in ("mkntfs", "ntfscp", "ntfs-3g"):
        program(name)
    image, letter = tmp_path / "windows.img", tmp_path / "letter"
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    run("mkntfs", "-F", "-Q", "-q", "-p", "0", "-H", "0", "-S", "0", image)
    letter.write_text("dear")
    run("ntfscp", "-q", image, letter, "Briefkästen.txt")
    empty.ok("backup", image)
    done = empty.ok("files", "list", "windows", *GUEST)
    assert "Briefkästen.txt" in done.out
    assert "NTFS on the whole disk; the journal was reset, not replayed" in done.err


def test_exfat(empty: Lamella, tmp_path: Path) -> None:
    empty.ok("backup", unpacked("exfat", tmp_path))
    found = empty.json("files", "find", "exfat", "synced", *GUEST)
    assert [row["path"] for row in found["entries"]] == ["home/synced"] and found["journal"] == "none"


def test_a_file_system_newer_than_the_kernel_is_refused_with_the_kernels_words(empty: Lamella, tmp_path: Path) -> None:
    image = tmp_path / "newer.img"
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    run("mkfs.ext4", "-q", "-F", "-O", "^metadata_csum", image)
    with image.open("r+b") as file:
        file.seek(1024 + 96)  # s_feature_incompat
        known = struct.unpack("<I", file.read(4))[0]
        file.seek(1024 + 96)
        file.write(struct.pack("<I", known | 1 << 30))
    empty.ok("backup", image)
    done = empty.run("-q", "files", "list", "newer", *GUEST)
    assert done.code == 1 and len(done.err.splitlines()) == 1
    assert "this ext4 has features that the guest's kernel does not know" in done.err
    assert "unsupported optional features (40000000)" in done.err and "--kernel" in done.err


def test_what_is_not_read_is_named(empty: Lamella, tmp_path: Path) -> None:
    image = tmp_path / "odd.img"
    parts = [(4096, b"\xfc\x4e\x2b\xa9"), (3, b"-FVE-FS-"), (4086, b"SWAPSPACE2")]
    with image.open("wb") as file:
        file.truncate(8 * MIB)
        file.seek(446)
        file.write(partition_table(*((0x83, 1 + number, 1) for number in range(len(parts)))))
        for number, (offset, magic) in enumerate(parts):
            file.seek((1 + number) * MIB + offset)
            file.write(magic)
    empty.ok("backup", image)
    done = empty.run("-q", "files", "list", "odd", *GUEST)
    assert done.code == 4
    for part in ("1 (0.0 GiB, Linux RAID)", "2 (0.0 GiB, BitLocker)", "3 (0.0 GiB, swap)"):
        assert part in done.err


def test_a_program_that_is_not_here_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(guest_supply, "_PATH", str(tmp_path))
    kernel = GuestKernel(tmp_path / "none", None)
    for name, package in (("LVM", "lvm2"), ("LUKS", "cryptsetup-bin"), ("ntfs", "ntfs-3g")):
        with pytest.raises(LamellaError, match="not installed") as raised:
            guest_supply.supplied(kernel, name)
        assert package in (raised.value.hint or "")
    with pytest.raises(LamellaError, match="unknown component"):
        guest_supply.supplied(kernel, "../etc")


# -- differences ------------------------------------------------------------------------------------------------------


def changed_between(empty: Lamella, tmp_path: Path, kind: str, words: list[str]) -> list[str]:
    """Two snapshots of a file system, with every kind of change between them."""
    require(kind if kind == "btrfs" else words[0], shutil.which(words[0]) is not None, f"needs {words[0]}")
    image, place = tmp_path / "disk.img", tmp_path / "place"
    with image.open("wb") as file:
        file.truncate(128 * MIB if kind == "btrfs" else 16 * MIB)
    run(*words, image)
    try:
        device = run("losetup", "-f", "--show", image).strip()
        with mounted(Path(device), place, kind) as top:
            fill(top)
        run("losetup", "-d", device)
        before = saved_as(empty, image)
        device = run("losetup", "-f", "--show", image).strip()
        with mounted(Path(device), place, kind) as top:
            change(top)
        run("losetup", "-d", device)
    except subprocess.CalledProcessError as error:
        require("mount", False, f"{kind} cannot be mounted here: {error.stderr}")
        raise
    return [before, saved_as(empty, image)]


def saved_as(empty: Lamella, image: Path) -> str:
    return f"disk@{empty.json('backup', image)['snapshot']}"


def fill(top: Path) -> None:
    (top / "d" / "deep").mkdir(parents=True)
    for name in ("same", "gone", "longer", "secret", "touched", "mode", "kind"):
        (top / "d" / name).write_text(f"{name} of old")
        os.utime(top / "d" / name, (1_000_000_000, 1_000_000_000))
    (top / "d" / "odd\nname").write_text("1")
    (top / "d" / "link").symlink_to("one")


def change(top: Path) -> None:
    folder = top / "d"
    (folder / "gone").unlink()
    (folder / "deep" / "new").write_text("new")
    (folder / "longer").write_text("longer than before")
    (folder / "secret").write_text("secret of NEW")
    os.utime(folder / "secret", (1_000_000_000, 1_000_000_000))
    os.utime(folder / "touched", (1_100_000_000, 1_100_000_000))
    (folder / "kind").unlink()
    (folder / "kind").mkdir()
    (folder / "mode").chmod(0o600)
    os.chown(folder / "mode", 1, 2)
    (folder / "odd\nname").write_text("2")
    (folder / "link").unlink()
    (folder / "link").symlink_to("two")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("ext4", ["mkfs.ext4", "-q", "-F"]),
        # Both snapshots carry one identity, by which a kernel would take them for one file system.
        ("btrfs", ["mkfs.btrfs", "-q", "-f", "-m", "single"]),
    ],
)
def test_the_differences_of_two_snapshots(empty: Lamella, tmp_path: Path, kind: str, words: list[str]) -> None:
    pair = changed_between(empty, tmp_path, kind, words)
    done = empty.json("files", "diff", *pair, "d", *GUEST)
    assert [row["path"] for row in done["removed"]] == ["d/gone"]
    assert [row["path"] for row in done["added"]] == ["d/deep/new"]
    what = {row["path"]: row["what"] for row in done["changed"]}
    assert what.pop("d/kind") == ["type"]
    assert what.pop("d/longer") == ["size", "time"]
    assert what.pop("d/secret") == ["content"]
    assert what.pop("d/touched") == ["time"]
    assert what.pop("d/mode") == ["mode", "owner"]
    assert what.pop("d/odd\nname") == ["content", "time"]
    assert what.pop("d/link") == ["target", "time"]
    assert not what
    assert (done["a"]["file_system"], done["b"]["file_system"]) == (kind, kind)
    if kind == "ext4":
        same = empty.run("files", "diff", pair[1], pair[1], "nothing", *GUEST)
        assert same.code == 4 and "there is no nothing" in same.err


def test_fat_tells_nothing_of_a_change_but_its_content(empty: Lamella, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    same = {"d/same": (b"same", OLD), "d/longer": (b"old", OLD), "d/gone": (b"1", OLD)}
    image.write_bytes(fat16({**same, "d/secret": (b"old", OLD)}))
    before = saved_as(empty, image)
    image.write_bytes(fat16({"d/same": (b"same", OLD), "d/longer": (b"longer", LATER), "d/secret": (b"NEW", OLD)}))
    done = empty.run("files", "diff", before, saved_as(empty, image), "--seconds", "250", *GUEST)
    assert done.code == 0 and done.out.splitlines() == [
        "removed  D/GONE",
        "changed  D/LONGER  (size, time)",
        "changed  D/SECRET  (content)",
        "0 added, 1 removed, 2 changed",
    ]
    assert "A: FAT on the whole disk" in done.err and "B: FAT on the whole disk" in done.err


def test_a_file_that_cannot_be_read_costs_no_other_its_content(empty: Lamella, tmp_path: Path) -> None:
    image, source = tmp_path / "disk.img", tmp_path / "source"
    source.mkdir()
    (source / "good").write_bytes(b"good" * 1000)
    (source / "bad").write_bytes(b"bad!" * 100_000)
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    run("mkfs.ext4", "-q", "-F", "-O", "^metadata_csum,^extent,^64bit", "-d", source, image)
    with image.open("r+b") as file:  # the block that names the file's further blocks names some beyond the disk
        indirect = int(run("debugfs", "-R", "stat /bad", image).partition("(IND):")[2].split(",")[0])
        file.seek(indirect * 1024 + 4)
        file.write(struct.pack("<50I", *[0x7FFFFFF0] * 50))
    empty.ok("backup", image)
    out = tmp_path / "out"
    done = empty.json("files", "get", "disk", "good", "bad", "lost+found", *GUEST, "--to", out, code=3)
    assert (out / "good").read_bytes() == b"good" * 1000 and not (out / "bad").exists()
    assert any(line.startswith("bad: ") and "cannot be read" in line for line in done["left_out"])
    archive = empty.run("-q", "files", "get", "disk", "bad", *GUEST, "--to", "-")
    assert archive.code == 1 and "bad" in archive.err and len(archive.err.splitlines()) == 1
