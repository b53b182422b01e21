"""Small Btrfs and XFS file systems on loop devices, taken down again whatever happens."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_MKFS = {
    "btrfs": ["mkfs.btrfs", "--quiet", "--force"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-m", "reflink=1"],
}
_SECONDS = 60
DEFAULT_SIZE = 512 << 20
"""Bytes; XFS takes no less than 300 MiB. The file behind it is sparse."""


@contextmanager
def make(kind: str, options: str = "", size: int = DEFAULT_SIZE) -> Iterator[Path]:
    """Give the mount point of a new file system, `btrfs` or `xfs`, mounted with `options`.

    Files still open at the end do not keep the mount or the loop device alive longer than themselves. Raises OSError
    if it cannot be had here; `missing` says why.
    """
    if reason := missing(kind):
        raise OSError(errno.ENOTSUP, reason)
    with ExitStack() as stack:
        place = Path(tempfile.mkdtemp(prefix="lamella-fs-"))
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        image, mount = place / "image", place / "mount"
        mount.mkdir()
        with image.open("wb") as file:
            file.truncate(size)
        _run([*_MKFS[kind], str(image)])
        device = _run(["losetup", "--find", "--show", str(image)]).strip()
        stack.callback(_run, ["losetup", "--detach", device])
        _run(["mount", "-t", kind, *(["-o", options] if options else []), device, str(mount)])
        stack.callback(_unmount, mount)
        yield mount


def missing(kind: str) -> str:
    """Why `make` cannot work here; empty if it can."""
    if os.geteuid():
        return "loop devices and mounts need root"
    for program in (_MKFS[kind][0], "losetup", "mount", "umount"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if not Path("/dev/loop-control").exists():
        return "this kernel has no loop devices"
    if not _known(kind) and shutil.which("modprobe"):
        subprocess.run(["modprobe", kind], check=False, capture_output=True, timeout=_SECONDS)
    return "" if _known(kind) else f"this kernel cannot mount {kind}"


def _known(kind: str) -> bool:
    return kind in Path("/proc/filesystems").read_text("ascii").split()


def _run(command: list[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_SECONDS)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def _unmount(mount: Path) -> None:
    plain = subprocess.run(["umount", str(mount)], check=False, capture_output=True, timeout=_SECONDS)
    if plain.returncode:
        # A failed test may have left files open. The loop device is then freed with the last of them.
        _run(["umount", "--lazy", str(mount)])
