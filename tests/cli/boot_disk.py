"""A disk that boots by itself: a boot sector, a boot loader, a kernel and a busybox that offers a login."""

from __future__ import annotations

import shutil
import stat
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lamella.operations.access.guest_kernel import find_kernel
from lamella.operations.access.guest_start import archive
from lamella_kit.image_files import mounted
from tests.features import require

ROOT = Path(__file__).resolve().parents[2]
KERNEL = ROOT / ".guest" / "vmlinuz"
MIB = 1 << 20
SIZE = 64 * MIB
START = 2048
_BOOT_CODE = Path("/usr/lib/EXTLINUX/mbr.bin")
MODULES = ("crc32c_generic", "virtio_pci", "virtio_blk", "ext4")

# What the guest does with its own disk: it takes up what it finds there, and tells of every file that is durable.
LOGIN = r"""
echo root::0:0:root:/:/bin/sh >/etc/passwd
echo "lamella drill" >/dev/tty0
$B hostname drill
while :; do $B getty -L 115200 ttyS0 vt100; done
"""


def programs() -> None:
    """Skip, or fail, where something is missing."""
    there = KERNEL.exists() and (KERNEL.parent / "lib").exists() and shutil.which("qemu-system-x86_64")
    require("files-guest", bool(there and shutil.which("busybox")), "needs qemu, busybox and tools/guest_kernel.py")


def initramfs(script: str, modules: Sequence[str] = MODULES) -> bytes:
    """busybox, the modules of a disk with ext4, and a script that runs as the first process."""
    kernel = find_kernel(KERNEL)
    busybox = shutil.which("busybox")
    assert busybox is not None
    folders = ("bin", "dev", "proc", "sys", "mnt", "modules", "etc")
    files: dict[str, tuple[int, bytes]] = {name: (stat.S_IFDIR | 0o755, b"") for name in folders}
    files["bin/busybox"] = (stat.S_IFREG | 0o755, Path(busybox).read_bytes())
    order = []
    for number, path in enumerate(kernel.order(modules)):
        name = f"modules/{number:02}.ko"
        files[name] = (stat.S_IFREG | 0o644, kernel.module(path))
        order.append(f"$B insmod /{name}")
    start = "\n".join(
        (
            "#!/bin/busybox sh",
            "B=/bin/busybox; PATH=/bin",
            "$B --install -s /bin",
            "$B mount -t proc proc /proc; $B mount -t sysfs sys /sys; $B mount -t devtmpfs dev /dev",
            *order,
            script,
        )
    )
    files["init"] = (stat.S_IFREG | 0o755, start.encode())
    return archive(files)


def partition_table(sectors: int) -> bytes:
    """A boot sector with one active partition of Linux from START on."""
    entry = struct.pack("<B3xB3xII", 0x80, 0x83, START, sectors - START)
    return _BOOT_CODE.read_bytes()[:440].ljust(446, b"\0") + entry + bytes(48) + b"\x55\xaa"


def make_boot_disk(path: Path, folder: Path, script: str = LOGIN) -> Path:
    """The disk, in a new file. Needs root: its file system is mounted through a loop device."""
    programs()
    require("extlinux", bool(shutil.which("extlinux")) and _BOOT_CODE.exists(), "needs extlinux and its boot sector")
    place = folder / "boot-disk"
    place.mkdir()
    with path.open("wb") as file:
        file.write(partition_table(SIZE // 512))
        file.truncate(SIZE)
    device = _ran("losetup", "-f", "--show", "-o", str(START * 512), str(path)).strip()
    try:
        _ran("mkfs.ext4", "-q", "-O", "^64bit,^metadata_csum", device)
        with mounted(device, place, kind="ext4"):
            (place / "boot").mkdir()
            shutil.copyfile(KERNEL, place / "boot" / "vmlinuz")
            (place / "boot" / "initrd").write_bytes(initramfs(script))
            (place / "boot" / "extlinux.conf").write_text(
                "SERIAL 0 115200\nDEFAULT l\nPROMPT 0\nTIMEOUT 1\nLABEL l\n LINUX /boot/vmlinuz\n INITRD /boot/initrd\n"
                " APPEND console=tty0 console=ttyS0 quiet mitigations=off no_timer_check nokaslr\n"
            )
            _ran("extlinux", "--install", str(place / "boot"))
    finally:
        _ran("losetup", "-d", device)
    return path


def _ran(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
