"""A wyng archive as a history: the sessions of all its volumes, those of one run of wyng together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from lamella.imports.history import ForeignHistory, ForeignSession, ForeignSource, ForeignVolume, claimed, unreadable
from lamella.imports.wyng.archive import WyngSession, WyngVolume, open_archive
from lamella.imports.wyng.volume import VolumeAtSessions

KIND: Final = "wyng"
_ZONES_SECONDS: Final = 15 * 3600
"""No clock on a wall is farther from UTC."""


def wyng_history(place: Path, passphrase: Callable[[], bytes]) -> ForeignHistory:
    """The history in a wyng archive. Raises UsageError, KeyRefused, SourceError."""
    archive = open_archive(place, passphrase)
    volumes = list(archive.volumes())
    maps = {volume.id: VolumeAtSessions(archive, volume) for volume in volumes}
    sessions: list[ForeignSession] = []
    for name, members in in_order(volumes):
        found: list[ForeignVolume] = []
        for volume, session in members:
            identity = f"{KIND}:{archive.uuid}:{volume.id}".encode("ascii")
            source = ForeignSource(KIND, identity, volume.name, partial(maps[volume.id].open, session))
            found.append(ForeignVolume(volume.name, source, session.size, {"wyng-info.txt": session.text.encode()}))
        tags = dict.fromkeys(tag for _, session in members for tag in session.tags)
        sessions.append(ForeignSession(name, tuple(found), _time(name, members), tuple(tags)))
    for volume in volumes:
        for name, why in volume.broken:
            identity = f"{KIND}:{archive.uuid}:{volume.id}".encode("ascii")
            source = ForeignSource(KIND, identity, volume.name, partial(unreadable, why))
            sessions.append(ForeignSession(name, (ForeignVolume(volume.name, source),)))
    warning = "an operation of wyng on this archive did not end: let wyng finish it, then import again"
    return ForeignHistory(KIND, archive.uuid, tuple(sessions), (warning,) * archive.interrupted, tuple(archive.lacks))


_Member = tuple[WyngVolume, WyngSession]


def in_order(volumes: Iterable[WyngVolume]) -> Iterable[tuple[str, list[_Member]]]:
    """Sessions by name, in an order that is each volume's own: names are local times, which go back once a year."""
    waiting = [(volume, deque(volume.sessions)) for volume in volumes if volume.sessions]
    while waiting:
        heads: dict[str, list[_Member]] = {}
        for volume, queue in waiting:
            heads.setdefault(queue[0].name, []).append((volume, queue[0]))
        later = {session.name for _, queue in waiting for session in list(queue)[1:]}
        ready = {name: members for name, members in heads.items() if name not in later} or heads
        name, members = min(ready.items(), key=lambda one: (_time(*one) or 0, one[0]))
        yield name, members
        taken = {volume.id for volume, _ in members}
        for volume, queue in waiting:
            if volume.id in taken:
                queue.popleft()
        waiting = [(volume, queue) for volume, queue in waiting if queue]


def _time(name: str, members: Iterable[_Member]) -> int | None:
    """When a run was: the newest moment that it recorded, if that can be; else its name as local time here.

    A volume that did not change repeats an old moment, and a file may have any.
    """
    stamps = [int(session.local_time) for _, session in members if session.local_time.isdecimal()]
    try:
        named = datetime.strptime(name, "S_%Y%m%d-%H%M%S")
        wall = named.replace(tzinfo=UTC).timestamp()
        local = named.astimezone().timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    newest = max(stamps, default=0) / 1e9
    return claimed(newest if abs(newest - wall) <= _ZONES_SECONDS else local)
