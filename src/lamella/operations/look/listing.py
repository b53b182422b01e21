"""What is in a repository, as plain values for tables and JSON (design: `lamella list --json`)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from lamella.base.clock import iso
from lamella.base.ids import VolumeId
from lamella.format.inner import Origin, Refuted, Sampled, was_rebuilt
from lamella.format.lost import Lost
from lamella.format.node import Shape
from lamella.format.records import Ref
from lamella.history.catalogue import Snapshot, VolumeState
from lamella.memory.verdicts import Confirmations, Verdicts
from lamella.operations.shared.heads import fingerprint
from lamella.operations.shared.selection import Selected
from lamella.repository.repository import Repository

Row = dict[str, Any]
CONSISTENCY = ("unknown", "live", "quiesced", "halted", "committed")
_MODES = {1: "full", 2: "incremental", 3: "compare"}


def volumes(repo: Repository) -> list[Row]:
    """One row a volume that has snapshots, by name."""
    shown = repo.catalogue.shown_names()
    held = [volume for volume in repo.catalogue.volumes.values() if volume.snapshots]
    verdicts = Verdicts(repo.memory)
    rows = [
        _volume_row(volume, shown[volume.volume_id]) | {"verified": _verified(verdicts, volume.volume_id)}
        for volume in held
    ]
    return sorted(rows, key=lambda row: str(row["volume"]))


def _volume_row(volume: VolumeState, name: str) -> Row:
    newest = volume.snapshots[-1] if volume.snapshots else None
    return {
        "volume": name,
        "id": volume.volume_id.hex(),
        "identity": volume.identity.decode("utf-8", "backslashreplace"),
        "domain": volume.domain_label,
        "snapshots": len(volume.snapshots),
        "latest": "" if newest is None else newest.name,
        "latest_time": "" if newest is None else iso(newest.added.time_ms),
        "size": 0 if newest is None else newest.added.size,
    }


def _verified(verdicts: Verdicts, volume_id: VolumeId) -> Row | None:
    """This host's last verdict about a volume; None if it never verified it."""
    verdict = verdicts.of(volume_id)
    return None if verdict is None else verdict.row()


def snapshots(repo: Repository, volume: VolumeState | None = None) -> list[Row]:
    """One row a run, oldest first; of one volume if given."""
    shown = repo.catalogue.shown_names()
    runs: dict[str, list[Snapshot]] = defaultdict(list)
    for snapshot in repo.catalogue.snapshots:
        if volume is None or snapshot.added.volume_id == volume.volume_id:
            runs[snapshot.name].append(snapshot)
    waiting = set(Confirmations(repo.memory).waiting())
    rows = [_run_row(repo, found, shown, waiting) for found in runs.values()]
    return sorted(rows, key=lambda row: (str(row["time"]), str(row["snapshot"])))


def _run_row(repo: Repository, found: list[Snapshot], shown: dict[VolumeId, str], waiting: set[Ref]) -> Row:
    name = found[0].name
    run = repo.catalogue.runs.get(name)
    lost = sorted(shown[one.added.volume_id] for one in found if one.lost is not None)
    failed = [] if run is None else [{"volume": row.name, "reason": row.reason} for row in run.volumes if row.failed]
    return {
        "snapshot": name,
        "time": iso(min(snapshot.added.time_ms for snapshot in found)),
        "tags": sorted({tag for snapshot in found for tag in snapshot.tags}),
        "pinned": sorted({snapshot.pinned for snapshot in found if snapshot.pinned is not None}),
        "marked_removed": any(snapshot.marked_removed for snapshot in found),
        "volumes": sorted(shown[snapshot.added.volume_id] for snapshot in found),
        "result": "complete" if not lost and (run is None or run.complete) else "incomplete",
        "failed": failed,
        "confirmed": all(snapshot.confirmed or snapshot.ref in waiting for snapshot in found),
        "size": sum(snapshot.added.size for snapshot in found),
        "lost": lost,
        "rebuilt": any(was_rebuilt(snapshot.added) for snapshot in found),
        "map_refuted": any(Refuted.of(snapshot.added) is not None for snapshot in found),
    }


def _lost(lost: Lost) -> Row:
    """What a repair said is gone."""
    return {
        "bytes": lost.lost_bytes,
        "ranges": [{"start": start, "end": end} for start, end in lost.ranges],
        "documents": list(lost.documents),
    }


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
        "volumes": sum(bool(volume.snapshots) for volume in catalogue.volumes.values()),
        "snapshots": len({snapshot.name for snapshot in catalogue.snapshots}),
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
        "size": added.size,
        "data_bytes": min(root.data_below * shape.chunk_size, added.size),
        "chunk_size": shape.chunk_size,
        "consistency": CONSISTENCY[added.consistency],
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
    row["map_refuted"] = None if refuted is None else refuted._asdict()
    return row
