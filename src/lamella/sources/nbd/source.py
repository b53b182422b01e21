"""The `nbd` driver: a volume as an NBD server exports it, and what a dirty bitmap of QEMU may be believed for.

A bitmap says what changed since it was started, and nothing in it says when that was. So one is believed only if the
run before named it (`next=NAME`) as the bitmap that was started at that run's moment: that name, with the size of the
volume, is the checkpoint. A bitmap that is gone, has another name, or belongs to a volume of another size is not used
(docs/decisions/0049).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Final

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, SourceError
from lamella.base.extents import Extent
from lamella.base.nbd import ALLOCATION_CONTEXT, DIRTY_BITMAP, Allocation
from lamella.sources.base import Consistency, Keeping
from lamella.sources.driver import MomentToken
from lamella.sources.in_place import ReadTwice
from lamella.sources.nbd.address import NbdAddress, parse
from lamella.sources.nbd.export import Export

DRIVER: Final = "nbd"
_UNALLOCATED: Final = Allocation.HOLE | Allocation.ZERO


def open_nbd(text: str, machine: str, keeping: Keeping) -> NbdSource:
    """The export at an address. Raises UsageError."""
    return NbdSource(parse(text), machine, keeping.known_as)


@dataclass(frozen=True, slots=True)
class BitmapToken(MomentToken):
    """A bitmap that records what changes from this moment on, and the size of the volume then."""

    bitmap: str
    size: int


@dataclass(frozen=True, slots=True)
class NbdSource:
    """An export. Its bitmaps belong to whoever runs the server: this source neither makes nor removes any."""

    address: NbdAddress
    machine: str
    known_as: bytes = b""
    driver: str = DRIVER

    @property
    def tracks(self) -> bool:
        """Whether bitmaps are named."""
        return bool(self.address.bitmap or self.address.next)

    @property
    def identity(self) -> bytes:
        """`nbd:MACHINE:ADDRESS`, the address without bitmaps: a host's name may mean something else elsewhere."""
        return self.known_as or f"nbd:{self.machine}:{self.address.text}".encode("utf-8", "surrogateescape")

    @property
    def default_name(self) -> str:
        """The export's name, else that of the socket or host; not yet made a valid volume name."""
        return self.address.export or self.address.socket.rpartition("/")[2].partition(".")[0] or self.address.host

    @contextmanager
    def freeze(self) -> Iterator[FrozenExport]:
        """Open the export. It is the server that holds it still, or does not."""
        contexts = [ALLOCATION_CONTEXT, *([DIRTY_BITMAP + self.address.bitmap] if self.address.bitmap else [])]
        export = Export(self.address, contexts)
        try:
            yield FrozenExport(self.address, export)
        finally:
            export.close()

    def keep(self, checkpoint: str) -> None:
        """Nothing to do: the server keeps the bitmap."""

    def drop(self, checkpoint: str) -> None:
        """Nothing to do: whoever made the bitmap removes it."""

    def kept(self) -> list[str]:
        """Nothing of ours is on the server."""
        return []


class FrozenExport:
    """An export as it is read."""

    def __init__(self, address: NbdAddress, export: Export) -> None:
        self._address = address
        self._export = export
        self._twice = ReadTwice()
        self.size = export.size

    @property
    def checkpoint(self) -> str:
        """The bitmap started at this moment, if one is named."""
        return BitmapToken(self._address.next, self.size).text if self._address.next else ""

    def consistency(self) -> Consistency:
        """CHANGED if a piece that is read twice differs, else UNKNOWN: only the server knows."""
        return Consistency.CHANGED if self._twice.differs(self._read) else Consistency.UNKNOWN

    def allocated(self) -> Iterator[Extent]:
        """Yield what the server does not call an unallocated zero; all of it if the server says nothing."""
        if ALLOCATION_CONTEXT not in self._export.contexts:
            yield from [Extent(0, self.size)] if self.size else []
            return
        for start, end, state in self._export.allocation():
            if state & _UNALLOCATED != _UNALLOCATED:
                yield Extent(start, end)

    def delta_since(self, base: str, grain: int) -> Delta:
        """The dirty ranges of the bitmap. Raises CheckpointLost if it need not hold all that changed since `base`."""
        token, name = BitmapToken.parse(base), self._address.bitmap
        if not name or token.bitmap != name:
            raise CheckpointLost("the bitmap is not the one that was started at the last backup")
        if token.size != self.size:
            raise CheckpointLost("the volume had another size when the bitmap was started")
        return self._dirty(name, grain)

    def _dirty(self, name: str, grain: int) -> Delta:
        """The dirty ranges of a bitmap. Raises CheckpointLost."""
        if DIRTY_BITMAP + name not in self._export.contexts:
            raise CheckpointLost("the server has no such bitmap, or cannot use it")
        try:
            changed = _chunks(self._export, DIRTY_BITMAP + name, grain)
            zero = _zeros(self._export, grain)
        except SourceError as reason:
            raise CheckpointLost(f"the bitmap cannot be read: {reason.message}") from reason
        return Delta.bounded(grain, self.size, self.size, changed - zero, changed & zero)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`. Raises SourceError."""
        self._read(offset, buffer)
        self._twice.saw(offset, buffer)

    def _read(self, offset: int, buffer: memoryview) -> None:
        if offset < 0 or offset + len(buffer) > self.size:
            raise SourceError(f"{self._address.text}: nothing to read beyond its end")
        self._export.read_into(offset, buffer)


def _chunks(export: Export, context: str, grain: int) -> ChunkSet:
    """Chunks of which any part is dirty."""
    changed = ChunkSet()
    for start, end, state in export.stretches(context):
        if state:
            changed.add(start // grain, -(-end // grain))
    return changed


def _zeros(export: Export, grain: int) -> ChunkSet:
    """Chunks that read as zero as a whole. What is dirty and a hole was given up by the guest."""
    zero = ChunkSet()
    if ALLOCATION_CONTEXT not in export.contexts:
        return zero
    begin = end = 0
    for start, stop, state in chain(export.allocation(), [(export.size, export.size, 0)]):
        if state & Allocation.ZERO and start == end:
            end = stop
            continue
        zero.add(-(-begin // grain), -(-end // grain) if end == export.size else end // grain)
        begin, end = (start, stop) if state & Allocation.ZERO else (stop, stop)
    return zero
