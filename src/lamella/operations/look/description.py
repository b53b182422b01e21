"""A repository, or one snapshot, as plain values: `lamella info`."""

from __future__ import annotations

from lamella.base.clock import iso
from lamella.format.image import Holds, ImageNote
from lamella.format.inner import Origin, Refuted, Sampled, was_rebuilt
from lamella.format.lost import Lost
from lamella.format.node import Shape
from lamella.format.scrubbed import ScrubbedNote
from lamella.memory.confirmations import Confirmations
from lamella.memory.drills import Drills
from lamella.operations.look.listing import CONSISTENCY, Row, claimed_time
from lamella.operations.shared.heads import fingerprint
from lamella.operations.shared.selection import Selected
from lamella.repository.repository import Repository

_MODES = {1: "full", 2: "incremental", 3: "compare"}


def describe(repo: Repository, selected: Selected | None = None) -> Row:
    """A repository, or one snapshot of a volume."""
    return _repository(repo) if selected is None else _snapshot(repo, selected)


def _repository(repo: Repository) -> Row:
    catalogue = repo.catalogue
    return {
        "repository": repo.store.url,
        "id": repo.repo_id.hex(),
        "id_algorithm": {1: "hmac-sha256", 2: "blake2b"}[repo.keys.marker.id_alg],
        "fingerprint": fingerprint(repo),
        "role": "writer" if repo.keys.prune_seed is None else "admin",
        "enrolment": "open" if repo.history.admission is None else str(repo.history.admission),
        "volumes": sum(bool(volume.snapshots) for volume in catalogue.volumes.values()),
        "snapshots": len({snapshot.name for snapshot in catalogue.snapshots}),
        "key": "" if (own := repo.memory.writer_key()) is None else own.public.hex(),
        "writers": [
            {
                "writer": chain.writer.hex(),
                "label": catalogue.writers[chain.writer].label if chain.writer in catalogue.writers else "",
                "commits": chain.head.seq if chain.head is not None else 0,
                "this_host": chain.writer == repo.own_writer,
            }
            for chain in repo.history.chains.values()
        ],
        "history_checked": "whole" if repo.history.whole else "since the newest checkpoint",
        "notes": list(catalogue.notes),
    }


def _snapshot(repo: Repository, selected: Selected) -> Row:
    added = selected.snapshot.added
    figures = added.figures
    shape = Shape(added.volume_id, added.size, added.chunk_log2)
    repo.refresh_map()
    root = repo.tree_reader(added.domain_id).node(shape, added.root, shape.depth - 1, 0)
    row: Row = {
        "volume": selected.volume_name,
        "snapshot": added.name,
        "time": iso(added.time_ms),
        "claimed_time": claimed_time([selected.snapshot]),
        "size": added.size,
        "data_bytes": min(root.data_below * shape.chunk_size, added.size),
        "chunk_size": shape.chunk_size,
        "consistency": CONSISTENCY[added.consistency],
        "image": None if (image := ImageNote.of(added)) is None else _image(image),
        "scrubbed": None
        if (note := ScrubbedNote.of(added)) is None
        else note._asdict() | {"patterns": [*note.patterns]},
        "confirmed": selected.snapshot.confirmed or selected.snapshot.ref in Confirmations(repo.memory).waiting(),
        "tags": list(selected.snapshot.tags),
        "pinned": selected.snapshot.pinned,
        "marked_removed": selected.snapshot.marked_removed,
        "writer": selected.snapshot.ref.writer.hex(),
        "identity": selected.volume.identity.decode("utf-8", "backslashreplace"),
        "copied_from": "" if (origin := Origin.of(added)) is None else origin.copied.repo_id.hex(),
        "documents": [{"name": document.name, "size": document.size} for document in added.documents],
    }
    if figures is not None:
        row |= {
            "mode": _MODES.get(figures.mode, "unknown"),
            "read_bytes": figures.read_bytes,
            "stored_bytes": figures.stored_bytes,
            "changed_chunks": figures.changed_chunks,
            "new_chunks": figures.new_chunks,
        }
    row["rebuilt"] = was_rebuilt(added)
    row["lost"] = None if selected.snapshot.lost is None else _lost(selected.snapshot.lost)
    sampled, refuted = Sampled.of(added), Refuted.of(added)
    row["sampled_bytes"] = 0 if sampled is None else sampled.sampled_bytes
    drilled = Drills(repo.proofs).all().get(added.volume_id)
    row["drilled"] = None if drilled is None else drilled.row()
    row["map_refuted"] = None if refuted is None else refuted._asdict()
    return row


def _image(image: ImageNote) -> Row:
    """The format of an image, and whether the volume is that file or the disk in it."""
    holds = "disk" if image.holds == Holds.DISK else "file"
    return {"format": image.format, "holds": holds, "size": image.size, "files": list(image.files)}


def _lost(lost: Lost) -> Row:
    """The parts that a repair recorded as lost."""
    return {
        "bytes": lost.lost_bytes,
        "ranges": [{"start": start, "end": end} for start, end in lost.ranges],
        "documents": list(lost.documents),
    }
