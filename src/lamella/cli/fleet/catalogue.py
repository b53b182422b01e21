"""The catalogue of the fleet: an SQLite file of what the last look at each host found.

Disposable: anybody may delete it, a damaged or foreign one is replaced, and `lamella fleet refresh` makes it again out
of the repositories. Nothing depends on it. A snapshot is a row of four numbers; its name and its moment stand once for
all volumes of its run.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from lamella.base.durable import make_private
from lamella.base.errors import LamellaError

Row = dict[str, Any]
VERSION = 1
_CACHE_KIB = 32 << 10
_BUSY_SECONDS = 60.0
DAY_MS = 86_400_000
GOOD, CHANGED = 1, 2

_SCHEMA = """
CREATE TABLE host (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
  tried_ms INTEGER NOT NULL DEFAULT 0, exit INTEGER NOT NULL DEFAULT 0,
  kind TEXT NOT NULL DEFAULT '', error TEXT NOT NULL DEFAULT '',
  seen_ms INTEGER NOT NULL DEFAULT 0, facts TEXT NOT NULL DEFAULT '{}', digest BLOB NOT NULL DEFAULT x'');
CREATE TABLE volume (
  id INTEGER PRIMARY KEY, host INTEGER NOT NULL, name TEXT NOT NULL, newest TEXT NOT NULL, newest_ms INTEGER NOT NULL,
  consistency TEXT NOT NULL, size INTEGER NOT NULL, snapshots INTEGER NOT NULL, trouble TEXT NOT NULL,
  verdict TEXT NOT NULL, level TEXT NOT NULL, verified_ms INTEGER NOT NULL,
  drill TEXT NOT NULL, drilled_ms INTEGER NOT NULL);
CREATE INDEX volume_of_host ON volume (host, name);
CREATE INDEX volume_by_name ON volume (name);
CREATE TABLE run (id INTEGER PRIMARY KEY, host INTEGER NOT NULL, time_ms INTEGER NOT NULL, name TEXT NOT NULL);
CREATE INDEX run_of_host ON run (host, time_ms);
CREATE INDEX run_by_time ON run (time_ms);
CREATE TABLE saved (
  volume INTEGER NOT NULL, run INTEGER NOT NULL, stored_bytes INTEGER NOT NULL, flags INTEGER NOT NULL,
  PRIMARY KEY (volume, run)) WITHOUT ROWID;
CREATE TABLE day (
  host INTEGER NOT NULL, day INTEGER NOT NULL, snapshots INTEGER NOT NULL, good INTEGER NOT NULL,
  failed INTEGER NOT NULL, stored_bytes INTEGER NOT NULL, PRIMARY KEY (host, day)) WITHOUT ROWID;
CREATE TABLE deed (
  host INTEGER NOT NULL, word TEXT NOT NULL, time_ms INTEGER NOT NULL, exit INTEGER NOT NULL, error TEXT NOT NULL,
  PRIMARY KEY (host, word)) WITHOUT ROWID;
"""
VOLUME = (
    *("name", "newest", "newest_ms", "consistency", "size", "snapshots", "trouble"),
    *("verdict", "level", "verified_ms", "drill", "drilled_ms"),
)
_NUMBERS = frozenset(("newest_ms", "size", "snapshots", "verified_ms", "drilled_ms"))
_INSERT_VOLUME = f"INSERT INTO volume VALUES ({', '.join('?' * (len(VOLUME) + 2))})"


def catalogue_path(cache_dir: Path) -> Path:
    """Where the catalogue lies: in the cache, as nothing depends on it."""
    return cache_dir / "fleet" / "catalogue.sqlite"


class HostRow(NamedTuple):
    """What is known of a host: the last try to look at it, and what the last look that succeeded found."""

    id: int
    name: str
    tried_ms: int
    exit: int
    kind: str
    error: str
    seen_ms: int
    """When a look succeeded last; 0: never."""
    facts: Row


class Deed(NamedTuple):
    """How an action on a host ended last."""

    word: str
    time_ms: int
    exit: int
    error: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a search is for: each part may be left out. Patterns are those of a shell; moments in ms, UTC."""

    host: str = "*"
    volume: str = "*"
    since_ms: int = 0
    before_ms: int = 1 << 62
    most: int = 100


class FleetCatalogue:
    """An open catalogue. Raises LamellaError where the file cannot be used at all."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db = connection
        self.path = path

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[FleetCatalogue]:
        """The catalogue at `path`, made if it is missing, of another version, or damaged."""
        try:
            connection = _connected(path)
        except (OSError, sqlite3.Error) as error:
            raise _unusable(path, error) from error
        with closing(connection):
            try:
                yield cls(connection, path)
            except sqlite3.DatabaseError as error:
                if _is_damage(error):
                    _remove(path)
                raise _unusable(path, error) from error

    # -- taking in ----------------------------------------------------------------------------------------------------

    def take_in(self, name: str, now: int, document: Mapping[str, Any]) -> None:
        """What a look at a host found (see `lamella.cli.fleet.look`). Raises LamellaError for what is no such thing."""
        try:
            facts = _checked_facts(document)
            digest = hashlib.sha256(json.dumps(document.get("volumes", [])).encode()).digest()
            with self._db:
                host = self._host_id(name)
                facts = _with_growth(facts, self.host(name).facts, now)
                (old,) = self._db.execute("SELECT digest FROM host WHERE id = ?", (host,)).fetchone()
                if old != digest:
                    self._clear(host)
                    self._fill(host, document.get("volumes", []), now)
                self._db.execute(
                    "UPDATE host SET tried_ms = ?, seen_ms = ?, exit = 0, kind = '', error = '', facts = ?, digest = ?"
                    " WHERE id = ?",
                    (now, now, json.dumps(facts), digest, host),
                )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, sqlite3.IntegrityError) as error:
            raise LamellaError(f"its answer cannot be understood: {type(error).__name__}: {error}") from error

    def failed(self, name: str, now: int, exit_code: int, kind: str, error: str) -> None:
        """A look that failed: what was known before stays, with its age."""
        with self._db:
            host = self._host_id(name)
            values = (now, exit_code, kind, error, host)
            self._db.execute("UPDATE host SET tried_ms = ?, exit = ?, kind = ?, error = ? WHERE id = ?", values)

    def did(self, name: str, deed: Deed) -> None:
        """How an action ended."""
        with self._db:
            row = (self._host_id(name), *deed)
            self._db.execute("INSERT OR REPLACE INTO deed VALUES (?, ?, ?, ?, ?)", row)

    def forget(self, name: str) -> None:
        """Drop a host."""
        with self._db:
            host = self._host_id(name)
            self._clear(host)
            self._db.execute("DELETE FROM deed WHERE host = ?", (host,))
            self._db.execute("DELETE FROM host WHERE id = ?", (host,))

    def _host_id(self, name: str) -> int:
        self._db.execute("INSERT OR IGNORE INTO host (name) VALUES (?)", (name,))
        return int(self._db.execute("SELECT id FROM host WHERE name = ?", (name,)).fetchone()[0])

    def _clear(self, host: int) -> None:
        self._db.execute("DELETE FROM saved WHERE volume IN (SELECT id FROM volume WHERE host = ?)", (host,))
        for table in ("volume", "run", "day"):
            self._db.execute(f"DELETE FROM {table} WHERE host = ?", (host,))

    def _fill(self, host: int, volumes: Iterable[Mapping[str, Any]], now: int) -> None:
        """The rows of a host's volumes and snapshots."""
        found = _Taken(self._next("run"), now + DAY_MS)
        for volume_id, volume in enumerate(volumes, self._next("volume")):
            saved, newest = found.history(volume_id, volume["history"])
            for one in volume["failed"]:
                found.day_of(one["time"])[2][2] += 1
            self._db.execute(_INSERT_VOLUME, (volume_id, host, *_volume_values(volume, newest)))
            self._db.executemany("INSERT OR REPLACE INTO saved VALUES (?, ?, ?, ?)", saved)
        rows = ((run, host, found.day_of(time)[0], name) for (time, name), run in found.runs.items())
        self._db.executemany("INSERT INTO run VALUES (?, ?, ?, ?)", rows)
        of_days = ((host, day, *figures) for day, figures in sorted(found.days.items()))
        self._db.executemany("INSERT INTO day VALUES (?, ?, ?, ?, ?, ?)", of_days)

    def _next(self, table: str) -> int:
        return int(self._db.execute(f"SELECT COALESCE(MAX(id), 0) + 1 FROM {table}").fetchone()[0])

    # -- asking -------------------------------------------------------------------------------------------------------

    def hosts(self) -> dict[str, HostRow]:
        """All hosts, by name."""
        query = "SELECT id, name, tried_ms, exit, kind, error, seen_ms, facts FROM host ORDER BY name"
        return {row[1]: _host_row(row) for row in self._db.execute(query)}

    def host(self, name: str) -> HostRow:
        """One host that was looked at before."""
        query = "SELECT id, name, tried_ms, exit, kind, error, seen_ms, facts FROM host WHERE name = ?"
        row = self._db.execute(query, (name,)).fetchone()
        return _host_row(row)

    def volumes(self) -> dict[int, list[Row]]:
        """The volumes of all hosts, by the host's id, each by name."""
        found: dict[int, list[Row]] = defaultdict(list)
        for host, *row in self._db.execute(f"SELECT host, {', '.join(VOLUME)} FROM volume ORDER BY host, name"):
            found[host].append(dict(zip(VOLUME, row, strict=True)))
        return found

    def deeds(self) -> dict[int, list[Deed]]:
        """How the last actions ended, by the host's id."""
        found: dict[int, list[Deed]] = defaultdict(list)
        for host, *row in self._db.execute("SELECT host, word, time_ms, exit, error FROM deed ORDER BY host, word"):
            found[host].append(Deed(*row))
        return found

    def days(self, since_ms: int) -> dict[int, list[tuple[int, ...]]]:
        """Day (since 1970, UTC), snapshots, good ones, failures, bytes added: by the host's id, in order."""
        found: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        query = "SELECT host, day, snapshots, good, failed, stored_bytes FROM day WHERE day >= ? ORDER BY host, day"
        for host, *row in self._db.execute(query, (since_ms // DAY_MS,)):
            found[host].append(tuple(row))
        return found

    def search(self, wanted: Wanted) -> tuple[list[Row], bool]:
        """The snapshots that fit, newest first, at most `most`; and whether there are more."""
        rows = list(self._db.execute(*_search(wanted, by_volume=self._begins_with_volumes(wanted))))
        found = [
            {
                "host": host, "volume": volume, "snapshot": name, "time_ms": time_ms,
                "stored_bytes": stored, "good": bool(flags & GOOD), "changed": bool(flags & CHANGED),
            }
            for host, volume, name, time_ms, stored, flags in rows[: wanted.most]
        ]  # fmt: skip
        return found, len(rows) > wanted.most

    def _begins_with_volumes(self, wanted: Wanted) -> bool:
        """Whether a search walks fewer rows if it begins with the volumes that fit, not with runs."""
        if wanted.volume == "*":
            return False
        query = """SELECT (SELECT COUNT(*) FROM host), (SELECT COUNT(*) FROM volume), (SELECT COUNT(*) FROM run),
            (SELECT COUNT(*) FROM volume WHERE name GLOB ?), (SELECT COUNT(*) FROM host WHERE name GLOB ?),
            (SELECT COUNT(*) FROM run WHERE time_ms >= ? AND time_ms < ?)"""
        values = (wanted.volume, wanted.host, wanted.since_ms, wanted.before_ms)
        hosts, volumes, runs, fitting, asked, within = self._db.execute(query, values).fetchone()
        if not hosts or not fitting:
            return True
        by_runs = within * (volumes / hosts) * (asked / hosts)
        if wanted.host == "*":  # the runs come in the order of time, and the search ends with enough of them
            by_runs = min(by_runs, (wanted.most + 1) * volumes / fitting)
        return bool(fitting * runs / hosts <= by_runs)

    def count(self) -> int:
        """The number of snapshots of volumes."""
        return int(self._db.execute("SELECT TOTAL(snapshots) FROM volume").fetchone()[0])


def _search(wanted: Wanted, *, by_volume: bool) -> tuple[str, tuple[object, ...]]:
    """The query, walked by the time of runs, newest first, so that it ends with enough of them.

    Where only a few volumes fit it begins with these (`by_volume`): runs without them would be walked in vain.
    """
    if by_volume:
        tables = "volume CROSS JOIN host ON host.id = volume.host CROSS JOIN saved ON saved.volume = volume.id"
        tables += " CROSS JOIN run ON run.id = saved.run"
    elif wanted.host != "*":
        tables = "host CROSS JOIN run ON run.host = host.id CROSS JOIN volume ON volume.host = host.id"
        tables += " CROSS JOIN saved ON saved.volume = volume.id AND saved.run = run.id"
    else:
        tables = "run CROSS JOIN host ON host.id = run.host CROSS JOIN volume ON volume.host = run.host"
        tables += " CROSS JOIN saved ON saved.volume = volume.id AND saved.run = run.id"
    return (
        "SELECT host.name, volume.name, run.name, run.time_ms, saved.stored_bytes, saved.flags "
        f"FROM {tables} WHERE run.time_ms >= ? AND run.time_ms < ? AND host.name GLOB ? AND volume.name GLOB ? "
        "ORDER BY run.time_ms DESC LIMIT ?",
        (wanted.since_ms, wanted.before_ms, wanted.host, wanted.volume, wanted.most + 1),
    )


class _Taken:
    """The rows of one host while its answer is read: each moment is understood once, whatever the number of volumes."""

    def __init__(self, next_run: int, until_ms: int) -> None:
        self.runs: dict[tuple[str, str], int] = {}
        self.days: dict[int, list[int]] = {}
        """By day: snapshots, good ones, failures, bytes added."""
        self._next_run = next_run
        self._until_ms = until_ms
        self._moments: dict[str, tuple[int, int, list[int]]] = {}

    def day_of(self, time: str) -> tuple[int, int, list[int]]:
        """A moment in ms, its day, and the figures of that day. Raises ValueError."""
        found = self._moments.get(time)
        if found is None:
            moment = ms_of(time)
            day = moment // DAY_MS
            found = self._moments[time] = (moment, day, self.days.setdefault(day, [0, 0, 0, 0]))
        return found

    def history(
        self, volume_id: int, rows: Iterable[Mapping[str, Any]]
    ) -> tuple[list[tuple[int, int, int, int]], tuple[str, int]]:
        """The rows of one volume's snapshots in the order of their key; name and moment of the newest good one.

        What comes from the future does not count.
        """
        saved, newest, until, runs, next_run = [], ("", 0), self._until_ms, self.runs, self._next_run
        for one in rows:
            time, name, good, stored = one["time"], str(one["snapshot"]), bool(one["good"]), int(one["stored_bytes"])
            moment, _, day = self.day_of(time)
            run = runs.setdefault((time, name), next_run + len(runs))
            saved.append((volume_id, run, stored, good + (CHANGED if one["consistency"] == "changed" else 0)))
            if good and newest[1] <= moment <= until:
                newest = (name, moment)
            day[0] += 1
            day[1] += good
            day[3] += stored
        saved.sort()
        return saved, newest


def _host_row(row: tuple[Any, ...]) -> HostRow:
    id_, name, tried_ms, exit_code, kind, error, seen_ms, facts = row
    return HostRow(id_, name, tried_ms, exit_code, kind, error, seen_ms, json.loads(facts))


def _with_growth(facts: Row, before: Row, now: int) -> Row:
    """For a host that cannot be opened: when its chains of commits were first seen to be as they are.

    `moved`: whether they ever changed while somebody looked; until then nobody knows how old the newest commit is.
    """
    if facts["keys"]:
        return facts
    if "advanced_ms" not in before:
        return facts | {"advanced_ms": now, "moved": False}
    if before["chains"] != facts["chains"]:
        return facts | {"advanced_ms": now, "moved": True}
    return facts | {"advanced_ms": before["advanced_ms"], "moved": before["moved"]}


def _volume_values(volume: Mapping[str, Any], newest: tuple[str, int]) -> list[object]:
    """The values of a volume's row; numbers that SQLite cannot hold are as large as it can. Raises ValueError."""
    values = {**volume, "newest": newest[0], "newest_ms": newest[1]}
    return [min(int(values[key]), (1 << 63) - 1) if key in _NUMBERS else str(values[key]) for key in VOLUME]


def _checked_facts(document: Mapping[str, Any]) -> Row:
    """Everything but the volumes. Raises TypeError or KeyError for what no look says."""
    kinds = {"keys": bool, "stored_bytes": int, "packs": int}
    kinds |= {"never": dict, "problems": list, "volumes": list} if document["keys"] else {"chains": dict}
    for key, kind in kinds.items():
        if not isinstance(document[key], kind):
            raise TypeError(f"{key} is no {kind.__name__}")
    return {key: value for key, value in document.items() if key in kinds and key != "volumes"}


def ms_of(text: str) -> int:
    """Milliseconds of a moment in ISO 8601. Raises ValueError."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


# -- the file ---------------------------------------------------------------------------------------------------------


def _connected(path: Path) -> sqlite3.Connection:
    make_private(path.parent)
    for _ in range(2):
        path.touch(0o600)
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS)
        try:
            return _prepared(connection)
        except (sqlite3.DatabaseError, _OtherVersion) as error:
            connection.close()
            if isinstance(error, sqlite3.DatabaseError) and not _is_damage(error):
                raise
            _remove(path)
    raise sqlite3.DatabaseError("it is damaged again at once")


class _OtherVersion(Exception):
    """Another version of this program made the file."""


def _prepared(connection: sqlite3.Connection) -> sqlite3.Connection:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if not tables:
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
    elif version != VERSION:
        raise _OtherVersion
    return connection


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).unlink()


def _unusable(path: Path, error: Exception) -> LamellaError:
    why = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return LamellaError(
        f"the catalogue cannot be used: {why}", obj=str(path), hint="make it again: lamella fleet refresh"
    )
