"""The records of a run: tree notes and documents, ADD_SNAP for each volume, one commit (FORMAT 8)."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lamella.base.clock import utc_text
from lamella.base.ids import ChunkId, SnapId, VolumeId
from lamella.format import document
from lamella.format.container import Kind
from lamella.format.cursor import clipped
from lamella.format.node import Shape
from lamella.format.records import NO_REF, AddSnap, Document, Figures, RawRecord, Ref, Run, RunVolume, Volume, raw
from lamella.operations.backup.plan import MODES, PlanRow
from lamella.operations.backup.result import VolumeResult
from lamella.operations.writing.chunks import VolumeRead
from lamella.operations.writing.session import Session
from lamella.packs.packer import Packer
from lamella.repository.repository import Repository
from lamella.sources.base import FrozenVolume


@dataclass(slots=True)
class Saved:
    """A volume on its way into a snapshot: what was frozen, read, and after publication where it stands."""

    row: PlanRow
    shape: Shape
    frozen_ms: int
    frozen: FrozenVolume
    result: VolumeResult
    read: VolumeRead = field(default_factory=lambda: VolumeRead(ChunkId(b"")))
    consistency: int = 0
    inner: list[RawRecord] = field(default_factory=list)
    """Inner records of its ADD_SNAP beyond the figures."""
    goes_on: bool = False
    """What a broken run had read of it was used."""
    ref: Ref | None = None
    """The snapshot, once it is published."""


def snapshot_name(now_ms: int) -> str:
    """UTC second and a random suffix: unique without asking anybody."""
    return f"{utc_text(now_ms)}-{base64.b32encode(os.urandom(5)).decode('ascii').lower()[:4]}"


def attach(
    session: Session, saved: Sequence[Saved], documents: Mapping[str, bytes], now: int
) -> list[tuple[Document, ...]]:
    """Put what goes with the trees, and wait until everything is durable; returns each one's documents.

    Raises StoreError.
    """
    attached = [_extras(session, one, _documents_of(one, documents), now) for one in saved]
    session.settle()
    return attached


def publish(
    repo: Repository,
    session: Session,
    saved: Sequence[Saved],
    attached: Sequence[tuple[Document, ...]],
    results: Sequence[VolumeResult],
    *,
    close: bool,
) -> str:
    """Publish the saved volumes as one snapshot; returns its name. Raises StoreError, RolledBack.

    Without `close` the run's session stays open, for a volume that was not saved.
    """
    name = snapshot_name(repo.clock())
    records: list[RawRecord | Volume] = []
    snap_ids: list[SnapId] = []
    for one, its_documents in zip(saved, attached, strict=True):
        if one.row.record is not None:
            records.append(replace(one.row.record, chunk_log2=one.shape.chunk_log2))
        snap_ids.append(SnapId(os.urandom(16)))
        records.append(raw(_add_snap(session, one, snap_ids[-1], name, its_documents)))
    records.append(raw(_run_record(name, saved, results)))
    head = session.publish(records, snap_ids, close=close).head
    for one, snap_id in zip(saved, snap_ids, strict=True):
        one.ref = Ref(head.writer, head.seq, snap_id)
    repo.blobs.set_complete(one.read.root for one in saved)
    repo.reload()
    return name


def _documents_of(one: Saved, documents: Mapping[str, bytes]) -> Mapping[str, bytes]:
    own = one.row.request.documents
    return documents if own is None else own


def _extras(session: Session, one: Saved, documents: Mapping[str, bytes], now: int) -> tuple[Document, ...]:
    """Put the tree note of a new tree, and the documents."""
    packer = session.packer(one.row.domain_id)
    base = one.row.base
    if base is None or base.added.root != one.read.root or base.added.size != one.shape.size:
        shape = one.shape
        note = document.TreeNote(shape.volume_id, one.read.root, shape.size, now, shape.chunk_log2, one.row.volume)
        packer.store_node(Kind.DOCUMENT, note.encode())
    return tuple(_document(packer, name, content) for name, content in documents.items())


def _document(packer: Packer, name: str, content: bytes) -> Document:
    parts = tuple(packer.store_node(Kind.DOCUMENT, part) for part in document.parts(content))
    return Document(name, len(content), parts)


def _add_snap(session: Session, one: Saved, snap_id: SnapId, name: str, documents: tuple[Document, ...]) -> AddSnap:
    read = one.read
    mode = MODES[one.result.mode]
    figures = Figures(mode, read.read_bytes, read.stored_bytes, read.changed_chunks, read.new_chunks)
    return AddSnap(
        snap_id,
        one.shape.volume_id,
        one.row.domain_id,
        one.shape.chunk_log2,
        one.consistency,
        one.shape.size,
        read.root,
        one.frozen_ms,
        NO_REF if one.row.base is None else one.row.base.ref,
        name,
        documents,
        session.packs(one.row.domain_id),
        (figures.encode(), *one.inner),
    )


def _run_record(name: str, saved: Sequence[Saved], results: Sequence[VolumeResult]) -> Run:
    ids = {one.row.volume: one.shape.volume_id for one in saved}
    entries = tuple(
        RunVolume(
            ids.get(one.volume, VolumeId(bytes(16))), clipped(one.volume), one.result != "complete", clipped(one.error)
        )
        for one in results
    )
    return Run(name, all(not entry.failed for entry in entries), entries)
