"""The records of a run: tree notes and documents, ADD_SNAP for each volume, one commit (FORMAT 8)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lamella.base.clock import utc_text
from lamella.base.ids import SnapId, VolumeId
from lamella.format.cursor import clipped
from lamella.format.records import (
    DELTAS,
    NO_REF,
    AddSnap,
    Document,
    Figures,
    RawRecord,
    Ref,
    Run,
    RunVolume,
    Signed,
    raw,
)
from lamella.memory.ledger import LedgerEntry
from lamella.operations.backup.plan import COMPARE, FULL, INCREMENTAL
from lamella.operations.backup.stages import Read, VolumeResult
from lamella.operations.writing.attachments import put_document, put_tree_note
from lamella.operations.writing.session import WritingSession
from lamella.packs.packer import Packer
from lamella.packs.tree import Tree
from lamella.repository.repository import Repository

_LETTERS = "234567abcdefghijklmnopqrstuvwxyz"
"""In the order of their codes."""

MODES = {FULL: 1, INCREMENTAL: 2, COMPARE: 3}


def snapshot_name(now_ms: int) -> str:
    """UTC second and a suffix, half millisecond and half random: unique without asking, and in the order of time."""
    ms = now_ms % 1000
    return f"{utc_text(now_ms)}-" + "".join(_LETTERS[n % 32] for n in (ms // 32, ms, *os.urandom(2)))


def attach(
    session: WritingSession, reads: Sequence[Read], documents: Mapping[str, bytes], now: int
) -> list[tuple[Document, ...]]:
    """Put what goes with the trees, and wait until everything is durable; returns the documents of each volume."""
    attached = [_extras(session.packer(read.frozen.plan.domain_id), read, documents, now) for read in reads]
    session.settle()
    return attached


def _extras(packer: Packer, read: Read, documents: Mapping[str, bytes], now: int) -> tuple[Document, ...]:
    """Put the tree note of a new tree, and the documents."""
    plan = read.frozen.plan
    put_tree_note(packer, read.way.base, read.frozen.shape, read.tree.root, now, plan.volume)
    own = documents if plan.request.documents is None else plan.request.documents
    # A machine's disk brings what the machine is beside its disks.
    return tuple(put_document(packer, *one) for one in {**getattr(plan.request.source, "documents", {}), **own}.items())


def publish(
    repo: Repository,
    session: WritingSession,
    reads: Sequence[Read],
    attached: Sequence[tuple[Document, ...]],
    results: Sequence[VolumeResult],
    *,
    close: bool,
) -> tuple[str, list[LedgerEntry]]:
    """Publish what was read as one snapshot; returns its name, and for each volume which moment holds its bytes.

    Without `close` the run's session stays open, for a volume that was not saved. Raises StoreError, RolledBack;
    RepositoryError for a host that is not admitted where enrolment is closed by now.
    """
    name = snapshot_name(reads[0].frozen.plan.request.time_ms or repo.clock())
    handovers = dict.fromkeys(read.frozen.plan.handover for read in reads)
    records: list[RawRecord | Signed] = [record for record in handovers if record is not None]
    added: list[AddSnap] = []
    for read, documents in zip(reads, attached, strict=True):
        record = read.frozen.plan.record
        if record is not None:
            records.append(replace(record, chunk_log2=read.frozen.shape.chunk_log2))
        added.append(_add_snap(repo, session, read, name, documents))
        records.append(raw(added[-1]))
    records.append(raw(_run_record(name, reads, results)))
    head = session.publish(records, [one.snap_id for one in added], close=close).head
    repo.blobs.set_complete(read.tree.root for read in reads)
    repo.reload()
    repo.log.require_writable()  # an admin may have closed enrolment while this run went on
    refs = [Ref(head.writer, head.seq, one.snap_id) for one in added]
    return name, [_entry(read, ref) for read, ref in zip(reads, refs, strict=True)]


def _add_snap(
    repo: Repository, session: WritingSession, read: Read, name: str, documents: tuple[Document, ...]
) -> AddSnap:
    frozen, way, done = read.frozen, read.way, read.tree.figures
    figures = Figures(MODES[way.mode], done.read_bytes, done.stored_bytes, done.changed_chunks, done.new_chunks)
    return AddSnap(
        snap_id=SnapId(os.urandom(16)),
        volume_id=frozen.shape.volume_id,
        domain_id=frozen.plan.domain_id,
        chunk_log2=frozen.shape.chunk_log2,
        consistency=read.consistency,
        size=frozen.shape.size,
        root=read.tree.root,
        time_ms=frozen.plan.request.time_ms or frozen.time_ms,
        parent=NO_REF if way.base is None else way.base.ref,
        name=name,
        documents=documents,
        packs=session.listed_packs(frozen.plan.domain_id),
        inner=(*_required(repo, read), figures.encode(), *way.notes, *frozen.plan.request.notes),
    )


def _required(repo: Repository, read: Read) -> tuple[RawRecord, ...]:
    """The record that programs refuse which cannot read differences, if the tree has any or its base may have."""
    base, begun = read.way.base, read.way.begun
    has = read.tree.figures.delta_chunks > 0 or (base is not None and base.added.has_deltas)
    if not has and begun is not None:
        from lamella.operations.shared.differing_chunks import has_deltas  # a run that goes on from another one

        has = has_deltas(repo, read.frozen.plan.domain_id, Tree(read.frozen.shape, read.tree.root))
    return (RawRecord(DELTAS, b""),) if has else ()


def _run_record(name: str, reads: Sequence[Read], results: Sequence[VolumeResult]) -> Run:
    ids = {read.frozen.plan.volume: read.frozen.shape.volume_id for read in reads}
    entries = tuple(
        RunVolume(
            ids.get(one.volume, VolumeId(bytes(16))), clipped(one.volume), one.result == "failed", clipped(one.error)
        )
        for one in results
    )
    return Run(name, all(not entry.failed for entry in entries), entries)


def _entry(read: Read, ref: Ref) -> LedgerEntry:
    shape, source = read.frozen.shape, read.frozen.source
    moment = source.identity, source.driver, read.frozen.volume.checkpoint
    return LedgerEntry(ref, read.tree.root, shape.size, shape.chunk_log2, *moment)
