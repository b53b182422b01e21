"""Real images for tests: sparse files, loop devices and small file systems, put away again afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lamella.base.errors import SourceError
from lamella.run.spawn import run

_SECONDS = 60.0

_SECTOR = 512
"""addpart(8) counts in these, whatever the device's own sectors are."""


def sparse_file(path: Path, size: int, pieces: Mapping[int, bytes]) -> Path:
    """Make a file of `size` bytes that is a hole but for `pieces` (offset -> bytes); return its path."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, content in pieces.items():
            os.pwrite(file.fileno(), content, offset)
    return path


@contextmanager
def loop_device(image: Path) -> Iterator[Path]:
    """Show a file as a block device while the context lasts. Needs root; raises SourceError without."""
    shown = run(["losetup", "--find", "--show", str(image)], timeout_seconds=_SECONDS, error=SourceError)
    device = Path(shown.decode().strip())
    try:
        yield device
    finally:
        run(["losetup", "--detach", str(device)], timeout_seconds=_SECONDS, error=SourceError)


@contextmanager
def partition(device: Path, start: int, length: int) -> Iterator[Path]:
    """Show bytes `[start, start + length)` of a loop device as its first partition, without a table on the device."""
    sectors = [str(start // _SECTOR), str(length // _SECTOR)]
    run(["addpart", str(device), "1", *sectors], timeout_seconds=_SECONDS, error=SourceError)
    try:
        yield device.with_name(device.name + "p1")
    finally:
        run(["delpart", str(device), "1"], timeout_seconds=_SECONDS, error=SourceError)


@contextmanager
def mounted(what: str, place: Path, *, kind: str, options: str = "") -> Iterator[Path]:
    """Mount a device (or a name, for `tmpfs`) at an existing directory while the context lasts. Needs root."""
    chosen = ["-o", options] if options else []
    run(["mount", "-t", kind, *chosen, what, str(place)], timeout_seconds=_SECONDS, error=SourceError)
    try:
        yield place
    finally:
        run(["umount", str(place)], timeout_seconds=_SECONDS, error=SourceError)
