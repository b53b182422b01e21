"""Looking at a tree: every directory's entries, with what stat(2) says of them. No file is opened.

A million names take some 100 MB: each directory is two strings of bytes, in the columns of a listing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from lamella.base.clock import now_ms
from lamella.base.errors import printable
from lamella.sources.tree.folders import FOLDER_FLAGS, joined
from lamella.sources.tree.layout import FILE_MOST, ROW, TOP
from lamella.sources.tree.patterns import CACHE_TAG, Patterns, is_cache, patterns_inside

TOLD_MOST = 20
"""Lines of one kind that a run says; of more it says how many there are."""


@dataclass(slots=True)
class Told:
    """What is to be said about single files."""

    lines: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, path: bytes, why: str) -> None:
        """Say something of a file."""
        self.count += 1
        if len(self.lines) < TOLD_MOST:
            self.lines.append(f"{printable(os.fsdecode(path)) or '.'}: {why}")

    def all_lines(self) -> Iterator[str]:
        """The lines, and how many more there would be."""
        yield from self.lines
        if self.count > len(self.lines):
            yield f"and {self.count - len(self.lines)} more like these"


@dataclass(slots=True)
class ScannedFolder:
    """A directory: where it is, and its entries in the columns of a listing."""

    path: bytes
    """From the top; empty for the top."""
    inode: int
    names: bytes = b""
    rows: bytes = b""
    folders: list[tuple[int, int]] = field(default_factory=list)
    """Of each directory in it: the number of its entry, and its number in the scan."""
    absent: bool = False
    """What is in it could not be read."""


@dataclass(slots=True)
class Scan:
    """What was seen. The directories come in the order in which a reader of the tree meets them."""

    started_ns: int
    """When the look began, in UTC nanoseconds."""
    folders: list[ScannedFolder] = field(default_factory=list)
    """The first one is TOP, of which the directory that is saved is the only entry."""
    users: set[int] = field(default_factory=set)
    groups: set[int] = field(default_factory=set)
    files: int = 0
    """Entries that are no directories."""
    bytes: int = 0
    """Sizes of all regular files together."""
    skipped: Told = field(default_factory=Told)
    """Files that no backup can hold, or that went away."""
    unreadable: Told = field(default_factory=Told)

    @property
    def is_empty(self) -> bool:
        """Whether the directory that is saved has nothing in it."""
        just_itself = len(self.folders) <= 2  # beside TOP
        return just_itself and not self.files and not self.unreadable.count


_Rules = tuple[tuple[str, Patterns], ...]
"""Patterns, each with the directory whose entries they are about, as a path from the top."""


@dataclass(slots=True)
class _Level:
    """An open directory whose subdirectories are being looked at."""

    descriptor: int
    number: int
    key: tuple[int, int]
    """Device and inode."""
    left: list[tuple[bytes, int, os.stat_result]]
    """Subdirectories that are still to be looked at, the next one last: name, number of the entry, status."""
    rules: _Rules
    """What is left out of them."""


class Scanner:
    """Looks at one tree. Directories may have patterns of their own, in a file of the name `inside`."""

    def __init__(self, patterns: Patterns, *, one_file_system: bool, inside: str = "") -> None:
        self._caches = patterns.caches
        self._rules: _Rules = (("", patterns),) if patterns.any else ()
        self._inside = inside
        self._one_file_system = one_file_system
        self._devices: dict[int, int] = {}
        self._above: set[tuple[int, int]] = set()
        """The directories that are open: what is found again among them is a circle."""
        self._scan = Scan(0)

    def scan(self, root: int) -> Scan:
        """Look at the open directory `root` and everything below. Raises OSError if the directory cannot be read."""
        self._scan = scan = Scan(now_ms() * 1_000_000)
        self._synced: set[int] = set()
        status = os.fstat(root)
        scan.folders.append(ScannedFolder(TOP, 0, TOP, self._row(status), [(0, 1)]))
        levels = [self._entered(os.dup(root), ScannedFolder(b"", status.st_ino), status, self._rules)]
        try:
            while levels:
                self._next(levels)
        finally:
            for level in levels:
                os.close(level.descriptor)
        return scan

    def _next(self, levels: list[_Level]) -> None:
        """Enter the next subdirectory of the lowest level, or leave that level."""
        level = levels[-1]
        if not level.left:
            os.close(levels.pop().descriptor)
            self._above.discard(level.key)
            return
        name, position, status = level.left.pop()
        above = self._scan.folders[level.number]
        path = joined(above.path, name)
        above.folders.append((position, len(self._scan.folders)))
        folder = ScannedFolder(path, status.st_ino)
        if self._one_file_system and self._devices[status.st_dev]:
            self._scan.folders.append(folder)
            return
        if (status.st_dev, status.st_ino) in self._above:
            self._scan.skipped.add(path, "a directory above is mounted here again")
            self._scan.folders.append(folder)
            return
        try:
            descriptor = os.open(name, FOLDER_FLAGS, dir_fd=level.descriptor)
            levels.append(self._entered(descriptor, folder, status, level.rules))
        except OSError as error:
            self._trouble(path, error)
            folder.absent = True
            self._scan.folders.append(folder)

    def _entered(self, descriptor: int, folder: ScannedFolder, status: os.stat_result, rules: _Rules) -> _Level:
        try:
            if status.st_dev not in self._synced:
                self._synced.add(status.st_dev)
                clean(descriptor)
            rules = self._extended(descriptor, folder.path, rules) if self._inside else rules
            left = self._listed(descriptor, folder, rules)
        except OSError:
            os.close(descriptor)
            raise
        self._scan.folders.append(folder)
        key = (status.st_dev, status.st_ino)
        self._above.add(key)
        return _Level(descriptor, len(self._scan.folders) - 1, key, left, rules)

    def _extended(self, descriptor: int, path: bytes, rules: _Rules) -> _Rules:
        """The rules, and those that an open directory has for itself."""
        try:
            own = patterns_inside(descriptor, self._inside)
        except (OSError, ValueError) as error:
            why = (error.strerror if isinstance(error, OSError) else "") or str(error)
            self._scan.unreadable.add(joined(path, os.fsencode(self._inside)), f"{why}: its patterns leave nothing out")
            return rules
        return rules if own is None else (*rules, (os.fsdecode(path), own))

    def _listed(self, descriptor: int, folder: ScannedFolder, rules: _Rules) -> list[tuple[bytes, int, os.stat_result]]:
        """Fill in the entries of an open directory. Returns its subdirectories, the last one first. Raises OSError."""
        entries: list[tuple[bytes, bytes, os.stat_result | None]] = []
        scan = self._scan
        with os.scandir(descriptor) as found:
            for entry in self._wanted(descriptor, folder.path, found, rules):
                name = os.fsencode(entry.name)
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError as error:
                    self._trouble(joined(folder.path, name), error)
                    continue
                kind = stat.S_IFMT(status.st_mode)
                if kind == stat.S_IFDIR:
                    entries.append((name, self._row(status), status))
                    continue
                if why := _unfit(status, kind):
                    scan.skipped.add(joined(folder.path, name), why)
                    continue
                entries.append((name, self._row(status), None))
                scan.files += 1
                if kind == stat.S_IFREG:
                    scan.bytes += status.st_size
        entries.sort()
        folder.names = b"\0".join([name for name, _, _ in entries])
        folder.rows = b"".join([row for _, row, _ in entries])
        inside = [(name, at, status) for at, (name, _, status) in enumerate(entries) if status is not None]
        inside.reverse()
        return inside

    def _wanted(
        self, descriptor: int, path: bytes, found: Iterator[os.DirEntry[str]], rules: _Rules
    ) -> Iterator[os.DirEntry[str]]:
        """The entries that are not left out."""
        if not (rules or self._caches):
            yield from found
            return
        above, entries = os.fsdecode(path), list(found)
        tagged = self._caches and any(entry.name == CACHE_TAG for entry in entries)
        if tagged and is_cache(descriptor):
            yield from (entry for entry in entries if entry.name == CACHE_TAG)
            return
        below = [(above.removeprefix(of).removeprefix("/"), patterns) for of, patterns in rules]
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            if not any(patterns.leave_out(rest, entry.name, is_folder) for rest, patterns in below):
                yield entry

    def _row(self, status: os.stat_result) -> bytes:
        """A row of a listing; of a directory only what does not depend on its file system."""
        device = self._devices.setdefault(status.st_dev, len(self._devices))
        self._scan.users.add(status.st_uid)
        self._scan.groups.add(status.st_gid)
        of_folder = stat.S_ISDIR(status.st_mode)
        return ROW.pack(
            status.st_mode,
            status.st_uid,
            status.st_gid,
            1 if of_folder else status.st_nlink,
            device,
            status.st_ino,
            0 if of_folder else status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )

    def _trouble(self, path: bytes, error: OSError) -> None:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            self._scan.skipped.add(path, "it went away meanwhile")
        else:
            self._scan.unreadable.add(path, error.strerror or str(error))


def clean(descriptor: int) -> None:
    """Have the pages of a file system written (syncfs(2)), so that the next write through a mapping changes a ctime.

    The kernel notes the time of such a write only where the page was clean: what a program writes to a page that was
    dirty already, half a minute long, leaves no trace but the content.
    """
    ctypes.CDLL(None).syncfs(descriptor)  # what cannot be written is no fault of this reader


def _unfit(status: os.stat_result, kind: int) -> str:
    """Why no tree holds such a file; empty if a tree can."""
    if kind == stat.S_IFSOCK:
        return "a socket"
    if kind == stat.S_IFREG and status.st_size > FILE_MOST:
        return "a file of more than 1 PiB"
    return (
        "" if kind in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK) else "of an unknown kind"
    )
