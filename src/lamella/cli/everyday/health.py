"""Green, yellow or red: what is said of volumes, repositories and profiles, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lamella.base.clock import iso
from lamella.cli.everyday.profiles import Profile
from lamella.cli.everyday.troubles import staleness
from lamella.history.catalogue import Snapshot, VolumeState
from lamella.memory.runs import ProfileRecord
from lamella.memory.verdicts import Verdicts
from lamella.operations.look.listing import consistency
from lamella.repository.repository import Repository

OK, WARN, BAD = "ok", "warn", "bad"
_RANK = {OK: 0, WARN: 1, BAD: 2}
_DAY_MS = 86_400_000
GROWTH_DAYS = 7
UNVERIFIED_DAYS = 30


@dataclass(slots=True)
class Grade:
    """A state with its reasons; each reason may only make it worse."""

    state: str = OK
    reasons: list[str] = field(default_factory=list)

    def add(self, state: str, reason: str) -> None:
        """Take in one more reason."""
        self.reasons.append(reason)
        self.state = max(self.state, state, key=_RANK.__getitem__)


def worst(states: Iterable[str]) -> str:
    """The worst of several states; OK without any."""
    return max(states, key=_RANK.__getitem__, default=OK)


def volume_rows(
    repo: Repository, name: str, profiles: Mapping[str, Profile], records: Mapping[str, ProfileRecord], now: int
) -> list[dict[str, Any]]:
    """One row a volume of an open repository that the user calls `name`."""
    shown = repo.catalogue.shown_names()
    verdicts = Verdicts(repo.memory)
    rows = []
    for volume in repo.catalogue.volumes.values():
        if not volume.snapshots:
            continue
        called = shown[volume.volume_id]
        limit = _stale_after(called, name, profiles, records)
        rows.append(_volume_row(repo, volume, called, verdicts, limit, now) | {"repository": name})
    return sorted(rows, key=lambda row: str(row["volume"]))


def space(repo: Repository, now: int) -> dict[str, int]:
    """Bytes in the packs that this host knows of, and those that the runs of the last days added."""
    since = now - GROWTH_DAYS * _DAY_MS
    figures = [one.added.figures for one in repo.catalogue.snapshots if since <= one.added.time_ms <= now + _DAY_MS]
    grown = sum(one.stored_bytes for one in figures if one is not None)
    return {"stored_bytes": sum(pack.size for pack in repo.blobs.packs()), "grown_bytes": grown}


def _stale_after(
    volume: str, repository: str, profiles: Mapping[str, Profile], records: Mapping[str, ProfileRecord]
) -> int | None:
    """The shortest limit of the profiles that back the volume up to this repository; None: nobody promised anything."""
    limits = [
        profile.stale_after
        for profile in profiles.values()
        if (record := records.get(profile.name)) and volume in record.volumes and repository in record.good
    ]
    return min(limits, default=None)


def _volume_row(
    repo: Repository, volume: VolumeState, name: str, verdicts: Verdicts, limit: int | None, now: int
) -> dict[str, Any]:
    health, newest = Grade(), _newest_good(repo, volume)
    age = 0 if newest is None else max(0, now - newest.added.time_ms)
    if newest is None:
        health.add(BAD, "no snapshot is whole")
    elif limit is not None and age > limit:
        health.add(BAD, f"the newest good snapshot is {_days(age)} old")
    if newest is not None and newest.added.time_ms > now + _DAY_MS:
        health.add(WARN, "the newest snapshot lies in the future")
    if newest is not None and consistency([newest]) == "changed":
        health.add(WARN, "the newest snapshot shows no single moment")
    latest = volume.snapshots[-1]
    if newest is not None and newest.ref != latest.ref:
        health.add(WARN, f"the latest snapshot, {latest.name}, is not whole")
    verdict = verdicts.of(volume.volume_id)
    _judge(health, None if verdict is None else (verdict.result, verdict.level, now - verdict.time_ms))
    return {
        "volume": name,
        "repository": "",
        "newest": "" if newest is None else newest.name,
        "newest_time": "" if newest is None else iso(newest.added.time_ms),
        "age_seconds": age // 1000,
        "consistency": "" if newest is None else consistency([newest]),
        "verified": None if verdict is None else {"level": verdict.level, "time": iso(verdict.time_ms)},
        "drilled": None,
        "size": latest.added.size,
        "snapshots": len(volume.snapshots),
        "state": health.state,
        "reasons": health.reasons,
    }


def _newest_good(repo: Repository, volume: VolumeState) -> Snapshot | None:
    runs = repo.catalogue.runs
    for snapshot in reversed(volume.snapshots):
        run = runs.get(snapshot.name)
        failed = run is not None and any(row.failed and row.name == volume.name for row in run.volumes)
        if snapshot.lost is None and not snapshot.conflict and not snapshot.marked_removed and not failed:
            return snapshot
    return None


def _judge(health: Grade, verdict: tuple[str, str, int] | None) -> None:
    if verdict is None:
        health.add(WARN, "never verified on this host")
        return
    result, level, age = verdict
    if result == "damaged":
        health.add(BAD, f"damage was found at level {level}; see: lamella verify, lamella repair")
    elif age > UNVERIFIED_DAYS * _DAY_MS:
        health.add(WARN, f"last verified {_days(age)} ago")


def profile_rows(
    profiles: Mapping[str, Profile], records: Mapping[str, ProfileRecord], repositories: Iterable[str], now: int
) -> list[dict[str, Any]]:
    """One row a profile; `repositories` are those of profiles that name none."""
    spare = tuple(repositories)
    return [_profile_row(profiles[name], records.get(name), spare, now) for name in sorted(profiles)]


def _profile_row(profile: Profile, record: ProfileRecord | None, spare: tuple[str, ...], now: int) -> dict[str, Any]:
    health = Grade()
    if record is None or not record.ended_ms:
        health.add(WARN, "it has never run")
    for repository in profile.repositories or spare:
        why = "" if record is None else staleness(record, repository, profile.stale_after, now)
        if why:
            health.add(BAD, why)
    for step in record.steps if record is not None else ():
        if step.code not in (0, 75):
            health.add(BAD, f"{step.step} {step.repository} {step.text}".strip())
    return {
        "profile": profile.name,
        "last": "" if record is None or not record.ended_ms else iso(record.ended_ms),
        "good": {} if record is None else {name: iso(time) for name, time in sorted(record.good.items())},
        "state": health.state,
        "reasons": health.reasons,
    }


def _days(ms: int) -> str:
    hours = ms / 3_600_000
    return f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"
