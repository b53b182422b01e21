"""Looking into a tree's volume. Its bytes were authenticated, and may still have been made by somebody who lies."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from lamella.base.errors import IntegrityError
from lamella.sources.tree.folders import joined
from lamella.sources.tree.known import KnownFolder
from lamella.sources.tree.layout import (
    LISTING_MOST,
    OWNERS_MOST,
    SUPERBLOCK_BYTES,
    TOP,
    ContentPlace,
    Extra,
    FileStatus,
    Flag,
    OwnerNames,
    Superblock,
    decode_listing,
)

_DEEPEST: Final = 2048
"""Directories below each other: half of PATH_MAX, each with a name of one byte."""

_PIECE: Final = 1 << 20

Read = Callable[[int, int], bytes]
"""The bytes of the volume from an offset, so many. Raises LamellaError."""
Stretches = Callable[[int, int], Iterable[tuple[int, bool]]]
"""Of what so many bytes from an offset consist: the length of each stretch, and whether it is zeros."""


def _unknown(_offset: int, length: int) -> Iterable[tuple[int, bool]]:
    return [(length, False)]


class TreeEntry(NamedTuple):
    """A file, directory or link in a tree."""

    path: bytes
    """From the top; empty for the top."""
    status: FileStatus
    place: ContentPlace
    details: tuple[tuple[int, bytes], ...]

    @property
    def name(self) -> bytes:
        """The last name of the path."""
        return self.path.rpartition(b"/")[2]

    @property
    def is_folder(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.status.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.status.mode)

    @property
    def is_absent(self) -> bool:
        """Whether its content could not be read when it was saved."""
        return bool(self.place.flags & Flag.ABSENT)

    @property
    def length(self) -> int:
        """Bytes of its content in the volume."""
        return self.place.length if self.is_file else 0

    @property
    def target(self) -> bytes:
        """The target of a symbolic link."""
        return next((value for kind, value in self.details if kind == Extra.TARGET), b"")


@dataclass(slots=True)
class FileTree:
    """A tree in a volume of `size` bytes. Everything may raise IntegrityError, and what `read` raises."""

    read: Read
    size: int
    stretches: Stretches = _unknown
    _listed: set[int] = field(default_factory=set)
    """Addresses of listings that a walk has met: no two directories share one, so nothing goes round."""

    def superblock(self) -> Superblock:
        """The first bytes."""
        return Superblock.decode(self.read(0, min(SUPERBLOCK_BYTES, self.size)))

    def owners_raw(self) -> bytes:
        """The names of accounts and groups, encoded."""
        first = self.superblock()
        return self._bytes(ContentPlace(first.owners_address, first.owners_length, 0), OWNERS_MOST)

    def owners(self) -> OwnerNames:
        """The names of accounts and groups."""
        return OwnerNames.decode(self.owners_raw())

    def top(self) -> TreeEntry:
        """The directory that was saved."""
        first = self.superblock()
        entries = list(self._entries(b"", ContentPlace(first.top_address, first.top_length, 0)))
        if len(entries) != 1 or entries[0].path != TOP or not entries[0].is_folder:
            raise IntegrityError("the tree has no top")
        return entries[0]._replace(path=b"")

    def entries(self, folder: TreeEntry) -> Iterator[TreeEntry]:
        """What is in a directory, in the order of the names' bytes."""
        for entry in self._entries(folder.path, folder.place) if folder.place.length else ():
            if entry.name == TOP:
                raise IntegrityError("the listing of a directory is damaged: a name leads elsewhere")
            yield entry

    def find(self, path: bytes) -> TreeEntry | None:
        """What is at a path from the top; None if nothing is there. Links are not followed."""
        found: TreeEntry | None = self.top()
        for name in path.split(b"/") if path else ():
            if found is None or not found.is_folder:
                return None
            found = next((entry for entry in self.entries(found) if entry.name == name), None)
        return found

    def walk(self, start: TreeEntry) -> Iterator[TreeEntry]:
        """An entry and everything below, each directory before what is in it."""
        self._listed.clear()
        yield start
        levels = [self._level(start)] if start.is_folder else []
        while levels:
            entry = next(levels[-1], None)
            if entry is None:
                levels.pop()
                continue
            yield entry
            if entry.is_folder:
                if len(levels) >= _DEEPEST:
                    raise IntegrityError("the tree has too many directories below each other")
                levels.append(self._level(entry))

    def folders(self) -> Iterator[KnownFolder]:
        """Every directory with its listing as it is stored, TOP first."""
        first, top = self.superblock(), self.top()
        place = ContentPlace(first.top_address, first.top_length, 0)
        yield KnownFolder(TOP, 0, place.address, self._bytes(place, LISTING_MOST))
        for entry in self.walk(top):
            if entry.is_folder:
                raw = self._bytes(entry.place, LISTING_MOST)
                yield KnownFolder(entry.path, entry.status.inode, entry.place.address, raw)

    def content(self, entry: TreeEntry) -> Iterator[tuple[int, bytes]]:
        """The bytes of a file in pieces, each with its offset; zeros may be left out."""
        self._check(entry.place)
        at = 0
        for length, is_zero in self.stretches(entry.place.address, entry.length):
            end = at + length
            while at < end:
                if is_zero:
                    at = end
                    continue
                step = min(_PIECE, end - at)
                yield at, self.read(entry.place.address + at, step)
                at += step

    def _level(self, folder: TreeEntry) -> Iterator[TreeEntry]:
        if folder.place.length and folder.place.address in self._listed:
            raise IntegrityError("two directories of the tree have one listing")
        self._listed.add(folder.place.address)
        return self.entries(folder)

    def _entries(self, above: bytes, place: ContentPlace) -> Iterator[TreeEntry]:
        listing = decode_listing(self._bytes(place, LISTING_MOST))
        details = listing.split_extras()
        rows = zip(listing.split_names(), listing.statuses(), listing.all_places(), strict=True)
        for number, (name, status, where) in enumerate(rows):
            yield TreeEntry(joined(above, name), status, where, tuple(details.get(number, ())))

    def _bytes(self, place: ContentPlace, most: int) -> bytes:
        self._check(place)
        if place.length > most:
            raise IntegrityError("a part of the tree is too long")
        return self.read(place.address, place.length)

    def _check(self, place: ContentPlace) -> None:
        if place.address + place.length > self.size:
            raise IntegrityError("a part of the tree lies beyond the end of its volume")
