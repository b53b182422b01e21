"""A chain of qcow2 images with snapshots, made by QEMU's own programs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.features import require


def ran(*words: str | Path) -> None:
    """Run a program that must end well."""
    done = subprocess.run([str(one) for one in words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (words, done.stdout, done.stderr)


def chain(folder: Path) -> Path:
    """An image over another one; both have snapshots, two of one name."""
    require("qemu-img", shutil.which("qemu-img") is not None, "there is no qemu-img")
    require("qemu-nbd", shutil.which("qemu-nbd") is not None, "there is no qemu-nbd")
    base, top = folder / "base.qcow2", folder / "top.qcow2"
    ran("qemu-img", "create", "-q", "-f", "qcow2", base, "8M")
    ran("qemu-io", "-c", "write -P 1 0 1M", base)
    ran("qemu-img", "snapshot", "-c", "old", base)
    ran("qemu-io", "-c", "write -P 2 1M 1M", base)
    ran("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", top)
    ran("qemu-io", "-c", "write -P 3 2M 1M", top)
    ran("qemu-img", "snapshot", "-c", "same", top)
    ran("qemu-io", "-c", "write -P 4 2M 64k", "-c", "write -z 0 512k", top)
    ran("qemu-img", "snapshot", "-c", "same", top)
    ran("qemu-img", "resize", "-q", top, "10M")
    ran("qemu-io", "-c", "write -P 5 9M 64k", top)
    return top
