"""Snapshots of a restic repository as a history, through restic itself (its documentation: scripting, dump)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from lamella.base.errors import SourceError, UsageError
from lamella.imports.history import ForeignHistory, ForeignSession, claimed
from lamella.imports.programs import Program, Rows, Wanted, size_of, text_of, version_of

KIND: Final = "restic"
_KNOWN: Final = ((0, 14), (0, 19))
"""Tried, and those of which the documentation says the same."""
_ID: Final = re.compile(r"[0-9a-f]{64}")
_SHORT: Final = 8
"""Digits by which restic names a snapshot."""


def restic_history(repository: str, wanted: Wanted, program: str = KIND) -> ForeignHistory:
    """The snapshots in a repository, the oldest first. Raises SourceError, UsageError for a restic too old."""
    rows = Rows()
    version, said = version_of((program, "version"))
    if version < _KNOWN[0]:
        raise UsageError(f"{said} is not supported: restic 0.14 or later is needed", obj=program, hint="see --program")
    if version > _KNOWN[1]:
        rows.warnings.append(f"{said} was never tried with Lamella: compare what it restores")
    words = (program, "-r", repository, "-q")
    id_ = text_of(Program(words, "").document("cat", "config"), "id")
    snapshots = _checked(Program(words, "").document("snapshots", "--json"))
    if not _ID.fullmatch(id_):
        raise SourceError("restic does not say which repository this is", obj=repository)
    opened = Program(words, f"{KIND}:{id_}:")
    several = len({text_of(one, "hostname") for one in snapshots}) > 1
    short = Counter(str(one["id"])[:_SHORT] for one in snapshots)
    sessions = []
    for one in snapshots:
        name = str(one["id"])[:_SHORT]
        session = _session(opened, one, wanted, rows, several=several)
        sessions.append(replace(session, id=name) if short[name] == 1 else session)
    return ForeignHistory(
        KIND, id_, tuple(one for one in sessions if one.volumes), tuple(rows.warnings), tuple(rows.lacks)
    )


def _checked(snapshots: object) -> list[dict[str, Any]]:
    """The snapshots by their times. Raises SourceError."""
    if snapshots is None:  # how restic writes an empty list
        return []
    if not isinstance(snapshots, list) or not all(_ID.fullmatch(text_of(one, "id")) for one in snapshots):
        raise SourceError("restic lists no snapshots")
    if len({one["id"] for one in snapshots}) != len(snapshots):
        raise SourceError("restic lists a snapshot twice")
    return sorted(snapshots, key=lambda one: (_seconds(one) or 0, str(one["id"])))


def _session(
    program: Program, snapshot: dict[str, Any], wanted: Wanted, rows: Rows, *, several: bool
) -> ForeignSession:
    id_, machine = str(snapshot["id"]), text_of(snapshot, "hostname") if several else ""
    volumes = []
    for path, size in _files(program, id_, wanted, rows):
        rows.add()
        volumes.append(program.volume(path.lstrip("/"), size, ("dump", id_, path), machine))
    tags = snapshot.get("tags")
    named = tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else ()
    return ForeignSession(id_, tuple(volumes), _time(snapshot), named)


def _files(program: Program, id_: str, wanted: Wanted, rows: Rows) -> Iterator[tuple[str, int]]:
    seen: set[str] = set()
    for row in program.lines("ls", "--json", id_):
        path, size = text_of(row, "path"), size_of(row)
        if text_of(row, "type") != "file" or not path.startswith("/") or not wanted(path.lstrip("/")):
            continue
        if path in seen:
            raise SourceError("restic lists a file twice in one snapshot", obj=path)
        seen.add(path)
        if size <= 0:
            rows.leave_out(id_[:8], path, size)
        else:
            yield path, size


def _time(snapshot: dict[str, Any]) -> int | None:
    seconds = _seconds(snapshot)
    return None if seconds is None else claimed(seconds)


def _seconds(snapshot: dict[str, Any]) -> float | None:
    """UTC seconds, to the microsecond: several snapshots may be of one second."""
    try:
        moment = datetime.fromisoformat(text_of(snapshot, "time"))
        return moment.timestamp() if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
