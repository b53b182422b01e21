"""`backup --scrub` on real file systems, in images that are in use: what its user fears is that something else is gone.

That the image itself loses a file; that what was to stay is not in the backup, or differs; that the file system in the
backup is broken; that caches are saved in silence where leaving them out failed; that such increments are large.
LAMELLA_SCRUB_ROUNDS says how many increments there are of each kind (1; by hand 20), LAMELLA_SCRUB_SPOILT how many
spoilt file systems are tried (4; by hand 200).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cli.program import Lamella
from tests.cli.test_files import KERNEL, MAKERS, MIB, kernel_cache, run, state
from tests.features import require
from tests.fuzz import hostile_disks
from tests.system import loop_fs

pytestmark = pytest.mark.slow
__all__ = ["kernel_cache", "state"]  # fixtures
ROUNDS = int(os.environ.get("LAMELLA_SCRUB_ROUNDS", "1"))
SPOILT = int(os.environ.get("LAMELLA_SCRUB_SPOILT", "4"))
SPOILT_FROM = int(os.environ.get("LAMELLA_SCRUB_SEED", "1"))
CHURN = 30 * MIB
MOST_STORED = 3 * MIB // 2
SIZES = {"ext4": 160 * MIB, "xfs": 330 * MIB, "btrfs": 256 * MIB}
CHECKS = {
    "ext4": ["e2fsck", "-f", "-n"],
    "xfs": ["xfs_repair", "-n", "-f"],
    "btrfs": ["btrfs", "check", "--readonly"],
}
SCRUB: list[str | Path] = ["--scrub", "@caches", "--scrub", "*.iso", "--kernel", KERNEL]


@dataclass
class Guest:
    """A file system in an image, mounted as a running machine has it."""

    image: Path
    top: Path
    documents: dict[str, bytes] = field(default_factory=dict)

    def live(self, number: int) -> None:
        """A day of use: new caches, a download, some edits, and one document more."""
        home = self.top / "home" / "user"
        cache = home / ".cache"
        shutil.rmtree(cache, ignore_errors=True)
        home.mkdir(parents=True, exist_ok=True)
        cache.mkdir(mode=0o700)
        (cache / "deep").mkdir()
        os.chown(cache, 1000, 1000)
        for part in range(30):
            (cache / "deep" / f"{part}").write_bytes(os.urandom(CHURN // 31))
        (cache / "gone").symlink_to("/etc/passwd")
        (home / f"some {number}.iso").write_bytes(os.urandom(CHURN // 31))
        for name in ("letter", f"letter {number}", "é \n x"):
            self.documents[name] = os.urandom(5000)
            (home / name).write_bytes(self.documents[name])
        os.sync()


@contextmanager
def used(folder: Path, kind: str) -> Iterator[Guest]:
    """An image in `folder` with a file system of this kind that is mounted."""
    image, top = folder / "vm.img", folder / "top"
    with image.open("wb") as file:
        file.truncate(SIZES[kind])
    run(*MAKERS[kind], image)
    top.mkdir()
    run("mount", "-o", "loop", image, top)
    try:
        yield Guest(image, top)
    finally:
        run("umount", top)


def looked_at(restored: Path, kind: str, place: Path, guest: Guest) -> None:
    """The restored file system is clean, and everything is in it but what was left out."""
    checked = subprocess.run([*CHECKS[kind], restored], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    place.mkdir()
    # No journal is replayed, and a file system of the same id is mounted already.
    run("mount", "-o", "loop,ro" + {"ext4": ",noload", "xfs": ",norecovery,nouuid"}.get(kind, ""), restored, place)
    try:
        home = place / "home" / "user"
        assert {one.name for one in home.iterdir()} == {".cache", *guest.documents}
        for name, content in guest.documents.items():
            assert (home / name).read_bytes() == content
        assert not list((home / ".cache").iterdir())
        found = (home / ".cache").stat()
        assert (found.st_mode & 0o777, found.st_uid) == (0o700, 1000), "the directory itself stays as it is"
    finally:
        run("umount", place)


def test_increments_without_caches_of_a_btrfs(empty: Lamella, tmp_path: Path) -> None:
    """A copy of a mounted Btrfs cannot be mounted beside it: all moments are looked at when it is unmounted."""
    require("files-guest", bool(shutil.which("qemu-system-x86_64")), "needs qemu")
    days: list[Guest] = []
    with loop_fs.make("xfs", size=1 << 30) as folder, used(folder, "btrfs") as guest:
        for number in range(1 + ROUNDS):
            guest.live(number)
            days.append(Guest(guest.image, guest.top, dict(guest.documents)))
            done = empty.json("backup", f"vm={guest.image}", *SCRUB)
            assert done["result"] == "complete" and not done["warnings"], done["warnings"]
            restored = tmp_path / f"restored {number}.img"
            empty.ok("restore", "vm", "--to", restored)
            (kept,) = (folder / ".lamella").iterdir()
            assert kept.read_bytes() == restored.read_bytes(), "what the next run compares with is what was saved"
            if number:
                assert done["volumes"][0]["mode"] == "incremental"
                assert done["stored_bytes"] <= MOST_STORED, f"{done['stored_bytes']} for {CHURN} of caches"
                print(f"increment {number}: {done['stored_bytes']} bytes stored")
    for number, day in enumerate(days):
        looked_at(tmp_path / f"restored {number}.img", "btrfs", tmp_path / f"seen {number}", day)


@pytest.mark.parametrize(("kind", "host"), [("ext4", "btrfs"), ("xfs", "xfs")])
def test_increments_without_caches(empty: Lamella, tmp_path: Path, kind: str, host: str) -> None:
    require("files-guest", bool(shutil.which("qemu-system-x86_64")), "needs qemu")
    with loop_fs.make(host, size=1 << 30) as folder, used(folder, kind) as guest:
        for number in range(1 + ROUNDS):
            guest.live(number)
            done = empty.json("backup", f"vm={guest.image}", *SCRUB)
            assert done["result"] == "complete" and not done["warnings"], done["warnings"]
            (row,) = done["volumes"]
            restored = tmp_path / f"restored {number}.img"
            empty.ok("restore", "vm", "--to", restored)
            (kept,) = (folder / ".lamella").iterdir()
            assert kept.read_bytes() == restored.read_bytes(), "what the next run compares with is what was saved"
            looked_at(restored, kind, tmp_path / f"seen {number}", guest)
            restored.unlink()
            assert len(list((guest.top / "home/user/.cache/deep").iterdir())) == 30, "the image keeps everything"
            if number:
                assert row["mode"] == "incremental"
                print(f"increment {number}: {done['stored_bytes']} bytes stored")
                assert done["stored_bytes"] <= MOST_STORED, f"{kind}: {done['stored_bytes']} for {CHURN} of caches"
        told = empty.json("info", "vm")["scrubbed"]
        assert told["names"] >= 2 and told["freed"] >= CHURN * 9 // 10 and told["file_system"] == kind
        assert "/home/*/.cache" in told["patterns"] and "*.iso" in told["patterns"]
        if kind == "xfs":
            return
        # Once without: everything is there again, and the next one leaves it out again.
        everything = empty.json("backup", f"vm={guest.image}")
        assert everything["stored_bytes"] > CHURN and empty.json("info", "vm")["scrubbed"] is None
        again = empty.json("backup", f"vm={guest.image}", *SCRUB)
        assert again["stored_bytes"] <= MOST_STORED and empty.json("info", "vm")["scrubbed"] is not None
        assert empty.run("verify", "--level", "full").code == 0


def test_what_cannot_be_left_out_is_saved_and_told(empty: Lamella, tmp_path: Path) -> None:
    """No file system; a spoilt one that the guest's kernel refuses or dies of; a disk that cannot be cloned."""
    with loop_fs.make("xfs") as folder:
        images = {"noise": os.urandom(2 * MIB), "spoilt": _spoilt(tmp_path)}
        for name, content in images.items():
            (folder / f"{name}.img").write_bytes(content)
        done = empty.json("backup", *(folder / f"{name}.img" for name in images), *SCRUB)
        assert done["result"] == "complete", done
        for name in images:
            assert any(name in text and "everything is saved" in text for text in done["warnings"]), done["warnings"]
        for name, content in images.items():
            assert empty.json("info", name)["scrubbed"] is None
            empty.ok("restore", name, "--to", tmp_path / f"{name}.back")
            assert (tmp_path / f"{name}.back").read_bytes() == content
    plain = tmp_path / "plain.img"
    plain.write_bytes(images["noise"])
    done = empty.json("backup", plain, *SCRUB)
    assert any("makes no clone here that could be changed" in text for text in done["warnings"]), done["warnings"]


@pytest.mark.timeout(0 if SPOILT > 4 else 600)
def test_no_spoilt_file_system_costs_the_backup(empty: Lamella, tmp_path: Path) -> None:
    """Cut, changed and mixed up as a fuzzer does it: the run goes on, and what is not left out is there to the byte."""
    require("files-guest", bool(shutil.which("qemu-system-x86_64")), "needs qemu")
    good = hostile_disks.bases(tmp_path)
    outcomes: list[str] = []
    for first in range(SPOILT_FROM, SPOILT_FROM + SPOILT, 8):
        with loop_fs.make("xfs", size=2 << 30) as folder:
            cases = {seed: folder / f"disk-{seed}.img" for seed in range(first, min(first + 8, SPOILT_FROM + SPOILT))}
            told = {seed: str(hostile_disks.make(good, seed, image)) for seed, image in cases.items()}
            before = {seed: image.read_bytes() for seed, image in cases.items()}
            patterns = ("--scrub", "file-01*", "--scrub", "FILE-01*", "--scrub", "/a/b/c")
            done = empty.run("--json", "backup", *cases.values(), *patterns, "--kernel", KERNEL)
            assert done.code == 0 and "Traceback" not in done.err, (told, done)
            for seed, image in cases.items():
                assert image.read_bytes() == before[seed], f"{told[seed]}: the image itself changed"
                empty.ok("restore", image.stem, "--to", tmp_path / "back", "--overwrite")
                left_out = empty.json("info", image.stem)["scrubbed"]
                back = (tmp_path / "back").read_bytes()
                assert len(back) == len(before[seed]), told[seed]
                if left_out is None:
                    assert back == before[seed], f"{told[seed]}: nothing was left out, and something differs"
                outcomes.append(f"{told[seed]}: {'as it is' if left_out is None else left_out['names']}")
    print("\n".join(outcomes))
    assert any(not one.endswith("as it is") for one in outcomes), outcomes
    assert any(one.endswith("as it is") for one in outcomes), outcomes


def _spoilt(folder: Path) -> bytes:
    """An ext4 whose superblock is right, and whose root directory is noise."""
    image = folder / "spoilt"
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    run("mkfs.ext4", "-q", "-F", "-O", "^metadata_csum", image)
    content = bytearray(image.read_bytes())
    content[8192 : 4 * MIB] = os.urandom(4 * MIB - 8192)
    return bytes(content)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scrub", "@cache"], "no such set of patterns: @cache"),
        (["--scrub", "/"], "not a pattern of files in a volume: /"),
        (["--scrub", "../etc"], "not a pattern of files in a volume"),
        (["--scrub", ".cache", "--kernel", "/nowhere"], "/nowhere"),
    ],
)
def test_a_wrong_pattern_is_said_before_anything_is_frozen(
    empty: Lamella, tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "vm.img").write_bytes(b"x" * 4096)
    done = empty.run("backup", tmp_path / "vm.img", *words)
    assert done.code in (1, 2) and said in done.err and len(done.err.splitlines()) <= 2
    assert empty.json("list")["volumes"] == []
