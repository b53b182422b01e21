"""Forty of the disks that `python -m tests.fuzz.hostile_disks` makes by the thousand, twenty a boot."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lamella.operations.access.guest_kernel import find_kernel
from lamella.operations.access.guest_start import What
from tests.features import require
from tests.fuzz import hostile_disks
from tests.fuzz.hostile_disks import KERNEL, MAKERS, Reader, crc32c

pytestmark = pytest.mark.slow
CASES = 40


def test_no_disk_harms_or_hangs_the_host(tmp_path: Path) -> None:
    there = (KERNEL.parent / "lib").exists() and shutil.which("qemu-system-x86_64") and shutil.which("busybox")
    require("files-guest", bool(there), "needs qemu, busybox and tools/guest_kernel.py")
    for kind, (_, words) in MAKERS.items():
        require(words[0] if kind == "ext4" else kind, shutil.which(words[0]) is not None, f"needs {words[0]}")
    try:
        good = hostile_disks.bases(tmp_path)
    except subprocess.CalledProcessError as error:
        require("mount", False, f"cannot mount here: {error.stderr}")
        raise
    reader = Reader(tmp_path, good, find_kernel(KERNEL), tmp_path / "cache")
    for half, what in enumerate((What.GET, What.WALK)):
        reader.run(list(range(1 + half * CASES // 2, 1 + (half + 1) * CASES // 2)), what)
    found = reader.found
    assert not found.violations
    assert sum(found.outcomes.values()) == CASES
    # Were all refused at the door, nothing would have been tried.
    assert sum(count for outcome, count in found.outcomes.items() if "refused" not in outcome) >= CASES // 4, found


def test_the_checksum_is_that_of_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283
