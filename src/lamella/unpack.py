#!/usr/bin/env python3
"""Unpacks the volume of a tree of files: python3 unpack.py IMAGE DIR

IMAGE is what `python3 restore.py ... restore VOLUME --to IMAGE` wrote, DIR a directory that is not there yet. With
root's powers files get their owners, by number. Python 3.9 or later is enough. Written from docs/TREES.md alone,
sharing no code with Lamella; [TREES n] names a section of that document.
"""

from __future__ import annotations

import argparse
import os
import stat
import struct
import sys
from typing import BinaryIO, List, Tuple

Row = Tuple[int, ...]
Details = List[Tuple[int, bytes]]

ROW = struct.Struct("<5I2Q2q")  # [TREES 3]: mode, uid, gid, links, device, inode, size, mtime, ctime
PLACE = struct.Struct("<2QI")  # address, length, flags
CHANGED, ABSENT = 1, 2
TARGET, ATTRIBUTE = 1, 2
LONGEST = 1 << 30
DEEPEST = 2048
ATTRIBUTES = (b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default")
PIECE = 1 << 20


class Wrong(Exception):
    """Something in the image is not as docs/TREES.md says."""


def require(condition: bool, text: str) -> None:
    """Raises Wrong unless the condition holds."""
    if not condition:
        raise Wrong(text)


class Unpacker:
    """One image, written into one directory."""

    def __init__(self, image: BinaryIO, target: bytes) -> None:
        self.image = image
        self.target = target
        self.size = image.seek(0, os.SEEK_END)
        self.links: dict[tuple[Row, int], bytes] = {}
        self.listed: set[int] = set()
        self.files = 0
        self.troubles = 0

    def read(self, address: int, length: int) -> bytes:
        """So many bytes of the image."""
        require(address + length <= self.size, "a part lies beyond the end of the image")
        self.image.seek(address)
        content = self.image.read(length)
        require(len(content) == length, "the image ends too soon")
        return content

    def say(self, path: bytes, text: str) -> None:
        """Tell of a file that is not as it was."""
        self.troubles += 1
        print(f"{os.fsdecode(path)!r}: {text}", file=sys.stderr)

    def listing(self, address: int, length: int) -> list[tuple[bytes, Row, Row, Details]]:
        """[TREES 3] The entries of a directory: name, row, place, details."""
        if not length:
            return []
        require(20 <= length <= LONGEST, "a listing of an impossible length")
        require(address not in self.listed, "two directories have one listing")
        self.listed.add(address)
        raw = self.read(address, length)
        magic, version, _, _, count, names_length, details_length = struct.unpack_from("<4sBBH3I", raw)
        require(magic == b"LMLD" and version == 1, "a listing that does not begin like one")
        at = 20 + names_length
        require(length == at + count * (ROW.size + PLACE.size) + details_length, "lengths that contradict each other")
        names = raw[20:at].split(b"\0") if count else []
        require(len(names) == count, "names that are not as many as the entries")
        rows = [ROW.unpack_from(raw, at + n * ROW.size) for n in range(count)]
        at += count * ROW.size
        places = [PLACE.unpack_from(raw, at + n * PLACE.size) for n in range(count)]
        at += count * PLACE.size
        details: dict[int, Details] = {}
        while at < length:
            require(length - at >= 9, "details that end too soon")
            number, kind, size = struct.unpack_from("<IBI", raw, at)
            require(number < count and size <= length - at - 9, "details that end too soon")
            details.setdefault(number, []).append((kind, raw[at + 9 : at + 9 + size]))
            at += 9 + size
        return [(names[n], rows[n], places[n], details.get(n, [])) for n in range(count)]

    def run(self) -> None:
        """[TREES 2] Unpack everything."""
        head = self.read(0, 72)
        magic, version, zero, top, top_length = struct.unpack_from("<8s2I2Q", head)
        require(magic == b"LMLFILES" and version == 1 and zero == 0, "this is no image of a tree of files")
        entries = self.listing(top, top_length)
        require(len(entries) == 1 and entries[0][0] == b".", "the tree has no top")
        _, row, place, details = entries[0]
        os.mkdir(self.target, 0o700)
        root = os.open(self.target, os.O_RDONLY | os.O_DIRECTORY)
        self.folder(b"", root, place, 0)
        self.dress(root, b"", row, details)
        os.close(root)

    def folder(self, path: bytes, opened: int, place: Row, depth: int) -> None:
        """Write what is in a directory."""
        require(depth < DEEPEST, "too many directories below each other")
        for name, row, where, details in self.listing(place[0], place[1]):
            inside = path + b"/" + name if path else name
            try:
                require(name not in (b"", b".", b"..") and b"/" not in name, "a name that is none")
                self.entry(inside, opened, (row, where, details), depth)
            except OSError as error:
                self.say(inside, str(error))

    def entry(self, path: bytes, opened: int, found: tuple[Row, Row, Details], depth: int) -> None:
        """Write one entry of an open directory."""
        row, place, details = found
        name = path.rpartition(b"/")[2]
        kind = stat.S_IFMT(row[0])
        if place[2] & ABSENT:
            self.say(path, "it could not be read when it was saved")
            if kind != stat.S_IFDIR:
                return
        if kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=opened)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=opened)
            try:
                self.folder(path, below, place, depth + 1)
                self.dress(below, path, row, details)
            finally:
                os.close(below)
        elif kind == stat.S_IFREG:
            self.file(path, opened, found)
        elif kind == stat.S_IFLNK:
            target = next((value for what, value in details if what == TARGET), b"")
            require(target != b"" and b"\0" not in target, "the target of a link is none")
            os.symlink(target, name, dir_fd=opened)
        elif kind == stat.S_IFIFO:
            os.mkfifo(name, dir_fd=opened)
            os.chmod(name, stat.S_IMODE(row[0]), dir_fd=opened)
        else:
            self.say(path, "a device, which is left out")
        if kind in (stat.S_IFLNK, stat.S_IFIFO):
            if os.geteuid() == 0:
                os.chown(name, row[1], row[2], dir_fd=opened, follow_symlinks=False)
            os.utime(name, ns=(row[7], row[7]), dir_fd=opened, follow_symlinks=False)

    def file(self, path: bytes, opened: int, found: tuple[Row, Row, Details]) -> None:
        """Write a file, or another name of a file that was written."""
        row, place, details = found
        name = path.rpartition(b"/")[2]
        if place[2] & CHANGED:
            self.say(path, "it changed while it was saved, and mixes several states")
        key = (row, place[1])
        self.files += 1
        if row[3] > 1 and key in self.links:
            first = os.path.join(self.target, self.links[key])
            os.link(first, name, dst_dir_fd=opened, follow_symlinks=False)
            return
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=opened)
        try:
            for at in range(0, place[1], PIECE):
                piece = self.read(place[0] + at, min(PIECE, place[1] - at))
                if piece.strip(b"\0"):
                    require(os.pwrite(file, piece, at) == len(piece), "the disk is full")
            os.ftruncate(file, place[1])
            self.dress(file, path, row, details)
        finally:
            os.close(file)
        if row[3] > 1:
            self.links[key] = path

    def dress(self, file: int, path: bytes, row: Row, details: Details) -> None:
        """Owner, rights, attributes, times."""
        mode = stat.S_IMODE(row[0])
        if os.geteuid() == 0:
            os.chown(file, row[1], row[2])
        else:
            mode &= 0o1777
        for kind, value in details:  # before the rights, which may forbid its owner to give attributes
            name, _, content = value.partition(b"\0")
            if kind == ATTRIBUTE and (name.startswith(b"user.") or name in ATTRIBUTES):
                try:
                    os.setxattr(file, name, content)
                except OSError as error:
                    self.say(path, f"its attribute {os.fsdecode(name)!r} could not be set: {error.strerror}")
        os.chmod(file, mode)
        os.utime(file, ns=(row[7], row[7]))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Unpack the volume of a tree of files.")
    parser.add_argument("image", metavar="IMAGE", help="the volume, as restore.py or lamella restore wrote it")
    parser.add_argument("directory", metavar="DIR", help="where the files go; must not exist")
    args = parser.parse_args()
    sys.setrecursionlimit(5 * DEEPEST)
    try:
        with open(args.image, "rb") as image:
            unpacker = Unpacker(image, os.fsencode(args.directory))
            unpacker.run()
    except (OSError, Wrong, struct.error, RecursionError) as error:
        sys.exit(f"unpack.py: {error}")
    print(f"unpacked files: {unpacker.files}")
    sys.exit(3 if unpacker.troubles else 0)


if __name__ == "__main__":
    main()
