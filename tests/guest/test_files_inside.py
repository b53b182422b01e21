"""`lamella files` in dom0: a real kernel mounts the snapshot that dom0 serves, and what comes out of it.

The disposable is a process of this guest machine, whose kernel is the one that mounts: NBD from dom0's server through
pipes into /dev/nbd0 is as in a qube; Xen and qrexec's own data path are not there.
"""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from lamella.qubes.paranoid.disposable import NAME
from lamella_kit.fake_qubesd import FakeQubesd
from lamella_kit.source_reading import MIB
from tests.guest.lvm import run
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
