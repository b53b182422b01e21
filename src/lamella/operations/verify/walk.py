"""Following snapshots from their roots: every reference must lead to a place, and at some levels be read."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from lamella.base.errors import (
    IntegrityError,
    LamellaError,
    ObjectCold,
    StoreError,
    StoreUnavailable,
    UnknownFormat,
)
from lamella.base.events import Progress, Reporter
from lamella.base.ids import ChunkId
from lamella.format.container import Kind
from lamella.format.node import DeltaChunk, Shape
from lamella.operations.shared.findings import VerifyResult
from lamella.operations.shared.selection import Selected
from lamella.packs.deltas import present
from lamella.packs.tree import SlotRun, Tree
from lamella.packs.tree_changes import changes
from lamella.repository.repository import Repository
from lamella.run.pipeline import ordered_map

_BATCH = 64
Trouble = tuple[str, str]
"""Kind of finding, message."""


class _Chunk(NamedTuple):
    """A DATA chunk: its bytes in the volume, its id, and whether it is to be read."""

    offset: int
    length: int
    id: ChunkId
    read: bool


@dataclass(slots=True)
class _Seen:
    """The result of checking some chunks."""

    troubles: list[Trouble] = field(default_factory=list)
    chunks: int = 0
    read_bytes: int = 0
    cold: list[str] = field(default_factory=list)
    """Packs that must be thawed before their chunks can be read."""
    end: int = 0
    """Bytes of the volume up to the last of them."""


class SnapshotWalk:
    """Follows trees from snapshot to snapshot, and looks only at what differs from the snapshot before.

    `percent` of the chunks are read, at least one of each snapshot that brings any; 0 reads none. With `trust_map` a
    tree that this host knows to be complete is not followed: the listing has shown that no pack was lost since. Without
    `counts` the chunks are not counted: reading the packs counted them. What a difference makes, no pack tells: then
    every chunk that is stored as one is read.
    """

    def __init__(  # noqa: PLR0913 - one switch for each difference between the levels
        self,
        repo: Repository,
        result: VerifyResult,
        reporter: Reporter,
        *,
        percent: float,
        trust_map: bool,
        counts: bool,
        workers: int,
    ) -> None:
        self._repo = repo
        self._result = result
        self._reporter = reporter
        self._percent = percent
        self._trust_map = trust_map
        self._counts = counts
        self._workers = workers
        self._before: tuple[Selected, Tree] | None = None
        self._random = random.SystemRandom()

    def snapshot(self, one: Selected) -> None:
        """Check one snapshot's tree, chunks and documents."""
        tree = self._repo.tree(one.snapshot)
        if not one.snapshot.added.usable:
            self._result.note("tree", one.text, "needs a newer version of lamella: not checked")
            return
        troubles = self._documents(one)
        try:
            troubles += self._known(one, tree) if self._is_known(tree) else self._followed(one, tree)
        except StoreUnavailable:
            raise
        except ObjectCold as error:  # a part of the manifest
            self._result.must_thaw(error.obj)
            self._before = None
            return
        except (IntegrityError, UnknownFormat) as error:
            troubles.append(("tree", error.message))
        self._result.checked_objects += 1
        for kind, message in troubles:
            self._result.damage(kind, one.text, message)
        if troubles:
            self._result.cannot_restore(one.text)
        else:
            self._repo.blobs.set_complete([tree.root])
        # A damaged tree is no base: what the next snapshot shares with it must be reported there, too.
        self._before = None if troubles else (one, tree)

    def _is_known(self, tree: Tree) -> bool:
        return self._trust_map and self._repo.blobs.complete(tree.root)

    def _known(self, one: Selected, tree: Tree) -> list[Trouble]:
        """A tree of which every blob was in the map before, and no pack has gone: only its root is read."""
        reader = self._repo.tree_reader(one.snapshot.added.domain_id)
        root = reader.node(tree.shape, tree.root, tree.shape.depth - 1, 0)
        self._result.checked_chunks += root.data_below if self._counts else 0
        return []

    def _followed(self, one: Selected, tree: Tree) -> list[Trouble]:
        troubles: list[Trouble] = []
        batches = ordered_map(lambda batch: self._look(one, batch), self._batches(one, tree), workers=self._workers)
        for seen in batches:
            troubles += seen.troubles
            self._result.checked_chunks += seen.chunks if self._counts else 0
            self._result.checked_bytes += seen.read_bytes
            for name in seen.cold:
                self._result.must_thaw(name)
            self._reporter(Progress("verify", one.text, min(seen.end, tree.shape.size), tree.shape.size))
        return troubles

    def _documents(self, one: Selected) -> list[Trouble]:
        added = one.snapshot.added
        troubles: list[Trouble] = []
        for document in added.documents:
            for part in document.parts:
                try:
                    if self._trust_map and self._repo.blobs.has(Kind.DOCUMENT, part):
                        continue
                    self._repo.contents.get(added.domain_id, Kind.DOCUMENT, part)
                except StoreUnavailable:
                    raise
                except ObjectCold as error:
                    self._result.must_thaw(error.obj)
                except (IntegrityError, StoreError) as error:
                    troubles.append(("document", f"document {document.name} cannot be read: {error.message}"))
        return troubles

    # -- chunks -------------------------------------------------------------------------------------------------------

    def _batches(self, one: Selected, tree: Tree) -> Iterator[list[_Chunk]]:
        batch: list[_Chunk] = []
        chosen = False
        spare: _Chunk | None = None
        for number, chunk in enumerate(self._data(tree.shape, self._runs(one, tree)), 1):
            chosen = chosen or chunk.read
            if self._percent and not chosen and not self._random.randrange(number):
                spare = chunk
            batch.append(chunk)
            if len(batch) == _BATCH:
                yield batch
                batch = []
        if spare is not None and self._percent and not chosen:
            batch = [chunk._replace(read=True) if chunk is spare else chunk for chunk in batch]
            if not any(chunk.read for chunk in batch):
                self._result.checked_chunks -= 1  # it is looked at twice
                batch.append(spare._replace(read=True))
        if batch:
            yield batch

    def _data(self, shape: Shape, runs: Iterator[SlotRun]) -> Iterator[_Chunk]:
        """The DATA chunks among runs."""
        for run in runs:
            if isinstance(run.slot, bytes):
                read = bool(self._percent) and self._random.random() * 100 < self._percent
                read |= not self._counts and not self._trust_map and isinstance(run.slot, DeltaChunk)
                yield _Chunk(run.first << shape.chunk_log2, shape.chunk_length(run.first), run.slot, read)

    def _runs(self, one: Selected, tree: Tree) -> Iterator[SlotRun]:
        reader = self._repo.tree_reader(one.snapshot.added.domain_id)
        if self._before is not None and _comparable(self._before[0], one):
            for run, _ in changes(reader, self._before[1], tree):
                yield run
        else:
            yield from reader.runs(tree)

    def _look(self, one: Selected, batch: list[_Chunk]) -> _Seen:
        domain_id = one.snapshot.added.domain_id
        there = present(self._repo.blobs, domain_id, [(chunk.id, chunk.length) for chunk in batch])
        seen = _Seen(end=batch[-1].offset + batch[-1].length)
        for chunk, found in zip(batch, there, strict=True):
            if found:
                seen.chunks += 1
            if not found or chunk.read:
                self._read(seen, one, chunk, counted=found)
        return seen

    def _read(self, seen: _Seen, one: Selected, chunk: _Chunk, *, counted: bool) -> None:
        """Read a chunk: because it was chosen, or because the map has no place for it any more."""
        try:
            self._repo.contents.get(one.snapshot.added.domain_id, Kind.CHUNK, chunk.id, chunk.length)
        except StoreUnavailable:
            raise
        except ObjectCold as error:
            seen.cold.append(error.obj)
            return
        except LamellaError as error:
            text = f"bytes {chunk.offset} to {chunk.offset + chunk.length}: {error.message}"
            seen.troubles.append(("chunk", text))
            return
        seen.chunks += not counted
        seen.read_bytes += chunk.length if chunk.read else 0


def _comparable(before: Selected, one: Selected) -> bool:
    a, b = before.snapshot.added, one.snapshot.added
    return (a.volume_id, a.domain_id, a.chunk_log2) == (b.volume_id, b.domain_id, b.chunk_log2)
