"""The host's disposable cache of one repository: an SQLite file that may be lost, stale or shared by processes.

It holds copies of commit objects (checked again at every use) and the blob map (see lamella.packs.blobmap).
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from lamella.base.errors import RepositoryError

_VERSION = 6
_NODES_KEPT = 50_000
_ROOM = 32 << 20
"""Bytes that must be free for a cache to be kept: one that fills up in the middle would stop the command."""


class Cache:
    """An open cache. `lock` serialises the threads of this process; SQLite serialises processes."""

    def __init__(self, connection: sqlite3.Connection, path: Path | None) -> None:
        self.connection = connection
        self.path = path
        self.lock = threading.RLock()

    @classmethod
    def open(cls, path: Path | None) -> Cache:
        """Open or create the cache at `path`; a damaged or foreign file is replaced.

        Without a path, where none can be created or little room is left, the cache is a temporary file that goes with
        the process.
        """
        if path is not None:
            for _ in range(2):
                try:
                    if not path.exists():
                        from lamella.base.durable import make_private

                        make_private(path.parent)
                        path.touch(0o600)
                    there = os.statvfs(path.parent)
                    if there.f_bavail * there.f_frsize < _ROOM:
                        break
                    return cls(_connect(path), path)
                except (RepositoryError, sqlite3.Error):
                    _remove(path)
                except OSError:
                    break
        # An empty name is SQLite's private temporary database: on disk, so that large maps do not fill memory.
        return cls(_connect(""), None)

    def close(self) -> None:
        """Close the file."""
        with self.lock:
            self.connection.close()

    # -- statements ----------------------------------------------------------------------------------------------------

    def rows(self, query: str, parameters: Sequence[object] = ()) -> list[Any]:
        """All rows of a query. Raises RepositoryError."""
        with self.lock:
            return self.connection.execute(query, parameters).fetchall()

    def row(self, query: str, parameters: Sequence[object] = ()) -> Any:  # noqa: ANN401 - a row, or None for none
        """The first row of a query, None without one. Raises RepositoryError."""
        with self.lock:
            return self.connection.execute(query, parameters).fetchone()

    def pages(self, query: str, after: object, *parameters: object) -> Iterator[Any]:
        """All rows of a query with a LIMIT, whose first parameter and first column say where to continue.

        The table may change meanwhile: nothing is held between two pages.
        """
        while True:
            rows = self.rows(query, (after, *parameters))
            if not rows:
                return
            yield from rows
            after = rows[-1][0]

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """The connection in a transaction, with the lock held. Raises RepositoryError."""
        with self.lock, self.connection as connection:
            yield connection

    # -- commits and nodes ---------------------------------------------------------------------------------------------

    def commit(self, name: str) -> bytes | None:
        """A remembered commit object, not yet checked."""
        row = self.row("SELECT content FROM commits WHERE name = ?", (name,))
        return None if row is None else bytes(row[0])

    def node(self, pack: bytes, offset: int) -> bytes | None:
        """A remembered sealed node at its place in a pack, not yet checked."""
        row = self.row("SELECT sealed FROM nodes WHERE pack = ? AND place = ?", (pack, offset))
        return None if row is None else bytes(row[0])

    def remember_nodes(self, rows: Iterable[tuple[bytes, int, bytes]]) -> None:
        """Keep sealed nodes: pack, offset, bytes. The oldest make room."""
        with self.change() as connection:
            connection.executemany("INSERT OR IGNORE INTO nodes (pack, place, sealed) VALUES (?, ?, ?)", rows)
            connection.execute("DELETE FROM nodes WHERE number <= (SELECT MAX(number) FROM nodes) - ?", (_NODES_KEPT,))

    def packs_bytes(self) -> int:
        """Bytes of all packs that are known and in no trouble."""
        return int(self.row("SELECT TOTAL(length) FROM packs WHERE trouble IS NULL")[0])

    def answer(self, question: str, state: bytes) -> bytes | None:
        """The sealed answer to a question in this state, not yet checked (lamella.history.answers), or None."""
        row = self.row("SELECT sealed FROM answers WHERE question = ? AND state = ?", (question, state))
        return None if row is None else bytes(row[0])

    def keep_answer(self, question: str, state: bytes, sealed: bytes) -> None:
        """Keep a sealed answer, the newest to its question."""
        with self.change() as connection:
            connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (question, state, sealed))

    def commit_names(self) -> list[str]:
        """The names of all remembered commits."""
        return [row[0] for row in self.rows("SELECT name FROM commits ORDER BY name")]

    def remember_commits(self, objects: Iterable[tuple[str, bytes]]) -> None:
        """Keep commit objects."""
        with self.change() as connection:
            connection.executemany("INSERT OR REPLACE INTO commits VALUES (?, ?)", objects)


_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


@contextmanager
def _translated(connection: sqlite3.Connection) -> Iterator[None]:
    """SQLite's errors as RepositoryError; a damaged file is removed, so that the next run makes a new one."""
    try:
        yield
    except sqlite3.Error as error:
        path = connection.path if isinstance(connection, _Connection) else None
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        hint = "LAMELLA_CACHE_DIR names another place for it"
        if path is not None and code in _DAMAGED:
            _remove(path)
            hint = "it was removed: run the same command again"
        where = "the temporary cache" if path is None else f"the cache {path}"
        raise RepositoryError(f"{where} cannot be used: {error}", obj=str(path or ""), hint=hint) from error


class _Cursor(sqlite3.Cursor):
    """Fetching reads the file too, so it fails like executing does."""

    def fetchone(self) -> Any:  # noqa: ANN401 - as sqlite3 declares it
        with _translated(self.connection):
            return super().fetchone()

    def fetchall(self) -> list[Any]:
        with _translated(self.connection):
            return super().fetchall()


class _Connection(sqlite3.Connection):
    """A connection whose errors are Lamella's. Used with `execute`, `executemany` and as a context manager."""

    path: Path | None = None

    def execute(self, *arguments: Any) -> _Cursor:  # noqa: ANN401 - handed through
        with _translated(self):
            return self.cursor(_Cursor).execute(*arguments)

    def executemany(self, *arguments: Any) -> _Cursor:  # noqa: ANN401 - handed through
        with _translated(self):
            return self.cursor(_Cursor).executemany(*arguments)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        with _translated(self):
            return super().__exit__(kind, error, trace)


def _connect(path: Path | str) -> _Connection:
    connection = sqlite3.connect(path, timeout=60, check_same_thread=False, factory=_Connection)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -8192")
        connection.execute("PRAGMA temp_store = FILE")
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                from lamella.packs.cache_schema import SCHEMA  # once in the life of a cache

                for statement in SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise sqlite3.DatabaseError("a cache of another version")
    except BaseException:
        connection.close()
        raise
    connection.path = Path(path) if path else None
    return connection


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        with suppress(OSError):
            path.with_name(path.name + suffix).unlink()
