"""What the guest boots is put together rightly: order of modules, archive."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError
from lamella.operations.access import guest_kernel as of_guests
from lamella.operations.access.guest_supply import NEEDS
from tests.features import require
from tools import guest_kernel


def test_modules_are_loaded_after_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_kernel, "MODULES", ["dm-thin-pool", "dm_mod", "built-in"])
    text = "md/dm-mod.ko:\nmd/dm-thin-pool.ko.xz: md/bio.ko md/dm-mod.ko\nmd/bio.ko: md/dm-mod.ko\n"
    assert guest_kernel.load_order(text) == ["md/dm-mod.ko", "md/bio.ko", "md/dm-thin-pool.ko.xz"]


def test_the_archive_is_one_that_others_read(tmp_path: Path) -> None:
    require("cpio", shutil.which("busybox") is not None, "busybox is not installed")
    files = {
        "bin": (stat.S_IFDIR | 0o755, b""),
        "bin/tool": (stat.S_IFREG | 0o755, b"content"),
        "bin/sh": (stat.S_IFLNK | 0o777, b"tool"),
        "odd": (stat.S_IFREG | 0o644, b"12345"),
    }
    content = guest_kernel.archive(files)
    subprocess.run(["busybox", "cpio", "-i"], input=content, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "bin/tool").read_bytes() == (tmp_path / "bin/sh").read_bytes() == b"content"
    assert (tmp_path / "bin/tool").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "odd").read_bytes() == b"12345"


def test_the_kernel_of_the_tests_has_every_module_that_a_guest_may_ask_for() -> None:
    wanted = {module for need in NEEDS.values() for module in need.modules} | set(of_guests.BASE)
    kept = {name.replace("-", "_") for name in (*guest_kernel.MODULES, *guest_kernel.FOR_FILES)}
    assert {name.replace("-", "_") for name in wanted} <= kept


def test_a_kernel_made_for_fewer_modules_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(guest_kernel, "PLACE", tmp_path)
    for name in ("vmlinuz", "initrd"):
        (tmp_path / name).touch()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "list").write_text("ext4\n")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert guest_kernel.main() == 1  # it would have been made
    (tmp_path / "lib" / "list").write_text(guest_kernel._list())
    assert guest_kernel.main() == 0


def kernel_image(place: Path, version: str) -> Path:
    """What says that it is a kernel of this version (Linux: Documentation/arch/x86/boot.rst)."""
    image = bytearray(2048)
    image[0x202:0x206] = b"HdrS"
    image[0x20E:0x210] = (0x200).to_bytes(2, "little")
    image[0x400 : 0x400 + len(version)] = version.encode()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(image)
    return place


def test_a_container_takes_the_newest_kernel_that_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    boot, modules = tmp_path / "boot", tmp_path / "modules"
    monkeypatch.setattr(of_guests, "BOOT", boot)
    monkeypatch.setattr(of_guests, "MODULES", modules)
    with pytest.raises(LamellaError, match="no kernel in") as raised:
        of_guests.find_kernel(None)
    assert "linux-image-amd64" in (raised.value.hint or "") and "--kernel" in (raised.value.hint or "")
    kernel_image(boot / "vmlinuz-6.1.0-9-amd64", "6.1.0-9-amd64")
    newest = kernel_image(boot / "vmlinuz-6.1.0-10-amd64", "6.1.0-10-amd64")
    kernel_image(boot / "vmlinuz-0-rescue-0123", "7.0")
    assert of_guests.find_kernel(None).image == newest
    other = kernel_image(modules / "6.12.1" / "vmlinuz", "6.12.1")
    assert of_guests.find_kernel(None).image == other
    running = kernel_image(boot / f"vmlinuz-{os.uname().release}", os.uname().release)
    assert of_guests.find_kernel(None).image == running
