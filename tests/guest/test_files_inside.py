"""`lamella files` and `qubes backup --scrub` in dom0: a real kernel mounts the disk that dom0 serves.

The disposable is a process of this guest machine, whose kernel is the one that mounts: NBD from dom0's server through
pipes into /dev/nbd0 is as in a qube; Xen and qrexec's own data path are not there.
"""

from __future__ import annotations

import os
import struct
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from lamella.qubes.paranoid.disposable import NAME
from lamella_kit.fake_qubesd import FakeQubesd
from lamella_kit.source_reading import MIB
from tests.guest.lvm import Pool, run
from tests.guest.qubes_pool import ThinVolumes
from tests.qubes import stories
from tests.qubes.disposables import disposables


def crash_copy(folder: Path) -> tuple[Path, dict[str, bytes]]:
    """A disk with a partition whose ext4 is in use: some files only its journal knows; and what must be found."""
    disk, part, top = folder / "disk.img", folder / "part.img", folder / "top"
    top.mkdir()
    with part.open("wb") as file:
        file.truncate(24 * MIB)
    run("mkfs.ext4", "-q", "-F", part)
    content = {f"dir/{number}": os.urandom(5000) for number in range(12)}
    run("mount", "-o", "loop", part, top)
    try:
        (top / "dir").mkdir()
        os.sync()
        for name, text in content.items():
            with (top / name).open("wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        (top / "out").symlink_to("/etc/passwd")
        with disk.open("wb") as file:
            # One partition from the first MiB on: type Linux, start and length in sectors, the mark of a boot record.
            entry = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", MIB // 512, 24 * MIB // 512)
            file.write(
                (bytes(446) + entry + bytes(48) + b"\x55\xaa").ljust(MIB, b"\0") + part.read_bytes() + bytes(MIB)
            )
    finally:
        run("umount", top)
    return disk, content


def test_a_disposables_kernel_replays_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, content = crash_copy(tmp_path)
    (tmp_path / "pool").mkdir()
    with FakeQubesd(tmp_path / "run", {"varlibqubes": tmp_path / "pool"}, volume_size=MIB) as system:
        system.add("tpl", "TemplateVM")
        system.add("dvm", template="tpl", template_for_dispvms="True")
        dom0 = stories.command(system, tmp_path)
        dom0.ok("backup", f"disk={disk}", "-q")
        with disposables(monkeypatch, system) as bench:
            # One disposable: they share this machine's /dev/nbd0 and /mnt, which each qube has for itself.
            done = dom0.run("--json", "files", "get", "disk", ".", "--to", tmp_path / "target")
            subprocess.run(["umount", "-l", "/mnt"], check=False)  # it was killed, and would be gone
            assert done.code in (0, 3), done
            found = done.json
            assert (found["partition"], found["file_system"], found["journal"]) == ("1", "ext4", "replayed"), found
            assert len(bench.calls) == 2, "the program that attaches the disk, and the one that mounts it"
        assert {name: (tmp_path / "target" / name).read_bytes() for name in content} == content
        assert not (tmp_path / "target" / "out").is_symlink()
        assert not any(name.startswith(NAME) for name in system.qubes)
        assert len([call for call in system.calls if call.startswith("admin.vm.Start ")]) == 1


def day_of_use(top: Path, day: int) -> bytes:
    """Eight MiB of new caches in a file system, and one letter, whose content it returns."""
    cache = top / "home" / "user" / ".cache"
    cache.mkdir(parents=True, exist_ok=True)
    for number in range(8):
        (cache / f"{day}-{number}").write_bytes(os.urandom(MIB))
    letter = os.urandom(5000)
    (cache.parent / f"letter {day}").write_bytes(letter)
    run("sync", "-f", top)
    return letter


def looked_at(image: Path, place: Path) -> dict[str, bytes]:
    """The files of a clean file system in an image, by their paths."""
    assert subprocess.run(["e2fsck", "-f", "-n", image], check=False, capture_output=True).returncode == 0
    run("mount", "-o", "loop,ro,noload", image, place)
    try:
        files = [one for one in (place / "home").rglob("*") if one.is_file()]
        return {str(one.relative_to(place)): one.read_bytes() for one in files}
    finally:
        run("umount", place)


def test_a_disposable_leaves_files_out_of_a_thin_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: Pool
) -> None:
    """A running qube with caches, twice: they are not in the backup, and stay in the volume; the rest is in both."""
    top, seen, layout = tmp_path / "top", tmp_path / "seen", ThinVolumes(pool)
    top.mkdir()
    seen.mkdir()
    letters: dict[str, bytes] = {}
    with FakeQubesd(tmp_path / "run", {"vm-pool": layout}, volume_size=48 * MIB) as system, ExitStack() as mounted:
        system.add("tpl", "TemplateVM")
        system.add("dvm", template="tpl", template_for_dispvms="True")
        vid = system.add("work", template="tpl").volumes["private"].vid
        run("mkfs.ext4", "-q", layout.path(vid))
        system.start("work")
        run("mount", layout.live(vid), top)
        mounted.callback(run, "umount", top)
        dom0 = stories.command(system, tmp_path)
        for day in range(2):
            letters[f"home/user/letter {day}"] = day_of_use(top, day)
            with disposables(monkeypatch, system):
                done = dom0.json("qubes", "backup", "work", "--scrub", "@caches")
                subprocess.run(["umount", "-l", "/mnt"], check=False)  # it was killed, and would be gone
            assert not done["warnings"], done["warnings"]
            (row,) = [row for row in done["volumes"] if row["volume"] == "work:private"]
            assert (row["mode"], row["consistency"]) == (("full", "incremental")[day], "live"), row
            told = dom0.json("info", "work:private")["scrubbed"]
            assert told["file_system"] == "ext4" and told["freed"] >= 8 * MIB * (day + 1), told
            assert not day or done["stored_bytes"] <= MIB, f"{done['stored_bytes']} for a letter, and 8 MiB of caches"
            back = tmp_path / f"back-{day}"
            dom0.ok("restore", "work:private", "--to", back)
            assert looked_at(back, seen) == letters
            assert len(list((top / "home/user/.cache").iterdir())) == 8 * (day + 1), "the volume keeps everything"
            assert len([name for name in pool.volumes() if "+lam" in name]) == 1
        assert not any(name.startswith(NAME) for name in system.qubes)
