"""A FAT16 file system with files, which few hosts can make (Microsoft: "FAT: General Overview of On-Disk Format")."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import PurePosixPath

SECTOR = 512
SECTORS = 8192
_FATS, _FAT_SECTORS, _ROOT_ENTRIES = 2, 32, 512
_DATA = 1 + _FATS * _FAT_SECTORS + _ROOT_ENTRIES * 32 // SECTOR
_FOLDER, _ARCHIVE = 0x10, 0x20
_File = tuple[bytes, int]
_Tree = dict[str, "_Tree | _File"]
OLD = (2001 - 1980) << 25 | 9 << 21 | 9 << 16 | 1 << 11
"""A date and a time."""
LATER = OLD + (1 << 25)


def fat16(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    """The image: path -> content, and date and time. Names are short and of ASCII."""
    disk = _Disk()
    tree: _Tree = {}
    for path, found in files.items():
        *folders, name = PurePosixPath(path).parts
        place = tree
        for folder in folders:
            below = place.setdefault(folder, {})
            assert isinstance(below, dict)
            place = below
        place[name] = found
    root = disk.entries(tree)
    boot = struct.pack(
        "<3s8sHBHBHHBHHHIIBBBI11s8s",
        *(b"\xeb\x3c\x90", b"LAMELLA ", SECTOR, 1, 1, _FATS, _ROOT_ENTRIES, SECTORS, 0xF8, _FAT_SECTORS, 32, 64),
        *(0, 0, 0x80, 0, 0x29, 0x12345678, b"NO NAME    ", b"FAT16   "),
    )
    table = struct.pack(f"<{len(disk.chain)}H", *disk.chain).ljust(_FAT_SECTORS * SECTOR, b"\0")
    head = boot.ljust(510, b"\0") + b"\x55\xaa" + table * _FATS + root.ljust(_ROOT_ENTRIES * 32, b"\0")
    return (head + b"".join(disk.clusters)).ljust(SECTORS * SECTOR, b"\0")


class _Disk:
    """Clusters of one sector, and what follows each."""

    def __init__(self) -> None:
        self.chain = [0xFFF8, 0xFFFF]
        self.clusters: list[bytes] = []

    def store(self, content: bytes) -> int:
        """Put bytes into clusters; the first of them."""
        if not content:
            return 0
        first = len(self.chain)
        pieces = [content[at : at + SECTOR].ljust(SECTOR, b"\0") for at in range(0, len(content), SECTOR)]
        self.clusters += pieces
        self.chain += [*range(first + 1, first + len(pieces)), 0xFFFF]
        return first

    def entries(self, tree: _Tree) -> bytes:
        """The entries of a directory."""
        found = b""
        for name, what in tree.items():
            if isinstance(what, dict):
                # The name of itself and of its parent come first; Linux knows both without looking.
                inside = _entry(b".", _FOLDER, 0, 0, OLD) + _entry(b"..", _FOLDER, 0, 0, OLD) + self.entries(what)
                found += _entry(name.upper().encode(), _FOLDER, self.store(inside), 0, OLD)
            else:
                content, time = what
                found += _entry(name.upper().encode(), _ARCHIVE, self.store(content), len(content), time)
        return found


def _entry(name: bytes, kind: int, first: int, size: int, time: int) -> bytes:
    day, hour = time >> 16, time & 0xFFFF
    return struct.pack("<11sBBBHHHHHHHI", name.ljust(11), kind, 0, 0, hour, day, day, 0, hour, day, first, size)
