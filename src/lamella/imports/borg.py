"""Archives of a borg repository as a history, through borg itself (1.2 and 1.4; its documentation: list, extract).

Each regular file in an archive is a volume; a hard link is what it leads to. A file that `borg check --repair` filled
with zeros is no longer what was saved: it is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from lamella.base.errors import SourceError, UsageError
from lamella.imports.history import ForeignHistory, ForeignSession, ForeignVolume, claimed, shown_name
from lamella.imports.programs import Program, Rows, Wanted, size_of, text_of, version_of

KIND: Final = "borg"
_KNOWN: Final = ((1, 2), (1, 4))


def borg_history(repository: str, wanted: Wanted, program: str = KIND) -> ForeignHistory:
    """The archives in a repository, the oldest first. Raises SourceError, UsageError for a borg of another kind."""
    rows = Rows()
    version, said = version_of((program, "--version"))
    if not _KNOWN[0] <= version < (2, 0):
        raise UsageError(f"{said} is not supported: borg 1.2 or 1.4 is needed", obj=program, hint="see --program")
    if version not in _KNOWN:
        rows.warnings.append(f"{said} was never tried with Lamella: compare what it restores")
    if "::" in repository:
        raise UsageError("name the repository alone", obj=repository, hint="--session chooses archives")
    listed = Program((program,), "").document("list", "--json", "--format", "{archive}{hostname}", repository)
    id_, archives = _checked(listed)
    opened = Program((program,), f"{KIND}:{id_}:")
    hosts = {text_of(archive, "hostname") for archive in archives}
    sessions = [_session(opened, repository, archive, wanted, rows, several=len(hosts) > 1) for archive in archives]
    return ForeignHistory(
        KIND, id_, tuple(one for one in sessions if one.volumes), tuple(rows.warnings), tuple(rows.lacks)
    )


def _checked(listed: object) -> tuple[str, list[dict[str, Any]]]:
    """The id of the repository and its archives. Raises SourceError."""
    repository, archives = (listed.get("repository"), listed.get("archives")) if isinstance(listed, dict) else ("", "")
    id_ = text_of(repository, "id")
    if not id_.isalnum() or not isinstance(archives, list):
        raise SourceError("borg lists no archives")
    names = [text_of(archive, "name") for archive in archives]
    if not all(names) or len(set(names)) != len(names):
        raise SourceError("borg lists an archive without a name, or one twice")
    return id_, archives


def _session(
    program: Program, repository: str, archive: dict[str, Any], wanted: Wanted, rows: Rows, *, several: bool
) -> ForeignSession:
    name = text_of(archive, "name")
    machine = text_of(archive, "hostname") if several else ""
    # borg fills in what it finds between braces.
    place = f"{repository}::{name.replace('{', '{{').replace('}', '}}')}"
    volumes = []
    for path, source, size in _files(program, place, name, wanted, rows):
        rows.add()
        # `pf:` would say the same more exactly, and borg then ends as if it had found nothing.
        volumes.append(program.volume(path, size, ("extract", "--stdout", place, f"pp:{source}"), machine))
    return ForeignSession(name, tuple(_once(volumes)), _time(archive))


def _once(volumes: list[ForeignVolume]) -> Iterator[ForeignVolume]:
    """An archive may hold two files of one path; borg extracts both, one after the other."""
    seen: set[str] = set()
    for volume in volumes:
        if volume.name in seen:
            raise SourceError(f"borg lists {shown_name(volume.name)} twice in one archive", obj=volume.name)
        seen.add(volume.name)
        yield volume


def _files(program: Program, place: str, session: str, wanted: Wanted, rows: Rows) -> Iterator[tuple[str, str, int]]:
    """Of each wanted file its path, the path under which borg gives its content, and its size."""
    sizes: dict[str, int] = {}
    for row in program.lines("list", "--json-lines", place):
        path, target = text_of(row, "path"), text_of(row, "linktarget")
        if text_of(row, "type") not in ("-", "h") or not path:
            continue
        size = size_of(row)
        if target:  # another name of a file that came before
            size = sizes.get(target, -1)
        elif text_of(row, "mode").startswith("-"):
            sizes[path] = size
        if not wanted(path):
            continue
        if row.get("healthy") is False:
            rows.lack(session, path, "borg check --repair put zeros in the place of what was lost")
        elif size <= 0:
            rows.leave_out(session, path, size)
        else:
            yield path, target or path, size


def _time(archive: dict[str, Any]) -> int | None:
    try:
        return claimed(datetime.fromisoformat(text_of(archive, "time")).replace(tzinfo=UTC).timestamp())
    except (ValueError, OverflowError):
        return None
