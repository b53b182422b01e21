"""Green, yellow or red: what is said of volumes, repositories and profiles, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lamella.base.clock import iso
from lamella.cli.everyday.messages import unheard
from lamella.cli.everyday.profiles import Profile
from lamella.cli.everyday.troubles import staleness
from lamella.cli.everyday.units import next_run
from lamella.cli.media_set import MediaSet
from lamella.history.catalogue import Snapshot, VolumeState
from lamella.memory.drills import Drills
from lamella.memory.readings import Readings
from lamella.memory.runs import ProfileRecord
from lamella.memory.verdicts import Verdicts
from lamella.operations.look.listing import consistency
from lamella.operations.shared.unsaved import is_wanted, newest_runs, not_saved
from lamella.repository.repository import Repository

OK, WARN, BAD = "ok", "warn", "bad"
_RANK = {OK: 0, WARN: 1, BAD: 2}
DAY_MS = 86_400_000
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


def facts(repo: Repository, since_ms: int) -> dict[str, Any]:
    """The facts about volumes and growth, before anybody judges them: a JSON value.

    Growth is bytes by the moment of the snapshot that added them, since `since_ms` (UTC).
    """
    shown, verdicts = repo.catalogue.shown_names(), Verdicts(repo.proofs)
    held = [volume for volume in repo.catalogue.volumes.values() if volume.snapshots]
    names = {volume.name for volume in held}
    missed = _unsaved(repo, names)
    rows = [
        _volume_facts(repo, volume, shown[volume.volume_id], verdicts) | {"missed": missed.get(volume.name, "")}
        for volume in held
    ]
    drilled = {shown[id_]: verdict.row() for id_, verdict in Drills(repo.proofs).all().items() if id_ in shown}
    read = {shown[id_]: reading.row() for id_, reading in Readings(repo.proofs).all().items() if id_ in shown}
    rows = [row | {"drilled": drilled.get(row["volume"]), "read": read.get(row["volume"])} for row in rows]
    lately = [one.added for one in repo.catalogue.snapshots if one.added.time_ms >= since_ms]
    grown = [(one.time_ms, figures.stored_bytes) for one in lately if (figures := one.figures) is not None]
    never = {name: why for name, why in missed.items() if name not in names}
    return {"volumes": sorted(rows, key=lambda row: str(row["volume"])), "never": never, "grown": grown}


def _unsaved(repo: Repository, saved: set[str]) -> dict[str, str]:
    """Names of volumes that the newest run that should have saved them did not, and why: as `verify` judges it."""
    runs = repo.catalogue.runs
    last = max(runs, default="")
    return {
        row.name: not_saved(run, row)
        for run, row in newest_runs(runs.values())
        if row.failed and is_wanted(run, row, saved, last)
    }


def volume_rows(
    found: Iterable[Mapping[str, Any]],
    names: Sequence[str],
    profiles: Mapping[str, Profile],
    records: Mapping[str, ProfileRecord],
    now: int,
    turn_ms: int | None = None,
) -> list[dict[str, Any]]:
    """One row a volume of the facts about a repository that the user calls by these names, by the first of them.

    `turn_ms`: so often the repository has its turn among others (a medium of a set), instead of at each run.
    """
    rows = []
    for row in found:
        limit = _stale_after(row["volume"], names, profiles, records)
        rows.append(_volume_row(row, names[0], limit if turn_ms is None or limit is None else turn_ms, now))
    return rows


def space(repo: Repository, grown: Iterable[tuple[int, int]], now: int) -> dict[str, int]:
    """Bytes in the packs that this host knows of, and those that the runs of the last days added."""
    since = now - GROWTH_DAYS * DAY_MS
    lately = sum(size for time, size in grown if since <= time <= now + DAY_MS)
    return {"stored_bytes": repo.cache.packs_bytes(), "grown_bytes": lately}


def _stale_after(
    volume: str, names: Sequence[str], profiles: Mapping[str, Profile], records: Mapping[str, ProfileRecord]
) -> int | None:
    """The shortest limit of the profiles that back the volume up to this repository; None: nobody promised anything."""
    limits = [
        profile.stale_after
        for profile in profiles.values()
        if (record := records.get(profile.name)) and volume in record.volumes and record.good.keys() & set(names)
    ]
    return min(limits, default=None)


def _volume_facts(repo: Repository, volume: VolumeState, name: str, verdicts: Verdicts) -> dict[str, Any]:
    newest, latest, verdict = _newest_good(repo, volume), volume.snapshots[-1], verdicts.of(volume.volume_id)
    return {
        "volume": name,
        "newest": "" if newest is None else newest.name,
        "newest_ms": 0 if newest is None else newest.added.time_ms,
        "consistency": "" if newest is None else consistency([newest]),
        "broken": "" if newest is None or newest.ref == latest.ref else latest.name,
        "verdict": None if verdict is None else (verdict.result, verdict.level, verdict.time_ms),
        "size": latest.added.size,
        "snapshots": len(volume.snapshots),
    }


def _volume_row(row: Mapping[str, Any], repository: str, limit: int | None, now: int) -> dict[str, Any]:
    health, newest, verdict = Grade(), row["newest"], row["verdict"]
    age = max(0, now - row["newest_ms"]) if newest else 0
    if row["missed"]:
        health.add(BAD, row["missed"])
    if not newest:
        health.add(BAD, "no snapshot is whole")
    elif limit is not None and age > limit:
        health.add(BAD, f"the newest good snapshot is {_days(age)} old")
    if row["newest_ms"] > now + DAY_MS:
        health.add(WARN, "the newest snapshot lies in the future")
    if row["consistency"] == "changed":
        health.add(WARN, "the newest snapshot changed while it was read")
    if row["broken"]:
        health.add(WARN, f"the latest snapshot, {row['broken']}, is not whole")
    _judge(health, None if verdict is None else (verdict[0], verdict[1], now - verdict[2]))
    drilled = row["drilled"]
    if drilled is not None and drilled["result"] == "failed":
        health.add(WARN, f"the drill of {drilled['snapshot']} failed: {drilled['sign']}")
    return {
        "volume": row["volume"],
        "repository": repository,
        "newest": newest,
        "newest_time": iso(row["newest_ms"]) if newest else "",
        "age_seconds": age // 1000,
        "consistency": row["consistency"],
        "verified": None if verdict is None else {"level": verdict[1], "time": iso(verdict[2])},
        "read": row["read"],
        "drilled": drilled,
        "size": row["size"],
        "snapshots": row["snapshots"],
        "state": health.state,
        "reasons": health.reasons,
    }


def _newest_good(repo: Repository, volume: VolumeState) -> Snapshot | None:
    return next((one for one in reversed(volume.snapshots) if is_good(repo, volume, one)), None)


def is_good(repo: Repository, volume: VolumeState, snapshot: Snapshot) -> bool:
    """Whether nobody knows of anything that the snapshot lacks, and nobody disputes it."""
    run = repo.catalogue.runs.get(snapshot.name)
    failed = run is not None and any(row.failed and row.name == volume.name for row in run.volumes)
    return snapshot.lost is None and not snapshot.conflict and not snapshot.marked_removed and not failed


def _judge(health: Grade, verdict: tuple[str, str, int] | None) -> None:
    if verdict is None:
        health.add(WARN, "never verified on this host")
        return
    result, level, age = verdict
    if result == "damaged":
        health.add(BAD, f"damage was found at level {level}; see: lamella verify, lamella repair")
    elif age > UNVERIFIED_DAYS * DAY_MS:
        health.add(WARN, f"last verified {_days(age)} ago")


def profile_rows(
    profiles: Mapping[str, Profile],
    records: Mapping[str, ProfileRecord],
    repositories: Iterable[str],
    now: int,
    media: Mapping[str, MediaSet],
) -> list[dict[str, Any]]:
    """One row a profile; `repositories` are those of profiles that name none."""
    spare = tuple(repositories)
    return [_profile_row(profiles[name], records.get(name), spare, now, media) for name in sorted(profiles)]


def _profile_row(
    profile: Profile, record: ProfileRecord | None, spare: tuple[str, ...], now: int, media: Mapping[str, MediaSet]
) -> dict[str, Any]:
    health, coming = Grade(), next_run(profile.name)
    if record is None or not (record.ended_ms or record.began_ms):
        health.add(WARN, "it has never run")
    for repository in profile.repositories or spare:
        limit = profile.stale_after if repository not in media else media[repository].stale_after
        why = "" if record is None else staleness(record, repository, limit, now)
        if why:
            health.add(BAD, why)
    failed = [step for step in record.steps if step.code not in (0, 75)] if record is not None else []
    for step in failed:
        health.add(BAD, f"{step.step} {step.repository} {step.text}".strip())
    deaf = unheard(profile.hooks, profile.notify)
    if deaf:
        health.add(WARN, f"{deaf}; see notify in lamella-configuration(5)")
    elif (
        record is not None and not {f"{one.step} {one.repository}".strip() for one in failed} <= record.troubles.keys()
    ):
        health.add(WARN, "nobody was told of what failed: no message was delivered")
    return {
        "profile": profile.name,
        "last": "" if record is None or not record.ended_ms else iso(record.ended_ms),
        "next": iso(coming) if coming else "",
        "good": {} if record is None else {name: iso(time) for name, time in sorted(record.good.items())},
        "state": health.state,
        "reasons": health.reasons,
    }


def _days(ms: int) -> str:
    hours = ms / 3_600_000
    return f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"
