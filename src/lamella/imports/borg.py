"""Archives of a borg repository as a history, through borg itself (its documentation: list, extract).

borg 1.2 and 1.4, and 2.0.0b21, which has another command line (its documentation: repo-list, match-archives). Each
regular file in an archive is a volume; a hard link is what it leads to. A file that `borg check --repair` filled with
zeros is no longer what was saved: it is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from lamella.base.errors import SourceError, UsageError
from lamella.imports.history import ForeignHistory, ForeignSession, ForeignVolume, claimed, shown_name
from lamella.imports.programs import Program, Rows, Wanted, size_of, text_of, version_of

KIND: Final = "borg"
_KNOWN: Final = ((1, 2), (1, 4))
_BETA: Final = re.compile(r"\b2\.0\.0b(\d{1,4})\b")
_KNOWN_BETA: Final = 21
_ID: Final = re.compile(r"[0-9a-f]{64}")
_FORMAT: Final = "{archive}{hostname}"


@dataclass(frozen=True, slots=True)
class _Borg:
    """A borg at a repository, and how it is told what to do."""

    program: str
    repository: str
    is_second: bool
    """Whether it is borg 2."""

    @property
    def words(self) -> tuple[str, ...]:
        """The program, and the options before every command."""
        return (self.program, "-r", self.repository) if self.is_second else (self.program,)

    @property
    def listing(self) -> tuple[str, ...]:
        """The command that lists the archives."""
        if self.is_second:
            return "repo-list", "--json", "--format", _FORMAT
        return "list", "--json", "--format", _FORMAT, self.repository

    def session(self, archive: dict[str, Any]) -> str:
        """What an archive is called here: in borg 2 several may have one name. Raises SourceError."""
        name = text_of(archive, "name")
        if not self.is_second:
            return name
        id_ = text_of(archive, "id")
        if not _ID.fullmatch(id_):
            raise SourceError("borg lists an archive without an id")
        return f"{name}~{id_[:8]}" if name else ""

    def place(self, archive: dict[str, Any]) -> str:
        """What an archive is called to borg."""
        if self.is_second:
            return f"aid:{text_of(archive, 'id')}"
        # borg fills in what it finds between braces.
        return f"{self.repository}::{text_of(archive, 'name').replace('{', '{{').replace('}', '}}')}"


def borg_history(repository: str, wanted: Wanted, program: str = KIND) -> ForeignHistory:
    """The archives in a repository, the oldest first.

    Raises SourceError, NoRepository, KeyRefused, and UsageError for a borg of another kind.
    """
    rows = Rows()
    borg = _Borg(program, repository, _is_second(program, rows))
    if "::" in repository:
        raise UsageError("name the repository alone", obj=repository, hint="--session chooses archives")
    listed = Program(borg.words, "").document(*borg.listing)
    id_, archives = _checked(borg, listed)
    opened = Program(borg.words, f"{KIND}:{id_}:")
    hosts = {text_of(archive, "hostname") for archive in archives}
    sessions = [_session(opened, borg, archive, wanted, rows, several=len(hosts) > 1) for archive in archives]
    return ForeignHistory(
        KIND, id_, tuple(one for one in sessions if one.volumes), tuple(rows.warnings), tuple(rows.lacks)
    )


def _is_second(program: str, rows: Rows) -> bool:
    """Whether the program is borg 2. Raises UsageError for one that is not supported."""
    version, said = version_of((program, "--version"))
    beta = _BETA.search(said)
    is_old = beta is not None and int(beta[1]) < _KNOWN_BETA
    if is_old or not _KNOWN[0] <= version < (3, 0):
        needed = f"borg 1.2, 1.4 or 2.0.0b{_KNOWN_BETA} is needed"
        raise UsageError(f"{said} is not supported: {needed}", obj=program, hint="see --program")
    if version not in _KNOWN and (beta is None or int(beta[1]) != _KNOWN_BETA):
        rows.warnings.append(f"{said} was never tried with Lamella: compare what it restores")
    return version >= (2, 0)


def _checked(borg: _Borg, listed: object) -> tuple[str, list[dict[str, Any]]]:
    """The id of the repository and its archives. Raises SourceError."""
    repository, archives = (listed.get("repository"), listed.get("archives")) if isinstance(listed, dict) else ("", "")
    id_ = text_of(repository, "id")
    if not id_.isalnum() or not isinstance(archives, list) or not all(isinstance(one, dict) for one in archives):
        raise SourceError("borg lists no archives")
    names = [borg.session(archive) for archive in archives]
    if not all(names) or len(set(names)) != len(names):
        raise SourceError("borg lists an archive without a name, or one twice")
    return id_, archives


def _session(
    program: Program, borg: _Borg, archive: dict[str, Any], wanted: Wanted, rows: Rows, *, several: bool
) -> ForeignSession:
    name, place = borg.session(archive), borg.place(archive)
    machine = text_of(archive, "hostname") if several else ""
    volumes = []
    for path, source, size in _files(program, place, name, wanted, rows):
        rows.add()
        # `pf:` would say the same more exactly, and borg 1.2 then ends as if it had found nothing.
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
        moment = datetime.fromisoformat(text_of(archive, "time"))
        return claimed((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        return None
