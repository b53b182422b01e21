"""Whether every host is as it should be, and why not: judged by what the last look found, and by how old that is.

A look that is old makes its host stale by itself, and a host that nobody could look at is never in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lamella.base.clock import iso
from lamella.cli.amounts import shown_age, shown_ago
from lamella.cli.configuration import RepositorySettings
from lamella.cli.everyday.health import BAD, DAY_MS, GROWTH_DAYS, UNVERIFIED_DAYS, WARN, Grade
from lamella.cli.fleet.catalogue import Deed, FleetCatalogue, HostRow
from lamella.cli.fleet.hosts import FleetHost
from lamella.cli.shown import shown_bytes

Row = dict[str, Any]
_AWAY = frozenset(("store-unavailable", "absent"))
_NEARLY_FULL = 0.9
_NAMED = 3
"""So many volumes are named; of more the number is said."""


def host_rows(hosts: Sequence[FleetHost], catalogue: FleetCatalogue, now: int) -> list[Row]:
    """One row a host, by name; behind them those that the catalogue knows although no file names them any more."""
    known, volumes, deeds = catalogue.hosts(), catalogue.volumes(), catalogue.deeds()
    grown = {id_: sum(day[-1] for day in days) for id_, days in catalogue.days(now - GROWTH_DAYS * DAY_MS).items()}

    def judged(host: FleetHost) -> Row:
        row = known.pop(host.name, None)
        if row is None:
            return _row(host, None, [], [], now) | {"grown_bytes": 0}
        return _row(host, row, volumes[row.id], deeds[row.id], now) | {"grown_bytes": grown.get(row.id, 0)}

    rows = [judged(host) for host in hosts]
    return rows + [judged(_gone(name)) for name in tuple(known)]


def _gone(name: str) -> FleetHost:
    """A host whose file is gone: nobody should believe that it is looked after."""
    why = f"no file names it any more; drop it with: lamella fleet refresh --forget {name}"
    return FleetHost(name, Path(), RepositorySettings(""), problem=why)


def _row(host: FleetHost, row: HostRow | None, volumes: list[Row], deeds: list[Deed], now: int) -> Row:
    facts = {} if row is None else row.facts
    newest_ms = max((one["newest_ms"] for one in volumes), default=int(facts.get("advanced_ms", 0)))
    health = _judged(host, row, volumes, deeds, now)
    return {
        "host": host.name,
        "repository": host.settings.url,
        "keys": host.has_key,
        "newest_time": iso(newest_ms) if newest_ms else "",
        "age_seconds": max(0, now - newest_ms) // 1000 if newest_ms else None,
        "volumes": len(volumes),
        "snapshots": sum(one["snapshots"] for one in volumes),
        "size": sum(one["size"] for one in volumes),
        "stored_bytes": facts.get("stored_bytes", 0),
        "quota_bytes": host.quota_bytes,
        "verified": _oldest(one["verified_ms"] for one in volumes),
        "drilled": _oldest(one["drilled_ms"] for one in volumes),
        "looked": iso(row.seen_ms) if row is not None and row.seen_ms else "",
        "deeds": [{"deed": one.word, "time": iso(one.time_ms), "exit": one.exit, "error": one.error} for one in deeds],
        "state": health.state,
        "reasons": health.reasons,
    }


def _oldest(moments: Iterable[int]) -> str:
    """When the volume of which this is longest ago was verified, or drilled; empty if any never was."""
    oldest = min(moments, default=0)
    return iso(oldest) if oldest else ""


def _judged(host: FleetHost, row: HostRow | None, volumes: list[Row], deeds: list[Deed], now: int) -> Grade:
    health = Grade()
    if host.problem:
        health.add(BAD, host.problem)
        return health
    if row is None or not row.tried_ms:
        health.add(BAD, "never looked at: lamella fleet refresh")
        return health
    if row.error:
        _judge_failure(health, row, host.stale_ms, now)
    if row.seen_ms:
        facts = row.facts
        if facts["keys"]:
            _judge_history(health, facts)
            _judge_volumes(health, host, volumes, now)
        else:
            _judge_unopened(health, facts, now - facts["advanced_ms"], host.stale_ms)
        if host.quota_bytes:
            _judge_quota(health, host.quota_bytes, facts["stored_bytes"])
    for deed in deeds:
        if deed.exit:
            health.add(WARN, f"{deed.word} failed {shown_ago(now - deed.time_ms)}: {deed.error}")
    return health


def _judge_unopened(health: Grade, facts: Mapping[str, Any], age_ms: int, stale_ms: int) -> None:
    """Without a key nobody knows how old a commit is that was there at the first look."""
    if age_ms > stale_ms:
        health.add(BAD, f"nothing was added for {shown_age(age_ms // 1000)}")
    elif not facts["moved"]:
        health.add(WARN, "nothing was added since the first look, and there is no key to see how old it is")


def _judge_failure(health: Grade, row: HostRow, stale_ms: int, now: int) -> None:
    """A line that is down for a moment is no more than a warning; what was seen last is not believed for long."""
    seen = f"last seen {shown_ago(now - row.seen_ms)}" if row.seen_ms else "never seen"
    away = row.kind in _AWAY and row.seen_ms and now - row.seen_ms <= stale_ms
    health.add(WARN if away else BAD, f"cannot be looked at, {seen}: {row.error}")


def _judge_history(health: Grade, facts: Mapping[str, Any]) -> None:
    for problem in facts["problems"]:
        health.add(BAD, problem)
    never = dict(facts["never"])
    for name in sorted(never)[:_NAMED]:
        health.add(BAD, f"{name} was never saved: {never[name]}")
    if len(never) > _NAMED:
        health.add(BAD, f"{len(never) - _NAMED} more were never saved")


def _judge_volumes(health: Grade, host: FleetHost, volumes: Sequence[Row], now: int) -> None:
    if not volumes:
        health.add(WARN, "it has no snapshot yet")
        return
    stale = [one for one in volumes if now - one["newest_ms"] > host.stale_ms]
    if len(stale) == len(volumes):
        newest = max(one["newest_ms"] for one in volumes)
        age = f"the newest good snapshot is {shown_age((now - newest) // 1000)} old" if newest else "nothing is whole"
        health.add(BAD, age)
    else:
        _add(health, WARN, stale, f"no good snapshot for {shown_age(host.stale_ms // 1000)}")
    for one in [one for one in volumes if one["trouble"]][:_NAMED]:
        health.add(WARN, f"{one['name']}: {one['trouble']}")
    _add(health, BAD, [one for one in volumes if one["verdict"] == "damaged"], "damage was found: lamella repair")
    _add(health, WARN, [one for one in volumes if not one["verified_ms"]], "never verified here")
    old = [one for one in volumes if 0 < one["verified_ms"] < now - UNVERIFIED_DAYS * DAY_MS]
    _add(health, WARN, old, f"not verified for {UNVERIFIED_DAYS} days")
    _add(health, WARN, [one for one in volumes if one["drill"] == "failed"], "the drill failed")


def _add(health: Grade, state: str, volumes: Sequence[Row], what: str) -> None:
    """One reason for several volumes."""
    if volumes:
        names = ", ".join(one["name"] for one in volumes[:_NAMED])
        more = f" and {len(volumes) - _NAMED} more" if len(volumes) > _NAMED else ""
        health.add(state, f"{names}{more}: {what}")


def _judge_quota(health: Grade, quota: int, stored: int) -> None:
    if stored >= quota:
        health.add(BAD, f"the quota of {shown_bytes(quota)} is full: {shown_bytes(stored)}")
    elif stored >= _NEARLY_FULL * quota:
        health.add(WARN, f"{100 * stored // quota} % of the quota of {shown_bytes(quota)} are used")
