"""Whether loop devices and mounts can be had here."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

TOOLS = ("losetup", "addpart", "delpart", "mount", "umount", "mkfs.ext4")


def need_devices() -> AbstractContextManager[None]:
    """Skip the test where loop devices and mounts are not to be had; fail it where `LAMELLA_REQUIRE` names `mount`."""
    reason = _missing()
    if reason and "mount" in os.environ.get("LAMELLA_REQUIRE", "").split(","):
        pytest.fail(f"LAMELLA_REQUIRE asks for mount, but {reason}")
    if reason:
        pytest.skip(reason)
    return nullcontext()


def _missing() -> str:
    if os.geteuid() != 0:
        return "loop devices and mounts need root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    return "" if Path("/dev/loop-control").exists() else "this kernel has no loop devices"
