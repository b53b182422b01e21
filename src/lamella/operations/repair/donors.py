"""Where lost content may still be had: the live source of a volume, and other repositories.

A donor is never believed: what it gives is only used if it has the id that is missing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol

from lamella.base.errors import IntegrityError, LamellaError, SourceError, StoreError
from lamella.base.extents import Extent
from lamella.base.ids import ChunkId, DomainId, VolumeId
from lamella.base.trust import Opened
from lamella.format.container import Kind
from lamella.format.node import Slot
from lamella.history.catalogue import VolumeState
from lamella.operations.shared.live_source import live_source
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.streaming import read_document
from lamella.repository.repository import Repository
from lamella.sources.base import FrozenVolume, Source


class DonorView(Protocol):
    """One state of a volume somewhere else."""

    @property
    def name(self) -> str:
        """For messages."""

    def read(self, offset: int, length: int) -> bytes | None:
        """The bytes there, None if they cannot be had."""

    def unallocated(self, start: int, end: int) -> bool:
        """Whether all of a range that reads as zero is known to have no space behind it."""

    def document(self, name: str) -> bytes | None:
        """A document that belongs to it."""


class SourceView:
    """A frozen live source."""

    def __init__(self, name: str, frozen: FrozenVolume) -> None:
        self.name = name
        self._frozen = frozen
        self._extents: list[Extent] | None = None

    def read(self, offset: int, length: int) -> bytes | None:
        """The bytes there, None behind the end or if reading fails."""
        if offset + length > self._frozen.size:
            return None
        buffer = bytearray(length)
        try:
            self._frozen.read_into(offset, memoryview(buffer))
        except SourceError:
            return None
        return bytes(buffer)

    def unallocated(self, start: int, end: int) -> bool:
        """Whether the source's own map has no space there."""
        if self._extents is None:
            self._extents = list(self._frozen.allocated())
        place = bisect_right(self._extents, start, key=lambda extent: extent.start)
        near = self._extents[max(0, place - 1) : place + 1]
        return not any(extent.start < end and extent.end > start for extent in near)

    def document(self, name: str) -> bytes | None:
        """Always None: a source has no documents."""
        return None


class ForeignSnapshot:
    """A snapshot in another repository, whatever its keys and chunk size."""

    def __init__(self, repo: Repository, selected: Selected) -> None:
        self._repo = repo
        self._selected = selected
        self._tree = repo.tree(selected.snapshot)
        self._domain_id = selected.snapshot.added.domain_id
        self.name = f"{selected.text} in {repo.store.url}"

    def read(self, offset: int, length: int) -> bytes | None:
        """The bytes there, None behind the end or if they cannot be read."""
        shape = self._tree.shape
        if offset + length > shape.size or not length:
            return None
        pieces: list[bytes] = []
        first, end = offset >> shape.chunk_log2, -(-(offset + length) >> shape.chunk_log2)
        try:
            for run in self._repo.tree_reader(self._domain_id).runs(self._tree, first, end):
                low, high = run.first << shape.chunk_log2, min(run.end << shape.chunk_log2, shape.size)
                if isinstance(run.slot, bytes):
                    pieces.append(self._repo.contents.get(self._domain_id, Kind.CHUNK, run.slot, high - low))
                else:
                    pieces.append(bytes(high - low))
        except (IntegrityError, StoreError):
            return None
        begin = offset - (first << shape.chunk_log2)
        return b"".join(pieces)[begin : begin + length]

    def unallocated(self, start: int, end: int) -> bool:
        """Whether the other manifest has only holes there."""
        log2 = self._tree.shape.chunk_log2
        runs = self._repo.tree_reader(self._domain_id).runs(self._tree, start >> log2, -(-end >> log2))
        return all(run.slot == Slot.HOLE for run in runs)

    def document(self, name: str) -> bytes | None:
        """The document of that name, if the snapshot has it whole."""
        try:
            return read_document(self._repo, self._selected, name)
        except LamellaError:
            return None


class Donors:
    """All donors of one repair. A context manager: sources stay frozen until it is left."""

    def __init__(self, repo: Repository, sources: Mapping[str, Source], others: Sequence[Repository]) -> None:
        self._repo = repo
        self._sources = sources
        self._others = others
        self._live: dict[VolumeId, SourceView | None] = {}
        self._held = ExitStack()
        self.notes: list[str] = []
        """Donors that could not be used, and why."""
        for other in others:
            other.refresh_map()

    def __enter__(self) -> Donors:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def twins(self) -> list[Repository]:
        """Copies of this very repository: same keys, same objects."""
        return [other for other in self._others if other.repo_id == self._repo.repo_id]

    def by_id(self, domain_id: DomainId, kind: Kind, id_: ChunkId) -> Opened | None:
        """A content with this id from a copy of this repository."""
        for other in self.twins():
            try:
                return other.contents.get(domain_id, kind, id_)
            except (IntegrityError, StoreError):
                continue
        return None

    def views(self, one: Selected) -> Iterator[DonorView]:
        """Where a snapshot's bytes may be found: the same moment elsewhere first, then the live source, then others."""
        elsewhere = [view for other in self._others for view in _views(other, one)]
        yield from (view for alike, view in elsewhere if alike)
        live = self._live_view(one)
        if live is not None:
            yield live
        yield from (view for alike, view in elsewhere if not alike)

    def _live_view(self, one: Selected) -> SourceView | None:
        volume_id = one.volume.volume_id
        if volume_id not in self._live:
            self._live[volume_id] = None
            try:
                source = self._sources.get(one.volume_name) or live_source(self._repo, one)
                frozen = self._held.enter_context(source.freeze())
                self._live[volume_id] = SourceView(f"the source of {one.volume_name}", frozen)
            except SourceError as error:
                self.notes.append(f"the source of {one.volume_name} cannot be used: {error.message}")
        return self._live[volume_id]


def _views(other: Repository, one: Selected) -> Iterator[tuple[bool, ForeignSnapshot]]:
    """Snapshots of the same volume in another repository, newest first; True for those of the same moment."""
    for volume in other.catalogue.volumes.values():
        if _is_same(volume, one.volume):
            for snapshot in reversed(volume.snapshots):
                alike = snapshot.added.time_ms == one.snapshot.added.time_ms
                yield alike, ForeignSnapshot(other, Selected(volume.name, volume, snapshot))


def _is_same(volume: VolumeState, other: VolumeState) -> bool:
    """By id, identity or name: a wrong guess costs reading, and gives nothing with the right id."""
    if volume.volume_id == other.volume_id or (volume.identity and volume.identity == other.identity):
        return True
    return volume.name == other.name
