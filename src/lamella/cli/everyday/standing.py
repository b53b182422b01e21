"""How everything stands: what `status`, `report` and the local page say of volumes, repositories and profiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamella.base.clock import now_ms
from lamella.base.errors import Absent, LamellaError, NoRepository, StoreUnavailable, UsageError
from lamella.cli.answers import answered
from lamella.cli.context import Context
from lamella.cli.destination import OtherContext, named_destinations
from lamella.cli.everyday.health import (
    BAD,
    DAY_MS,
    GROWTH_DAYS,
    OK,
    WARN,
    facts,
    profile_rows,
    space,
    volume_rows,
    worst,
)
from lamella.cli.everyday.troubles import broken_off
from lamella.cli.known_names import remember
from lamella.cli.media import members, rows
from lamella.cli.secret import FIRST
from lamella.memory.pins import Problem
from lamella.memory.runs import ProfileRecord, Profiles, goes_on
from lamella.operations.look.listing import snapshots
from lamella.repository.repository import Repository

Row = dict[str, Any]
Look = Callable[[Repository, int], dict[str, Any]]
"""What an open repository says: `facts`, and possibly more, as a JSON value."""


@dataclass(frozen=True, slots=True)
class Overview:
    """How volumes, repositories and profiles stand at `time_ms` (UTC)."""

    time_ms: int
    volumes: list[Row]
    repositories: list[Row]
    profiles: list[Row]
    media: list[Row] = field(default_factory=list)

    @property
    def state(self) -> str:
        """The worst of all."""
        return worst(row["state"] for row in [*self.repositories, *self.volumes, *self.profiles, *self.media])

    def row(self) -> Row:
        """For JSON."""
        rows = {"volumes": self.volumes, "repositories": self.repositories, "profiles": self.profiles}
        rows["media"] = [{key: value for key, value in row.items() if key != "text"} for row in self.media]
        return {"state": self.state, **rows}


def standing(context: Context, question: str = "status", look: Look = facts) -> Overview:
    """How everything stands; this host keeps what `look` says under `question`.

    Raises UsageError if no repository is named, or the configuration is wrong.
    """
    now, records = now_ms(), Profiles(context.host).all()
    asked = OneLook(question, look, now)
    repositories = [_repository_row(context, names, asked) for names in _places(context, named_repositories(context))]
    volumes = [row for one in repositories for row in one.pop("volumes")]
    config = context.config
    profiles = profile_rows(config.profiles, records, _spare(context), now, config.media)
    for row in profiles:
        why = broken_off(records.get(row["profile"], ProfileRecord()))
        if why and not goes_on(context.host, row["profile"]):
            row["reasons"].insert(0, why)
            row["state"] = BAD
    return Overview(now, volumes, repositories, profiles, rows(context) if config.media else [])


@dataclass(frozen=True, slots=True)
class OneLook:
    """One look at every repository, at the moment `now` (ms, UTC)."""

    question: str
    look: Look
    now: int


def named_repositories(context: Context) -> list[str]:
    """The repositories of the command line, or else all that are configured."""
    if context.args.repos:
        return members(context.config, context.args.repos)
    profiles = [name for one in context.config.profiles.values() for name in (*one.repositories, *one.copy_to)]
    found = [*_spare(context), *profiles, *context.config.repositories]
    if not found:
        raise UsageError("no repository is named", hint="give -r REPO, or set LAMELLA_REPO")
    return members(context.config, found)


def _places(context: Context, names: Iterable[str]) -> list[list[str]]:
    """The names, those of the same place together."""
    found: dict[str, list[str]] = {}
    for name in names:
        other = OtherContext(context, name, FIRST)
        place = other.place.removeprefix("file:")
        place = str(Path(place).resolve()) if ":" not in place.partition("/")[0] else place
        # Several media have their turn at one place.
        found.setdefault(f"{place} {other.settings and other.settings.id}", []).append(name)
    return list(found.values())


def _spare(context: Context) -> list[str]:
    try:
        return named_destinations(context)
    except UsageError:
        return []


def _repository_row(context: Context, names: list[str], asked: OneLook) -> Row:
    """A repository with its volumes, by the first of its names; one that cannot be opened says why."""
    row: Row = {"repository": names[0], "also": names[1:], "state": OK, "reasons": [], "volumes": []}
    row |= {"stored_bytes": 0, "grown_bytes": 0}
    sets = [one for one in context.config.media.values() if not set(names).isdisjoint(one.repositories)]
    try:
        other = OtherContext(context, names[0], FIRST)
        found, problems = _look(other, asked)
        records = Profiles(context.host).all()
        row |= found["space"]
        turn = max((one.turn_ms for one in sets), default=None)
        row["volumes"] = volume_rows(found["volumes"], names, context.config.profiles, records, asked.now, turn)
        for one in row["volumes"]:
            one |= found.get("past", {}).get(one["volume"], {})
        row["reasons"] = [f"{problem.message}; {problem.remedy}" for problem in problems]
        row["reasons"] += [f"{volume} was never saved: {why}" for volume, why in found["never"].items()]
        row["state"] = BAD if row["reasons"] else OK
        if not row["volumes"]:
            row["reasons"].append("it has no snapshot yet")
            row["state"] = worst((row["state"], WARN))
    except LamellaError as error:
        away = isinstance(error, Absent | NoRepository | StoreUnavailable)
        # A medium that is not here is no trouble before its turn has passed: its set says so.
        row |= {"state": OK if away and sets else WARN if away else BAD, "reasons": [error.message]}
    return row


def _look(context: OtherContext, asked: OneLook) -> tuple[dict[str, Any], list[Problem]]:
    """What an open repository says, and what is wrong with its history."""

    def look(repository: Repository) -> dict[str, Any]:
        remember(context.host.cache_dir, context.place, snapshots(repository))
        return asked.look(repository, (day - GROWTH_DAYS) * DAY_MS)

    day = asked.now // DAY_MS
    with answered(context, asked.question, look, str(day)) as (found, repository):
        return {**found, "space": space(repository, found["grown"], asked.now)}, repository.problems
