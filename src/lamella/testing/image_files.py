"""Real images for tests: sparse files, loop devices and small file systems, put away again afterwards."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lamella.errors import SourceError
from lamella.spawn import run

_SECONDS = 60.0

# Where a DOS partition table keeps its first entry, its mark, and the type "Linux".
_FIRST_ENTRY, _MARK, _LINUX = 446, b"\x55\xaa", 0x83
_SECTOR = 512


def sparse_file(path: Path, size: int, pieces: Mapping[int, bytes]) -> Path:
    """Make a file of `size` bytes that is a hole but for `pieces` (offset -> bytes); return its path."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, content in pieces.items():
            os.pwrite(file.fileno(), content, offset)
    return path


def with_partition(path: Path, start: int) -> Path:
    """Write a partition table with one partition from byte `start` to the end of the file; return its path."""
    sectors = (path.stat().st_size - start) // _SECTOR
    entry = bytes([0, 0, 0, 0, _LINUX, 0, 0, 0]) + (start // _SECTOR).to_bytes(4, "little") + sectors.to_bytes(4, "little")
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), entry, _FIRST_ENTRY)
        os.pwrite(file.fileno(), _MARK, _SECTOR - len(_MARK))
    return path


@contextmanager
def loop_device(image: Path, *, partitions: bool = False) -> Iterator[Path]:
    """Show a file as a block device while the context lasts. Needs root; raises SourceError without."""
    scan = ["--partscan"] if partitions else []
    shown = run(["losetup", "--find", "--show", *scan, str(image)], timeout_seconds=_SECONDS, error=SourceError)
    device = Path(shown.decode().strip())
    with ExitStack() as stack:
        stack.callback(run, ["losetup", "--detach", str(device)], timeout_seconds=_SECONDS, error=SourceError)
        if partitions:
            _await_partition_nodes(device)
        yield device


@contextmanager
def mounted(what: str, place: Path, *, kind: str, options: str = "") -> Iterator[Path]:
    """Mount a device (or a name, for `tmpfs`) at an existing directory while the context lasts. Needs root."""
    chosen = ["-o", options] if options else []
    run(["mount", "-t", kind, *chosen, what, str(place)], timeout_seconds=_SECONDS, error=SourceError)
    try:
        yield place
    finally:
        run(["umount", str(place)], timeout_seconds=_SECONDS, error=SourceError)
