"""Which contents of a tree are new, and where they go in the volume.

What did not change since the last snapshot stays where it is, and nobody reads it. What did change gets chunks that
nothing uses. Listings follow the contents they name: a directory is written anew if anything in or below it changed.
"""

from __future__ import annotations

import grp
import pwd
import stat
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from lamella.base.chunkset import ChunkSet
from lamella.sources.tree.details import Details
from lamella.sources.tree.entries import KnownEntries
from lamella.sources.tree.folders import Folders, joined
from lamella.sources.tree.known import KnownFolder, KnownTree, allocated
from lamella.sources.tree.layout import (
    PLACE,
    ROW,
    SUPERBLOCK_BYTES,
    ContentPlace,
    FileStatus,
    Flag,
    Listing,
    OwnerNames,
    Superblock,
    same_status,
)
from lamella.sources.tree.pieces import data
from lamella.sources.tree.scan import Scan, ScannedFolder, Told
from lamella.sources.tree.space import Allocator, Space

_RECENT_NS, _COARSE_NS = 50_000_000, 2_100_000_000
"""How long a change may hide behind one before it: a tick of the kernel; two seconds where times have no fractions."""
_THIN_LEAST = 8
"""So many thin chunks are worth reading their files again."""
LISTING, OWNERS, SUPERBLOCK = -1, -2, -3
"""What an extent holds that is no file's content, in place of the number of an entry."""


@dataclass(slots=True)
class Extents:
    """The new contents by address, in columns: a million of them take 32 MB."""

    starts: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("Q"))
    folders: array[int] = field(default_factory=lambda: array("q"))
    entries: array[int] = field(default_factory=lambda: array("q"))

    def add(self, start: int, length: int, folder: int, entry: int) -> None:
        """Add a content: of an entry of a directory, by their numbers."""
        self.starts.append(start)
        self.lengths.append(length)
        self.folders.append(folder)
        self.entries.append(entry)

    @property
    def columns(self) -> tuple[array[int], ...]:
        """Address, length, number of the directory, number of the entry."""
        return self.starts, self.lengths, self.folders, self.entries

    def sort(self) -> None:
        """Order them by address."""
        order = sorted(range(len(self.starts)), key=self.starts.__getitem__)
        self.starts, self.lengths = (array("Q", map(one.__getitem__, order)) for one in (self.starts, self.lengths))
        self.folders, self.entries = (array("q", map(one.__getitem__, order)) for one in (self.folders, self.entries))


@dataclass(slots=True)
class SharedFile:
    """A file of several names that is new: where it was met first, and its other names."""

    folder: int
    entry: int
    others: list[tuple[int, int]] = field(default_factory=list)


class TreePlan:
    """The volume of one scan, built on what the last snapshot has."""

    def __init__(self, scan: Scan, folders: Folders, known: KnownTree | None, log2: int) -> None:
        """Raises IntegrityError if what is `known` is damaged."""
        self.scan = scan
        self.folders = folders
        self.unreadable = Told()
        """Files whose links or attributes could not be read."""
        self.gone = Told()
        """Files that went away before they were read."""
        self.space = Space(log2) if known is None else known.space
        self.listings: dict[int, Listing] = {}
        """The new listings by the number of their directory."""
        self.kept: dict[int, KnownFolder] = {}
        """The others."""
        self.addresses: dict[int, int] = {}
        """Where the new listings are."""
        self.extents = Extents()
        self.written = ChunkSet()
        """Chunks that have new contents."""
        self.holes = ChunkSet()
        """Chunks in the middle of new contents that have none."""
        self.links: dict[FileStatus, SharedFile] = {}
        """By all that stat(2) said: names of a file that was written to between the looks at them share nothing."""
        self.owners_raw = _owners(scan).encode()
        self.owners = ContentPlace(0, 0, 0)
        self.is_emptied = known is not None and scan.is_empty and known.has_entries
        """Whether the last snapshot had something, and there is nothing now: as where a file system is not mounted."""
        self._known = known
        before = self.space.used()
        self.base_size = 0 if known is None else known.size
        new = self._choose()
        self._forget_what_is_gone()
        self._give_places(new)
        self.freed = before - self.space.used()
        """Chunks that were in use and are not any more."""
        self.size = self.space.end << log2
        """Bytes of the volume."""

    def folder_place(self, number: int) -> ContentPlace:
        """Where the listing of a directory is."""
        flags = Flag.ABSENT if self.scan.folders[number].absent else 0
        if number in self.kept:
            kept = self.kept[number]
            return ContentPlace(kept.address, len(kept.raw), flags)
        return ContentPlace(self.addresses[number], self.listings[number].length, flags)

    def superblock(self) -> Superblock:
        """The first bytes of the volume."""
        scan, top = self.scan, self.folder_place(0)
        return Superblock(*top[:2], *self.owners[:2], scan.files, len(scan.folders) - 1, scan.bytes)

    # -- what is new --------------------------------------------------------------------------------------------------

    def _choose(self) -> dict[int, list[int]]:
        """Keep what can stay. Returns the directories with new listings, and which of their entries are to be read."""
        thin = self.space.thin() if self._known is not None and self._differs() else set[int]()
        thin = thin if len(thin) >= _THIN_LEAST else set()
        new: dict[int, list[int]] = {}
        for number in reversed(range(len(self.scan.folders))):
            folder = self.scan.folders[number]
            old = None if self._known is None else self._known.folders.get(folder.path)
            if old is not None and self._stays(folder, old, thin):
                self.kept[number] = old
            else:
                new[number] = self._listed(number, folder, thin)
        return new

    def _differs(self) -> bool:
        """Whether anything has to be written at all."""
        known, folders = self._known, self.scan.folders
        if known is None or len(known.folders) != len(folders):
            return True
        pairs = ((known.folders.get(folder.path), folder) for folder in folders)
        return any(old is None or not same_status(old.raw, folder.names, folder.rows) for old, folder in pairs)

    def _stays(self, folder: ScannedFolder, old: KnownFolder, thin: set[int]) -> bool:
        """Whether a directory's listing, and all below, is as it was and may stay where it is."""
        if folder.absent or not same_status(old.raw, folder.names, folder.rows):
            return False
        if any(below not in self.kept for _, below in folder.folders):
            return False
        if not thin:
            return True
        log2, listing = self.space.log2, old.listing
        uses = (allocated(*pair)[0] >> log2 for pair in zip(listing.statuses(), listing.all_places(), strict=True))
        return old.address >> log2 not in thin and thin.isdisjoint(uses)

    def _listed(self, number: int, folder: ScannedFolder, thin: set[int]) -> list[int]:
        """Make the new listing of a directory. Returns the entries whose content has to be read, by number."""
        known = KnownEntries(self._known, folder, self.space, thin)
        details = Details(lambda name, why: self.unreadable.add(joined(folder.path, name), why))
        placed = bytearray(PLACE.size * (len(folder.rows) // ROW.size))
        listing = self.listings[number] = Listing(folder.names, folder.rows, placed)
        changed: list[tuple[int, bytes, FileStatus]] = []
        for entry, (name, row) in enumerate(zip(listing.split_names(), _rows(folder.rows), strict=True)):
            kept = known.same(name, row)
            if kept is None:
                changed.append((entry, name, FileStatus(*ROW.unpack(row))))
            else:
                PLACE.pack_into(placed, entry * PLACE.size, *kept.place)
                details.keep(entry, kept.details)
        unread = {entry for entry, _, _ in changed}
        with suppress(OSError), self.folders.opened(folder.path) as opened:
            unread = {one[0] for one in changed if not details.read(opened, *one)}
        listing.extras = details.encoded()
        self._tell_gone(folder, [one for one in changed if one[0] in unread])
        new: list[int] = []
        for entry, name, status in changed:
            flags = self._flags(status, is_known=entry not in unread)
            if self._is_new(number, entry, ContentPlace(known.rewritten(name, status), 0, flags), status):
                new.append(entry)
        known.release()
        return new

    def _flags(self, status: FileStatus, *, is_known: bool) -> int:
        """What an entry that changed has to say; unless its details are known, the next run reads it again."""
        if not is_known:
            return Flag.RECENT | (Flag.ABSENT if _is_all_details(status) else 0)
        return Flag.RECENT if self._is_recent(status) and not stat.S_ISDIR(status.mode) else 0

    def _tell_gone(self, folder: ScannedFolder, unread: Sequence[tuple[int, bytes, FileStatus]]) -> None:
        """Tell of what has no content whose reading would tell."""
        for _, name, status in unread:
            if _is_all_details(status):
                self.gone.add(joined(folder.path, name), "it went away meanwhile")

    def _is_new(self, folder: int, entry: int, place: ContentPlace, status: FileStatus) -> bool:
        """Note the place of an entry that changed. Returns whether its content has to be read."""
        length = status.size if stat.S_ISREG(status.mode) else 0
        self.put_place(folder, entry, place._replace(length=length))
        return length > 0 and not self._is_linked(folder, entry, status)

    def _is_linked(self, folder: int, entry: int, status: FileStatus) -> bool:
        """Whether a file's content is that of a name met before."""
        if status.links < 2:
            return False
        link = self.links.setdefault(status, SharedFile(folder, entry))
        if (link.folder, link.entry) == (folder, entry):
            return False
        link.others.append((folder, entry))
        return True

    def _is_recent(self, status: FileStatus) -> bool:
        hidden = _RECENT_NS if status.ctime_ns % 1_000_000 else _COARSE_NS
        return status.ctime_ns >= self.scan.started_ns - hidden

    def _forget_what_is_gone(self) -> None:
        """The space of directories that are no more, or have a new listing, is free."""
        if self._known is None:
            return
        here = {folder.path for folder in self.scan.folders}
        kept = {folder.path for folder in self.kept.values()}
        for path, folder in self._known.folders.items():
            if path not in kept:
                self.space.release(folder.address, len(folder.raw))
            if path not in here:
                listing = folder.listing
                for status, place in zip(listing.statuses(), listing.all_places(), strict=True):
                    if not stat.S_ISDIR(status.mode):
                        self.space.release(*allocated(status, place))

    # -- where it goes ------------------------------------------------------------------------------------------------

    def place(self, folder: int, entry: int) -> ContentPlace:
        """The place of an entry in a new listing."""
        return ContentPlace(*PLACE.unpack_from(self.listings[folder].places, entry * PLACE.size))

    def put_place(self, folder: int, entry: int, place: ContentPlace) -> None:
        """Say where the content of an entry in a new listing is."""
        places = self.listings[folder].places
        assert isinstance(places, bytearray)
        PLACE.pack_into(places, entry * PLACE.size, *place)

    def _give_places(self, new: dict[int, list[int]]) -> None:
        allocation = Allocator(self.space)
        for number in sorted(new):
            for entry in new[number]:
                place = self.place(number, entry)
                address = place.address or allocation.place(place.length)
                self.put_place(number, entry, place._replace(address=address))
                self._add(address, place.length, number, entry)
        for link in self.links.values():
            place = self.place(link.folder, link.entry)
            for folder, entry in link.others:
                self.put_place(folder, entry, place._replace(flags=place.flags | self.place(folder, entry).flags))
                self.space.retain(place.address, place.length)
        allocation.close_chunk()
        for number in sorted(new, reverse=True):
            for entry, below in self.scan.folders[number].folders:
                flags, place = self.place(number, entry).flags, self.folder_place(below)
                self.put_place(number, entry, place._replace(flags=place.flags | flags))
            length = self.listings[number].length
            self.addresses[number] = allocation.place(length)
            self._add(self.addresses[number], length, number, LISTING)
        self._place_owners(allocation)
        if new or self._known is None:
            self._add(0, SUPERBLOCK_BYTES, 0, SUPERBLOCK)
        self.extents.sort()

    def _place_owners(self, allocation: Allocator) -> None:
        known = self._known
        if known is not None and known.owners_raw == self.owners_raw:
            self.owners = known.owners
            return
        if known is not None:
            self.space.release(known.owners.address, known.owners.length)
        length = len(self.owners_raw)
        self.owners = ContentPlace(allocation.place(length), length, 0)
        self._add(self.owners.address, length, 0, OWNERS)

    def _add(self, address: int, length: int, folder: int, entry: int) -> None:
        """Note new content, the chunks that it has, and those that it leaves empty."""
        self.extents.add(address, length, folder, entry)
        log2 = self.space.log2
        first, end = address >> log2, -(-(address + length) >> log2)
        if entry < 0 or self.space.is_small(length):
            self.written.add(first, end)
            return
        filled = ChunkSet()
        for start, stop in self._data(folder, entry, length):
            filled.add((address + start) >> log2, -(-(address + stop) >> log2))
        for start, stop in filled.runs():
            self.written.add(start, stop)
        for start, stop in (ChunkSet([(first, end)]) - filled).runs():
            self.holes.add(start, stop)

    def _data(self, folder: int, entry: int, length: int) -> list[tuple[int, int]]:
        """The stretches of a file that are no holes."""
        scanned = self.scan.folders[folder]
        try:
            with self.folders.opened(scanned.path) as opened:
                return data(opened, scanned.names.split(b"\0")[entry], length)
        except OSError:
            return [(0, length)]


def _is_all_details(status: FileStatus) -> bool:
    """Whether an entry is nothing without its details: a link or a device."""
    return stat.S_ISLNK(status.mode) or stat.S_ISCHR(status.mode) or stat.S_ISBLK(status.mode)


def _rows(rows: bytes) -> Iterator[bytes]:
    return (rows[at : at + ROW.size] for at in range(0, len(rows), ROW.size))


def _owners(scan: Scan) -> OwnerNames:
    """The names of whoever the files belong to, as this host knows them."""
    users = _named(scan.users, lambda number: pwd.getpwuid(number).pw_name)
    return OwnerNames(users, _named(scan.groups, lambda number: grp.getgrgid(number).gr_name))


def _named(numbers: set[int], name: Callable[[int], str]) -> dict[int, str]:
    found = {}
    for number in numbers:
        with suppress(KeyError):
            found[number] = name(number)
    return found
