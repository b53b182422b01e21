"""What happened to each volume, by day: from the history of a repository to figures that can be drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from lamella.base.clock import iso
from lamella.cli.everyday.health import facts, is_good
from lamella.history.catalogue import VolumeState
from lamella.operations.look.listing import consistency
from lamella.repository.repository import Repository

_LAST_MS = 253_402_250_000_000
"""A moment of the last day of the year 9999: later ones, which only a liar writes, are shown as this."""


@dataclass(slots=True)
class Day:
    """A day of a volume, or of several: how many snapshots it has, how many of them whole, and what went wrong."""

    snapshots: int = 0
    good: int = 0
    failed: int = 0
    """Runs that should have saved the volume, and did not."""
    stored_bytes: int = 0
    """What its runs added to the repository."""
    volumes: int = 0
    """Volumes with a whole snapshot."""


Days = dict[date, Day]


def with_past(repo: Repository, since_ms: int) -> dict[str, Any]:
    """The facts that `status` shows, and what happened before: a JSON value."""
    catalogue = repo.catalogue
    shown = catalogue.shown_names()
    held = [volume for volume in catalogue.volumes.values() if volume.snapshots]
    failed = _failed(repo)
    past = {
        shown[volume.volume_id]: {"history": _history(repo, volume), "failed": failed.get(volume.name, [])}
        for volume in held
    }
    return facts(repo, since_ms) | {"past": past}


def _history(repo: Repository, volume: VolumeState) -> list[dict[str, Any]]:
    """The snapshots, oldest first."""
    return [
        {
            "snapshot": one.name,
            "time": iso(one.added.time_ms),
            "stored_bytes": 0 if (figures := one.added.figures) is None else figures.stored_bytes,
            "good": is_good(repo, volume, one),
            "consistency": consistency([one]),
            "tags": list(one.tags),
        }
        for one in volume.snapshots
    ]


def _failed(repo: Repository) -> dict[str, list[dict[str, str]]]:
    """By the name of a volume: the runs that failed to save it, of those that saved another volume."""
    times = {one.name: one.added.time_ms for one in repo.catalogue.snapshots}
    found: dict[str, list[dict[str, str]]] = {}
    for name, run in sorted(repo.catalogue.runs.items()):
        for row in run.volumes:
            if row.failed and name in times:
                found.setdefault(row.name, []).append({"time": iso(times[name]), "reason": row.reason})
    return found


def local_day(text: str) -> date:
    """The day of a moment (ISO 8601, UTC) in this machine's zone."""
    moment = datetime.fromisoformat(text)
    return datetime.fromtimestamp(min(moment.timestamp(), _LAST_MS / 1000)).date()


def days_of(row: Mapping[str, Any]) -> Days:
    """The days of a volume's row."""
    days: Days = {}
    for one in row.get("history", ()):
        day = days.setdefault(local_day(one["time"]), Day())
        day.snapshots += 1
        day.good += one["good"]
        day.stored_bytes += one["stored_bytes"]
        day.volumes = int(day.good > 0)
    for one in row.get("failed", ()):
        days.setdefault(local_day(one["time"]), Day()).failed += 1
    return days


def together(found: Iterable[Days]) -> Days:
    """The days of several volumes as those of one."""
    days: Days = {}
    for one in found:
        for when, more in one.items():
            day = days.setdefault(when, Day())
            day.snapshots += more.snapshots
            day.good += more.good
            day.failed += more.failed
            day.stored_bytes += more.stored_bytes
            day.volumes += more.volumes
    return days
