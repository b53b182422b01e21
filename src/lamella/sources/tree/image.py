"""The bytes of a tree's volume, read from the files when somebody asks for them."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.errors import SourceError
from lamella.base.extents import Extent
from lamella.sources.base import Consistency
from lamella.sources.driver import UntrackedMoment
from lamella.sources.tree.folders import joined
from lamella.sources.tree.known import KnownFolder, KnownTree
from lamella.sources.tree.layout import ROW, ContentPlace, FileStatus, Flag
from lamella.sources.tree.pieces import GONE, PieceRead, PieceState, fill
from lamella.sources.tree.planning import LISTING, OWNERS, TreePlan
from lamella.sources.tree.scan import Told


class TreeImage(UntrackedMoment):
    """The volume of a plan. What is read of a file is compared with what the scan saw of it, each time."""

    def __init__(self, plan: TreePlan) -> None:
        self.plan = plan
        self.size = plan.size
        self.changed = Told()
        """Files that changed while they were read."""
        self.gone = plan.gone
        self.unreadable = Told()
        """Files that could not be read."""
        self._lock = threading.Lock()
        self._noted: dict[tuple[int, int], PieceState] = {}
        self._handed: set[int] = set()
        """Directories whose listings somebody has read."""
        self._stale: set[int] = set()
        """Those of them of whose files something became known afterwards."""
        self._names: tuple[int, list[bytes]] = (-1, [])

    def consistency(self) -> Consistency:
        """UNKNOWN: each file has a moment of its own."""
        return Consistency.UNKNOWN

    def allocated(self) -> Iterator[Extent]:
        """The new contents."""
        log2 = self.plan.space.log2
        for first, end in self.plan.written.runs():
            yield Extent(first << log2, end << log2)

    def delta(self) -> Delta:
        """What differs from the last snapshot's volume."""
        plan, grain = self.plan, 1 << self.plan.space.log2
        unused = ChunkSet([(plan.base_size // grain, self.size // grain)]) - plan.written
        return Delta.bounded(grain, plan.base_size, self.size, plan.written, plan.freed | plan.holes | unused)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`. Raises SourceError beyond the end; a file that cannot be read is zeros."""
        end = offset + len(buffer)
        if offset < 0 or end > self.size:
            raise SourceError("nothing to read beyond the end of the tree")
        buffer[:] = bytes(len(buffer))
        extents = self.plan.extents
        at = max(bisect_right(extents.starts, offset) - 1, 0)
        with ExitStack() as held:
            opened = (-1, -1)
            while at < len(extents.starts) and extents.starts[at] < end:
                start, length, folder, entry = (column[at] for column in extents.columns)
                at += 1
                if start + length <= offset:
                    continue
                skip = max(offset - start, 0)
                part = buffer[max(start - offset, 0) : min(start + length, end) - offset]
                if entry < 0:
                    part[:] = self._content(folder, entry)[skip : skip + len(part)]
                    continue
                if opened[0] != folder:
                    held.close()
                    opened = (folder, self._enter(held, folder))
                self._read_file(opened[1], folder, entry, skip, part)

    def stale(self) -> ChunkSet:
        """Chunks with listings that say something else now than when they were read; read them again."""
        found, log2 = ChunkSet(), self.plan.space.log2
        with self._lock:
            for number in self._stale:
                place = self.plan.folder_place(number)
                found.add(place.address >> log2, -(-(place.address + place.length) >> log2))
            self._stale.clear()
        return found

    def known(self) -> KnownTree:
        """What the next run will want to know, the directories excepted."""
        return KnownTree(self.plan.space, owners=self.plan.owners, owners_raw=self.plan.owners_raw)

    def known_folders(self) -> Iterator[KnownFolder]:
        """The directories that the next run will want to know."""
        plan = self.plan
        for number, folder in enumerate(plan.scan.folders):
            kept = plan.kept.get(number)
            if kept is not None:
                yield kept._replace(inode=folder.inode)
            else:
                yield KnownFolder(folder.path, folder.inode, plan.addresses[number], plan.listings[number].encode())

    # -- reading ------------------------------------------------------------------------------------------------------

    def _content(self, folder: int, entry: int) -> bytes:
        """What is no file's content."""
        if entry == LISTING:
            with self._lock:
                self._handed.add(folder)
                return self.plan.listings[folder].encode()
        return self.plan.owners_raw if entry == OWNERS else self.plan.superblock().encode()

    def _enter(self, held: ExitStack, folder: int) -> int:
        """A directory, open until `held` ends; -1 if it is not there any more."""
        try:
            return held.enter_context(self.plan.folders.opened(self.plan.scan.folders[folder].path))
        except OSError:
            return -1

    def _read_file(self, opened: int, folder: int, entry: int, offset: int, part: memoryview) -> None:
        name, status = self._named(folder, entry)
        outcome = GONE if opened < 0 else fill(opened, name, status, offset, part)
        if outcome.state != PieceState.SAME:
            self._note(folder, entry, name, outcome)

    def _named(self, folder: int, entry: int) -> tuple[bytes, FileStatus]:
        scanned, (number, names) = self.plan.scan.folders[folder], self._names
        if number != folder:
            names = scanned.names.split(b"\0")
            self._names = (folder, names)
        return names[entry], FileStatus(*ROW.unpack_from(scanned.rows, entry * ROW.size))

    def _note(self, folder: int, entry: int, name: bytes, outcome: PieceRead) -> None:
        """A file is not as the scan saw it: its listing says so, and the next run reads it again."""
        plan = self.plan
        with self._lock:
            place = plan.place(folder, entry)
            if outcome.state == PieceState.CHANGED:
                ended = place.length if outcome.end is None else outcome.end
                flags, length = place.flags | Flag.CHANGED, min(place.length, ended)
            else:
                flags, length = place.flags | Flag.ABSENT, 0
            status = self._named(folder, entry)[1]
            link = plan.links.get(status) if status.links > 1 else None
            for number, at in [(folder, entry), *(link.others if link is not None else ())]:
                plan.put_place(number, at, ContentPlace(place.address, length, flags))
                if number in self._handed:
                    self._stale.add(number)
            if (folder, entry) not in self._noted:
                self._noted[folder, entry] = outcome.state
                path = plan.scan.folders[folder].path
                self._told(outcome.state).add(joined(path, name), outcome.why or "it was written to")

    def _told(self, state: PieceState) -> Told:
        return {PieceState.CHANGED: self.changed, PieceState.GONE: self.gone}.get(state, self.unreadable)
