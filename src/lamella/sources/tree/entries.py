"""The entries of one directory as the last snapshot has them: which of them stay, and what becomes free."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass

from lamella.sources.tree.known import KnownFolder, KnownTree, allocated
from lamella.sources.tree.layout import ROW, ContentPlace, FileStatus
from lamella.sources.tree.scan import ScannedFolder
from lamella.sources.tree.space import Space


@dataclass(slots=True)
class KnownEntry:
    """An entry as the last snapshot has it."""

    status: FileStatus
    place: ContentPlace
    details: Sequence[tuple[int, bytes]]
    stays: bool = False
    """What it has in the volume is still needed."""


class KnownEntries:
    """The entries of a directory that is listed anew. One that was moved is known by its inode."""

    def __init__(self, known: KnownTree | None, folder: ScannedFolder, space: Space, thin: set[int]) -> None:
        """Raises IntegrityError."""
        self._space = space
        self._thin = thin
        old = None if known is None else known.folders.get(folder.path)
        self._is_here = old is not None
        if known is not None and old is None:
            old = known.moved(folder.inode)
        self._entries = {} if old is None else _entries(old)

    def same(self, name: bytes, row: bytes) -> KnownEntry | None:
        """The entry of this name, if its status is the same to the last bit and what it has may stay where it is."""
        found = self._entries.get(name)
        if found is None or found.place.flags or ROW.pack(*found.status) != row:
            return None
        address, length = allocated(found.status, found.place)
        if stat.S_ISDIR(found.status.mode):
            return found
        if length and address >> self._space.log2 in self._thin:
            return None
        if self._is_here:
            found.stays = True
        else:
            self._space.retain(address, length)  # as where it was, until that is given up
        return found

    def rewritten(self, name: bytes, status: FileStatus) -> int:
        """The address of the old content of a changed file, where the new content can take its place; else 0."""
        found = self._entries.get(name)
        if not self._is_here or found is None or status.links > 1 or not stat.S_ISREG(status.mode):
            return 0
        address, length = allocated(found.status, found.place)
        if stat.S_ISDIR(found.status.mode) or not self._space.rewritten(address, length, status.size):
            return 0
        found.stays = True
        return address

    def release(self) -> None:
        """Give up what the entries have that do not stay."""
        for entry in self._entries.values() if self._is_here else ():
            if not entry.stays and not stat.S_ISDIR(entry.status.mode):
                self._space.release(*allocated(entry.status, entry.place))


def _entries(folder: KnownFolder) -> dict[bytes, KnownEntry]:
    listing = folder.listing
    details = listing.split_extras()
    rows = zip(listing.split_names(), listing.statuses(), listing.all_places(), strict=True)
    return {name: KnownEntry(status, place, details.get(at, ())) for at, (name, status, place) in enumerate(rows)}
