"""Moments as people write them: `2026-11-28`, `2026-11-28T18:30`, `today`, `yesterday`, `2h`, `10d`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta

from lamella.base.clock import local_now
from lamella.base.errors import NothingMatched
from lamella.format.inner import claimed_ms
from lamella.history.catalogue import Snapshot, VolumeState
from lamella.repository.repository import Repository

_AGO = re.compile(r"(\d{1,5})(min|h|d|w)")
_UNITS = {"min": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def newest_until(repo: Repository, volume: VolumeState, snapshots: Sequence[Snapshot], text: str) -> Snapshot:
    """The newest of these snapshots at or before the moment that `text` means. Raises NothingMatched."""
    until = moment_ms(text, local_now())
    if until is None:
        raise NothingMatched(f"volume {volume.name} has no snapshot {text}", obj=text, hint="see: lamella list")
    rows = [(_shown_ms(repo, one), one.name, one.ref, one) for one in snapshots]
    older = [row for row in rows if row[0] <= until]
    if older:
        return max(older)[-1]
    oldest = f"the oldest is {min(rows)[1]}" if rows else "it has none"
    raise NothingMatched(f"volume {volume.name} has no snapshot of {text} or before: {oldest}", obj=text)


def _shown_ms(repo: Repository, snapshot: Snapshot) -> int:
    """The moment that a snapshot shows: of a stream the one that its user named, which no deletion rests on."""
    claim = claimed_ms(snapshot.added)
    return repo.log.believed_ms(snapshot) if claim is None else claim


def moment_ms(text: str, now: datetime) -> int | None:
    """The last millisecond that `text` means, since 1970; None if it means no moment. `now` is local time.

    A day means its end, a minute its end, `2h` two hours before now.
    """
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return int((now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})).timestamp() * 1000)
    day = {"today": now.date(), "yesterday": now.date() - timedelta(days=1)}.get(text) or _day(text)
    if day is not None:
        return int(datetime.combine(day + timedelta(days=1), time(), None).astimezone().timestamp() * 1000) - 1
    if not re.fullmatch(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?", text):
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    length = timedelta(seconds=1) if text.count(":") == 2 else timedelta(minutes=1)
    return int((found + length).astimezone().timestamp() * 1000) - 1


def _day(text: str) -> date | None:
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None
