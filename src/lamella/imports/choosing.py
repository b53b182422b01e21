"""Which sessions and volumes of an archive are wanted, and what the volumes will be called."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from lamella.base.errors import NothingMatched, UsageError
from lamella.imports.history import ForeignHistory, ForeignSession, volume_sources
from lamella.sources.names import name_from, split_name


@dataclass(frozen=True, slots=True)
class Choice:
    """What the user chose; without any words everything.

    `volumes` are `[NAME=]PATTERN` of the other tool's names, `sessions` patterns of its sessions.
    """

    volumes: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()


def chosen(history: ForeignHistory, choice: Choice) -> tuple[ForeignHistory, dict[str, str]]:
    """The wanted part of a history, and the names given to volumes, by the other tool's names.

    Raises NothingMatched for a word that nothing matches, UsageError for a name given to several volumes.
    """
    names: dict[str, str] = {}
    patterns: list[str] = []
    all_names = {volume.name for _, volume in volume_sources(history)}
    for text in choice.volumes:
        name, pattern = (None, text) if text in all_names else split_name(text)
        found = _matching(all_names, pattern)
        if not found:
            raise NothingMatched(f"the archive has no volume {pattern}", obj=pattern, hint="see what it has: --list")
        patterns.append(pattern)
        if name is not None:
            if len(found) > 1:
                raise UsageError(f"{name} would be the name of {len(found)} volumes", obj=name)
            names[found[0]] = name
    wanted = {name for pattern in patterns for name in _matching(all_names, pattern)} if patterns else all_names
    sessions = tuple(filter(None, (_part(session, wanted, choice) for session in history.sessions)))
    if not sessions and history.sessions:
        raise NothingMatched("the archive has no such session", obj=history.archive, hint="see what it has: --list")
    return replace(history, sessions=sessions), names


def _matching(names: set[str], pattern: str) -> list[str]:
    return [pattern] if pattern in names else sorted(name for name in names if fnmatchcase(name, pattern))


def _part(session: ForeignSession, wanted: set[str], choice: Choice) -> ForeignSession | None:
    if choice.sessions and not any(session.id == one or fnmatchcase(session.id, one) for one in choice.sessions):
        return None
    volumes = tuple(volume for volume in session.volumes if volume.name in wanted)
    return replace(session, volumes=volumes) if volumes else None


def names_of(sessions: Iterable[ForeignSession], given: Mapping[str, str], taken: Collection[str]) -> dict[bytes, str]:
    """What each volume will be called, by its identity: the given name, else its newest one, cleaned.

    Raises UsageError for a name that is `taken`, or would be that of two volumes.
    """
    found: dict[bytes, str] = {}
    foreign: dict[bytes, str] = {}
    for session in sessions:
        for volume in session.volumes:
            identity = volume.source.identity
            foreign[identity] = volume.name
            if identity not in found or found[identity] not in given.values():
                found[identity] = given.get(volume.name) or name_from(volume.name)
    used = list(found.values())
    for identity, name in found.items():
        if name in taken or used.count(name) > 1:
            what = "is the name of a volume of another source" if name in taken else "would be the name of two volumes"
            raise UsageError(f"{name} {what}", obj=name, hint=f"give a name that is free: NAME={foreign[identity]}")
    return found
