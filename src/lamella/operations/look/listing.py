"""The content of a repository, as plain values for tables and JSON (design: `lamella list --json`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from lamella.base.clock import iso
from lamella.base.ids import VolumeId, WriterId
from lamella.format.inner import Refuted, claimed_ms, was_rebuilt
from lamella.format.records import Ref
from lamella.history.catalogue import Snapshot, VolumeState
from lamella.memory.confirmations import Confirmations
from lamella.operations.shared.latest import heads
from lamella.repository.repository import Repository

Row = dict[str, Any]
CONSISTENCY = ("unknown", "live", "quiesced", "halted", "committed", "changed")


def consistency(snapshots: Iterable[Snapshot]) -> str:
    """The weakest consistency among these snapshots, in a word."""
    seen = {CONSISTENCY[snapshot.added.consistency] for snapshot in snapshots}
    return min(seen, key=("changed", *CONSISTENCY).index)


def claimed_time(snapshots: Iterable[Snapshot]) -> str:
    """The moment that streams among them show, as their user said; empty if nothing was said."""
    claims = [claim for one in snapshots if (claim := claimed_ms(one.added)) is not None]
    return iso(min(claims)) if claims else ""


def volumes(repo: Repository) -> list[Row]:
    """One row a volume that has snapshots, by name."""
    shown = repo.catalogue.shown_names()
    held = [volume for volume in repo.catalogue.volumes.values() if volume.snapshots]
    rows = [_volume_row(repo, volume, shown[volume.volume_id]) for volume in held]
    if (repo.proofs.directory / "verified.json").exists():
        from lamella.memory.verdicts import add_verdicts

        add_verdicts(repo.proofs, rows)
    if (repo.proofs.directory / "drilled.json").exists():
        from lamella.memory.drills import add_drills  # on few hosts

        add_drills(repo.proofs, rows)
    return sorted(rows, key=lambda row: str(row["volume"]))


def _volume_row(repo: Repository, volume: VolumeState, name: str) -> Row:
    found = heads(repo, volume)
    newest = found[0] if found else None
    return {
        "volume": name,
        "id": volume.volume_id.hex(),
        "identity": volume.identity.decode("utf-8", "backslashreplace"),
        "domain": volume.domain_label,
        "owners": sorted(writer.hex() for writer in volume.owners),
        "snapshots": len(volume.snapshots),
        "claims": sum(snapshot.claim for snapshot in volume.snapshots),
        "latest": "" if newest is None else newest.name,
        "latest_time": "" if newest is None else iso(newest.added.time_ms),
        "size": 0 if newest is None else newest.added.size,
        "consistency": "" if newest is None else consistency([newest]),
        "as_late": [one.name for one in found[1:]],
        "verified": None,
        "drilled": None,
    }


def snapshots(repo: Repository, volume: VolumeState | None = None) -> list[Row]:
    """One row a run, oldest first; of one volume if given."""
    shown = repo.catalogue.shown_names()
    runs: dict[tuple[str, WriterId | None], list[Snapshot]] = defaultdict(list)
    for snapshot in repo.catalogue.snapshots:
        if volume is None or snapshot.added.volume_id == volume.volume_id:
            runs[snapshot.name, snapshot.series.claimant].append(snapshot)
    waiting = set(Confirmations(repo.memory).waiting())
    rows = [_run_row(repo, found, shown, waiting) for found in runs.values()]
    return sorted(rows, key=lambda row: (str(row["time"]), str(row["snapshot"])))


def _run_row(repo: Repository, found: list[Snapshot], shown: dict[VolumeId, str], waiting: set[Ref]) -> Row:
    name = found[0].name
    claimant = found[0].series.claimant
    run = repo.catalogue.runs.get(name)
    lost = sorted(shown[one.added.volume_id] for one in found if one.lost is not None)
    moment = consistency(found)
    whole = "changed" if moment == "changed" else "complete"
    failed = [] if run is None else [{"volume": row.name, "reason": row.reason} for row in run.volumes if row.failed]
    return {
        "snapshot": name,
        "time": iso(min(snapshot.added.time_ms for snapshot in found)),
        "claimed_time": claimed_time(found),
        "tags": sorted({tag for snapshot in found for tag in snapshot.tags}),
        "pinned": sorted({snapshot.pinned for snapshot in found if snapshot.pinned is not None}),
        "marked_removed": any(snapshot.marked_removed for snapshot in found),
        "volumes": sorted(shown[snapshot.added.volume_id] for snapshot in found),
        "expelled": any(snapshot.expelled for snapshot in found),
        "claimant": "" if claimant is None else claimant.hex(),
        "result": "incomplete" if lost or (run is not None and not run.complete) else whole,
        "failed": failed,
        "confirmed": all(snapshot.confirmed or snapshot.ref in waiting for snapshot in found),
        "size": sum(snapshot.added.size for snapshot in found),
        "consistency": moment,
        "lost": lost,
        "rebuilt": any(was_rebuilt(snapshot.added) for snapshot in found),
        "map_refuted": any(Refuted.of(snapshot.added) is not None for snapshot in found),
    }
