"""`lamella drill`: a disk that boots, others that do not, and what is remembered of each. A boot costs some seconds."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from tests.cli.boot_disk import KERNEL, make_boot_disk, programs
from tests.cli.program import Lamella

pytestmark = pytest.mark.slow
MIB = 1 << 20


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A state directory that knows that KVM is not to be tried: that costs five seconds where it does not answer."""
    programs()
    folder = tmp_path / "state-of-drills"
    folder.mkdir(mode=0o700)
    (folder / "guest-without-kvm").touch()
    monkeypatch.setenv("LAMELLA_STATE_DIR", str(folder))
    monkeypatch.setattr("tests.cli.program.SECONDS", 200)


def shades(png: Path) -> int:
    """How many different bytes a PNG image holds, decoded (PNG specification, 5.2 and 10)."""
    content, at, packed = png.read_bytes(), 8, b""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        if content[at + 4 : at + 8] == b"IDAT":
            packed += content[at + 8 : at + 8 + length]
        at += 12 + length
    return len(set(zlib.decompress(packed)))


def test_a_disk_that_boots_is_told_from_a_damaged_one(empty: Lamella, tmp_path: Path) -> None:
    image, shot = tmp_path / "vm.img", tmp_path / "screen.png"
    make_boot_disk(image, tmp_path)
    before = image.read_bytes()
    empty.ok("backup", f"vm={image}")
    done = empty.json("drill", "vm", "--screenshot", shot)
    assert (done["result"], done["verdict"], done["sign"]) == ("passed", "booted", "a login prompt"), done
    assert shades(shot) > 2, "the screen is blank"
    (row,) = empty.json("status", code=3)["volumes"]
    assert row["drilled"]["verdict"] == "booted" and row["drilled"]["snapshot"] == row["newest"]
    assert f"booted {row['drilled']['time'][:10]}" in empty.ok("list").out
    assert "verdict=booted" in empty.ok("info", "vm").out
    assert image.read_bytes() == before
    # The boot loader's second part and the kernel are gone, the partition table is there.
    with image.open("r+b") as file:
        file.seek(MIB)
        file.write(os.urandom(30 * MIB))
    empty.ok("backup", f"vm={image}")
    done = empty.json("drill", "vm", "--seconds", "6", code=1)
    assert (done["result"], done["verdict"]) == ("failed", "failed") and "no sign of life within 6 s" in done["sign"]
    (row,) = empty.json("status", code=3)["volumes"]
    assert row["drilled"]["result"] == "failed" and any("drill" in reason for reason in row["reasons"])
    assert "failed 20" in empty.ok("list").out
    # The older snapshot is as good as it was.
    names = sorted(one["snapshot"] for one in empty.json("list")["snapshots"])
    asked = tmp_path / "asked"
    command = f'grep -q "login:" "$LAMELLA_DRILL_SERIAL" && cp "$LAMELLA_DRILL_SCREEN" {asked}'
    assert empty.json("drill", f"vm@{names[0]}", "--command", command)["sign"] == "the command says so"
    assert shades(asked) > 2


def test_a_disk_that_hangs_or_ends_itself_is_ended(empty: Lamella, tmp_path: Path) -> None:
    ends = {"hangs": b"\xeb\xfe", "resets": b"\xea\xf0\xff\x00\xf0"}  # jmp $; jmp f000:fff0
    for name, code in ends.items():
        image = tmp_path / f"{name}.img"
        sector = code.ljust(446, b"\0") + b"\x80" + bytes(63) + b"\x55\xaa"
        image.write_bytes(sector + os.urandom(MIB))
        empty.ok("backup", f"{name}={image}")
        done = empty.json("drill", name, "--seconds", "5", code=1)
        assert done["verdict"] == "failed" and done["seconds"] < 30, done
    assert empty.run("drill", "hangs", "--until", "(").code == 2


def test_a_volume_that_cannot_boot_is_mounted_and_never_called_booted(empty: Lamella, tmp_path: Path) -> None:
    image = tmp_path / "data.img"
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    empty.ok("backup", f"data={image}")
    done = empty.json("drill", "data", "--kernel", KERNEL)
    assert (done["result"], done["verdict"]) == ("passed", "mounted") and "ext4" in done["sign"], done
    good, due = image.read_bytes(), ["drill", "--kernel", str(KERNEL), "--every"]
    assert empty.json(*due, "30d", "data")["result"] == "nothing due"
    assert empty.json(*due, "0d", "--budget", "0s", "data")["left"] == ["data"]
    with image.open("r+b") as file:
        file.write(os.urandom(8 * MIB))
    empty.ok("backup", f"data={image}")
    assert empty.json("drill", "data", "--kernel", KERNEL, code=1)["verdict"] == "failed"
    assert empty.json(*due, "30d", "data")["result"] == "nothing due"
    # It was mended: the failure does not stand for a month.
    image.write_bytes(good)
    empty.ok("backup", f"data={image}")
    # A volume that is gone is told, and keeps no other back.
    both = empty.json(*due, "30d", "data", "gone", code=1)
    assert [(row["volume"], row["result"]) for row in both["drills"]] == [("gone", "failed"), ("data", "passed")]
    assert both["failed"][0].startswith("gone (")
    assert empty.run("drill", "data", "data").code == 2


def test_a_volume_that_is_no_disk_fails_no_drill(empty: Lamella, tmp_path: Path) -> None:
    """A dump has neither partitions nor a file system: nothing was tried, so nothing failed and nothing is kept."""
    for name, content in {"dump": os.urandom(MIB), "nothing": b""}.items():
        (tmp_path / name).write_bytes(content)
        empty.ok("backup", f"{name}={tmp_path / name}")
        done = empty.run("drill", name, "--kernel", KERNEL)
        assert done.code == 4 and "nothing to boot or mount" in done.err and done.out == "", done
    assert [row["drilled"] for row in empty.json("status", code=3)["volumes"]] == [None, None]


def test_a_kernel_without_its_modules_blames_no_disk(empty: Lamella, tmp_path: Path) -> None:
    image, alone = tmp_path / "data.img", tmp_path / "alone"
    image.write_bytes(bytes(MIB))
    alone.mkdir()
    shutil.copyfile(KERNEL, alone / "vmlinuz")
    empty.ok("backup", f"data={image}")
    for words in (["drill", "data"], ["files", "list", "data"]):
        done = empty.run(*words, "--kernel", alone / "vmlinuz")
        assert done.code == 2 and "virtio_pci, virtio_blk, virtio_console" in done.err, done
        assert f"{alone}/lib/modules/" in done.err and len(done.err.splitlines()) == 1
    # Half of the modules are there: those that are missing are named.
    modules = next((KERNEL.parent / "lib/modules").iterdir())
    half = alone / "lib/modules" / modules.name
    half.mkdir(parents=True)
    lines = (modules / "modules.dep").read_text().splitlines()
    (half / "modules.dep").write_text("\n".join(line for line in lines if "virtio_blk" not in line.partition(":")[0]))
    done = empty.run("drill", "data", "--kernel", alone / "vmlinuz")
    assert done.code == 2 and "no modules virtio_blk for a guest" in done.err, done
    # The modules of a file system are missing, which only the guest finds out.
    image.unlink()
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    empty.ok("backup", f"data={image}")
    shutil.rmtree(half)
    shutil.copytree(modules, half)
    kept = [line for line in lines if not line.partition(":")[0].endswith("/ext4.ko")]
    (half / "modules.dep").write_text("\n".join(kept) + "\n")
    done = empty.run("drill", "data", "--kernel", alone / "vmlinuz")
    assert done.code == 1 and "the guest's kernel cannot read ext4" in done.err, done
    assert [row["drilled"] for row in empty.json("status", code=3)["volumes"]] == [None]


def test_a_host_without_qemu_says_what_to_install(empty: Lamella, tmp_path: Path) -> None:
    done = empty.run("drill", "vm", env={"PATH": str(tmp_path)})
    assert done.code == 1 and "qemu-system-x86" in done.err and done.err.count("\n") == 1
