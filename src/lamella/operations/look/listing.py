"""What is in a repository, as plain values for tables and JSON (design: `lamella list --json`)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from lamella.base.clock import iso
from lamella.base.ids import VolumeId
from lamella.format.inner import Refuted, was_rebuilt
from lamella.format.records import Ref
from lamella.history.catalogue import Snapshot, VolumeState
from lamella.memory.confirmations import Confirmations
from lamella.memory.verdicts import Verdicts
from lamella.repository.repository import Repository

Row = dict[str, Any]
CONSISTENCY = ("unknown", "live", "quiesced", "halted", "committed")


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
