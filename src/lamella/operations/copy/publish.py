"""The records of copied snapshots: everything the originals say, and which snapshots they are copies of (FORMAT 8).

A checkpoint of a source serves the copy as it serves the original: the next backup there reads only what changed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from lamella.base.errors import IntegrityError, SourceError
from lamella.base.ids import DomainId, SnapId, VolumeId
from lamella.format.cursor import clipped
from lamella.format.inner import ORIGIN, Origin, OriginPlace, first_place
from lamella.format.node import Shape
from lamella.format.records import NO_REF, OPTIONAL, AddSnap, Document, RawRecord, Ref, Run, RunVolume, Volume, raw
from lamella.history.catalogue import Snapshot
from lamella.memory.ledger import Ledger
from lamella.operations.copy.plan import CopyRow, State
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.streaming import read_document
from lamella.operations.writing.attachments import put_document, put_tree_note
from lamella.operations.writing.chunks import VolumeRead
from lamella.operations.writing.session import WritingSession
from lamella.packs.packer import Packer
from lamella.repository.repository import Repository


@dataclass(slots=True)
class Copied:
    """A snapshot whose chunks and nodes are on their way into the target. `there`: what it became, once published."""

    row: CopyRow
    shape: Shape
    domain_id: DomainId
    base: Snapshot | None
    read: VolumeRead
    documents: tuple[Document, ...]
    there: Snapshot | None = None


def copy_documents(source: Repository, one: Selected, packer: Packer) -> tuple[Document, ...]:
    """Put a snapshot's documents. Raises SourceError if one cannot be read."""
    found: list[Document] = []
    for row in one.snapshot.added.documents:
        try:
            content = read_document(source, one, row.name)
        except IntegrityError as error:
            raise SourceError(f"document {row.name} cannot be read: {error.message}", obj=row.name) from error
        found.append(put_document(packer, row.name, content))
    return tuple(found)


class CopyPublisher:
    """Publishes copies, and knows what this process has published before."""

    def __init__(self, source: Repository, target: Repository) -> None:
        self._source = source
        self._target = target
        self._introduced: set[VolumeId] = set()
        self._there: dict[str, set[VolumeId]] = {}
        for snapshot in target.catalogue.snapshots:
            self._there.setdefault(snapshot.name, set()).add(snapshot.added.volume_id)

    def publish(self, session: WritingSession, done: list[Copied], rows: list[CopyRow]) -> None:
        """Publish copies of one run in one commit, and say in each what it became; `rows` are all of the run.

        Raises StoreError, RolledBack.
        """
        for one in done:
            packer, name = session.packer(one.domain_id), one.row.selected.volume.name
            put_tree_note(packer, one.base, one.shape, one.read.root, one.row.snapshot.added.time_ms, name)
        session.settle()
        records: list[RawRecord | Volume] = []
        made: list[AddSnap] = []
        for one in done:
            records += self._introduction(one)
            made.append(self._add_snap(session, one))
            records.append(raw(made[-1]))
            self._there.setdefault(made[-1].name, set()).add(made[-1].volume_id)
        run = self._run(made[0].name, rows)
        if run is not None:
            records.append(raw(run))
        head = session.publish(records, [added.snap_id for added in made]).head
        for one, added in zip(done, made, strict=True):
            one.there = Snapshot(Ref(head.writer, head.seq, added.snap_id), added, None, confirmed=True)
        self._target.blobs.set_complete(added.root for added in made)

    def _introduction(self, one: Copied) -> list[Volume]:
        destination = one.row.destination
        if destination is None or destination.record is None or destination.volume_id in self._introduced:
            return []
        self._introduced.add(destination.volume_id)
        return [destination.record]

    def _add_snap(self, session: WritingSession, one: Copied) -> AddSnap:
        """The original's record under the ids it has there; parent is the snapshot it shares with, if that is older."""
        added = one.row.snapshot.added
        before = one.base is not None and one.base.added.time_ms <= added.time_ms
        here = OriginPlace(self._source.repo_id, one.row.snapshot.ref)
        origin = Origin(first_place(*here, added), here)
        return replace(
            added,
            snap_id=SnapId(os.urandom(16)),
            volume_id=one.shape.volume_id,
            domain_id=one.domain_id,
            root=one.read.root,
            parent=one.base.ref if one.base is not None and before else NO_REF,
            documents=one.documents,
            packs=session.listed_packs(one.domain_id),
            inner=(*(one for one in added.inner if one.type >= OPTIONAL and one.type != ORIGIN), origin.encode()),
        )

    def _run(self, name: str, copies: list[CopyRow]) -> Run | None:
        """The run's record as far as it holds in the target, with the failed volumes once all others are there."""
        known = self._source.catalogue.runs.get(name)
        if known is None:
            return None
        ids = {row.snapshot.added.volume_id: row.destination.volume_id for row in copies if row.destination is not None}
        there = self._there.get(name, set())
        lost = {row.snapshot.added.volume_id: row.reason for row in copies if row.state == State.FAILED}
        rows: list[RunVolume] = []
        whole = True
        for row in known.volumes:
            volume_id = ids.get(row.volume_id, row.volume_id)
            if row.failed:
                continue
            if volume_id in there:
                rows.append(row._replace(volume_id=volume_id))
            elif row.volume_id in lost:
                rows.append(row._replace(failed=True, reason=clipped(f"not copied: {lost[row.volume_id]}")))
            else:
                whole = False
        rows += [row for row in known.volumes if row.failed and whole]
        return Run(name, not any(row.failed for row in rows), tuple(rows))


def carry_moment(source: Repository, here: Snapshot, target: Repository, there: Snapshot) -> None:
    """If this host keeps a checkpoint that holds the bytes of `here`, remember that it holds those of its copy, too.

    Nothing happens if the target has a newer snapshot with a moment of its own. Raises RepositoryError.
    """
    entry, _ = Ledger(source.memory, source.keys).entry(here.added.volume_id)
    held = None if entry is None else (entry.ref, entry.root, entry.size, entry.chunk_log2)
    if entry is None or held != (here.ref, here.added.root, here.added.size, here.added.chunk_log2):
        return
    ledger = Ledger(target.memory, target.keys)
    own, _ = ledger.entry(there.added.volume_id)
    if own is not None:
        times = [one.added.time_ms for one in target.catalogue.snapshots if one.ref == own.ref]
        if times and times[0] >= there.added.time_ms:
            return
    ledger.record(there.added.volume_id, replace(entry, ref=there.ref, root=there.added.root))
