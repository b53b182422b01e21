"""Media that take turns: one name for several repositories, of which those are served that are here.

A medium is known by the id of the repository on it, never by its place alone: several disks may be mounted at one
place, one after the other (docs/decisions/0089).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lamella.base.clock import now_ms
from lamella.base.errors import (
    Absent,
    LamellaError,
    NoRepository,
    RepositoryError,
    StoreUnavailable,
    UsageError,
)
from lamella.cli.amounts import shown_age, shown_ago
from lamella.cli.destination import OtherContext
from lamella.cli.secret import FIRST
from lamella.memory.media import MediaMemory
from lamella.repository.slots import read_marker
from lamella.stores.url import open_store

if TYPE_CHECKING:
    from lamella.cli.configuration import Configuration
    from lamella.cli.context import Context
    from lamella.cli.media_set import MediaSet

_AHEAD_MS = 3_600_000


def members(config: Configuration, names: Iterable[str]) -> list[str]:
    """The names, and in place of each set its repositories."""
    sets = config.media
    found = [member for name in names for member in (sets[name].repositories if name in sets else (name,))]
    return list(dict.fromkeys(found))


def all_here(context: Context, names: Iterable[str]) -> list[str]:
    """The names, and in place of each set those of its repositories that are here; its own name if none is.

    Also if nobody can tell, or a repository that nobody configured is in the place of one of them: whoever uses the
    name hears of that, and the others have their turn.
    """
    found: list[str] = []
    for name in names:
        one = context.config.media.get(name)
        some: list[str] = []
        with suppress(LamellaError):
            some = [] if one is None else here(context, one)
        found += some or [name]
    return list(dict.fromkeys(found))


def served(context: Context, name: str) -> str:
    """The one repository of a set that is here.

    Raises NoRepository if none is, or Absent with --if-available; UsageError if several are; RepositoryError.
    """
    one = context.config.media[name]
    found = here(context, one)
    if len(found) == 1:
        context.out.say(f"{name}: {found[0]} is here")
        return found[0]
    if found:
        raise UsageError(f"several media of {name} are here: name one: -r {' or -r '.join(found)}", obj=name)
    kind = Absent if context.args.if_available else NoRepository
    hint = f"connect one ({'; '.join(map(str, media(context, one)))})"
    raise kind(f"no medium of {name} is here", obj=name, hint=hint)


def here(context: Context, one: MediaSet) -> list[str]:
    """The repositories of a set that are here, in the order of the configuration.

    A medium that cannot be read is named if another one is here. Raises LamellaError.
    """
    wanted = {member: context.config.repositories[member] for member in one.repositories}
    places = {settings.url: member for member, settings in wanted.items()}
    found, bad = _ids_at(context, places)
    names = [member for member, settings in wanted.items() if settings.id == found.get(settings.url)]
    if not names:
        known = {settings.id for settings in context.config.repositories.values()}
        for url, id_ in found.items():
            if id_ and id_ not in known:
                raise stranger(context, url, id_, RepositoryError)
        if bad:
            raise next(iter(bad.values()))
    for member, error in bad.items():
        context.out.warn(f"{member}: {error.message}")
    memory, now = MediaMemory(context.host), now_ms()
    for member in names:
        memory.seen(wanted[member].id or "", now)
    return names


def stranger(context: Context, url: str, found: str, kind: type[RepositoryError]) -> RepositoryError:
    """The error for another repository in the place of the one that was configured: `kind` if its own name is known."""
    for name, settings in context.config.repositories.items():
        if settings.id == found:
            return kind(f"{url} holds {name} now, another repository", obj=url, hint=f"to use that: -r {name}")
    hint = "to use that give it a [repositories.NAME] with this id, and name it in its [media.NAME]"
    return RepositoryError(f"{url} holds a repository that is not configured: id {found}", obj=url, hint=hint)


def _ids_at(context: Context, places: Mapping[str, str]) -> tuple[dict[str, str], dict[str, LamellaError]]:
    """The id at each place, by its URL; why there is none, by the member that is looked for there."""
    found: dict[str, str] = {}
    bad: dict[str, LamellaError] = {}
    for url, member in places.items():
        try:
            found[url] = _id_at(context, member)
        except LamellaError as error:
            bad[member] = error
    return found, bad


def _id_at(context: Context, member: str) -> str:
    """The id of the repository at the place of a configured one; empty if nothing is there."""
    other = OtherContext(context, member, FIRST)
    try:
        with closing(open_store(other.place, read_only=True, environment=other.store_environment)) as store:
            return read_marker(store).repo_id.hex()
    except (NoRepository, StoreUnavailable):
        return ""


# -- their ages -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Medium:
    """A medium of a set, and the age of the newest whole backup on it as this host knows it, in ms; None: of none."""

    repository: str
    id: str
    age_ms: int | None
    ahead: bool = False
    """The backup lies in the future: the clock of this machine was set back since, and the age is not known."""

    def __str__(self) -> str:
        if self.ahead:
            return f"{self.repository}: the last backup lies in the future, so the clock of this machine was set back"
        if self.age_ms is None:
            return f"{self.repository}: no backup of this host yet"
        return f"{self.repository}: last backup {shown_ago(self.age_ms)}"


def media(context: Context, one: MediaSet) -> list[Medium]:
    """The media of a set."""
    memory, now = MediaMemory(context.host), now_ms()
    found = []
    for member in one.repositories:
        id_ = context.config.repositories[member].id or ""
        saved = memory.of(id_).saved_ms
        ahead = saved > now + _AHEAD_MS
        found.append(Medium(member, id_, None if ahead or not saved else max(0, now - saved), ahead))
    return found


def note_saved(context: Context, member: str) -> None:
    """Remember that a backup to a repository is whole."""
    settings = context.config.repositories.get(member)
    if settings is not None and settings.id is not None:
        MediaMemory(context.host).saved(settings.id, now_ms())


def rows(context: Context) -> list[dict[str, Any]]:
    """One row a set, for `status`: its media with their ages, and what is wrong with them."""
    return [_row(name, one, media(context, one)) for name, one in sorted(context.config.media.items())]


def _row(name: str, one: MediaSet, found: Sequence[Medium]) -> dict[str, Any]:
    ages = [medium.age_ms for medium in found if medium.age_ms is not None]
    late = [str(medium) for medium in found if medium.age_ms is None or medium.age_ms > one.turn_ms]
    stale = not ages or min(ages) > one.stale_after
    if stale:
        late.insert(0, f"no medium for {shown_age(min(ages) // 1000)}" if ages else "no backup to any medium yet")
    members = [
        {
            "repository": medium.repository,
            "id": medium.id,
            "age_seconds": None if medium.age_ms is None else medium.age_ms // 1000,
        }
        for medium in found
    ]
    state = "bad" if stale else "warn" if late else "ok"
    return {"media": name, "state": state, "reasons": late, "members": members, "text": "; ".join(map(str, found))}
