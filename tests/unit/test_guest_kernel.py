"""What the guest boots is put together rightly: order of modules, archive."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

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
