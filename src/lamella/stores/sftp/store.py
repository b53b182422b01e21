"""A store in a directory that a server of SFTP shows. The layout is that of a local store: one file per object, written
below `tmp/` and given its name when it is whole and durable.

Nobody runs anything of Lamella's there, so there is no lock (docs/CONCURRENCY.md, "Deleting without a lock").
"""

from __future__ import annotations

import os
import posixpath
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

from lamella.base.errors import NoRepository, ObjectNotFound, StoreError, StoreRefused, StoreUnavailable
from lamella.base.names import MARKER
from lamella.base.trust import Clear, Sealed
from lamella.stores.base import Abilities, Entry, checked_name, checked_prefix, range_end
from lamella.stores.memory import ReadersWriterLock
from lamella.stores.sftp import files
from lamella.stores.sftp.connection import Flight, SftpConnection
from lamella.stores.sftp.packets import (
    FSYNC,
    HARDLINK,
    NEW,
    READ,
    NamedFiles,
    PacketKind,
    SftpAnswer,
    Status,
    private,
    text,
    word,
)

TEMPORARY = "tmp"
"""Directory of unfinished writes, no part of the store's names (FORMAT 13.22)."""
MAX_OBJECT = 72 << 20
"""Bytes of an object, at most: what the format allows (FORMAT 5) and some room."""
_UNFINISHED_KEPT_SECONDS = 7 * 86400
"""A later writer removes what a killed writer left: by then no writer can still be using it."""
_TEMPORARY_NAME = re.compile(r"[0-9a-f]{32}")
_GONE = "the repository's directory is not there any more"
_MOUNTED = "is its disk still mounted there?"

_SYNCED = {Status.OK, Status.BAD_MESSAGE, Status.OP_UNSUPPORTED}
"""Answers to a sync: the last two come from file systems that cannot sync a directory, as CIFS (EINVAL, ENOSYS)."""

Connect = Callable[[], SftpConnection]


class SftpStore:
    """Objects as files below a directory of another machine; made by `open_sftp`."""

    def __init__(self, url: str, root: bytes, connect: Connect, *, create: bool, read_only: bool) -> None:
        """Connect, and look at the directory. Raises NoRepository, StoreError."""
        self._url = url
        self._root = root
        self._connect = connect
        self._closed = False
        self._connecting = threading.Lock()
        self._syncing = threading.Lock()
        self._renaming = threading.Lock()
        self._lock = ReadersWriterLock()
        self._directories: set[str] = set()
        """Directories that are known to be there: none of them is ever made again, on a disk that is not the one."""
        self._unsynced: dict[str, tuple[SftpConnection, bool]] = {}
        """Name -> the connection that put it, or removed it (False): not yet known to be durable."""
        self._links = True
        self._swept = self._sync_failed = False
        self._connection = connect()
        try:
            weaker = self._looked_at(create)
        except BaseException:
            self._connection.close()
            raise
        writes = not read_only
        self._abilities = Abilities(False, delete=writes, write=writes, distant=True, weaker=weaker)

    def _looked_at(self, create: bool) -> tuple[str, ...]:
        """Find the directory; what this server cannot promise, in words."""
        connection, root = self._connection, text(self._root)
        flight = Flight(connection, self._url)
        if create:
            flight.ask(0, PacketKind.MKDIR, root + private(0o700))
        flight.ask(1, PacketKind.STAT, root)
        flight.ask(2, PacketKind.OPEN, root + word(READ) + private(0))
        flight.ask(3, PacketKind.LSTAT, text(self._path(MARKER)))
        answers = dict(flight.take() for _ in range(flight.pending))
        self._made = create and files.status_of(connection, answers[0]) == Status.OK
        opens = answers[2].kind == PacketKind.HANDLE
        if opens:
            connection.post(PacketKind.CLOSE, text(connection.handle(answers[2], self._url)))
        try:
            found = files.attributes(connection, answers[1], self._url)
        except ObjectNotFound as error:
            hint = "make the directory above it first" if create else _MOUNTED
            raise NoRepository("there is no such directory", obj=self._url, hint=hint) from error
        if not found.is_directory:
            raise NoRepository("not a directory", obj=self._url)
        self._has_marker = answers[3].kind == PacketKind.ATTRS
        return _weaker(connection.extensions, opens)

    @property
    def url(self) -> str:
        """Where this store is, in the form a user would give it."""
        return self._url

    @property
    def abilities(self) -> Abilities:
        """No lock between processes; what else the server cannot do is said in words."""
        return self._abilities

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly `length` bytes from `offset` (all from there when None).

        Raises ObjectNotFound; StoreError when the object ends before, StoreRefused for anything but a regular file.
        """
        path = self._path_of(name)
        connection = self._connected()
        flight = Flight(connection, name)
        flight.ask(0, PacketKind.LSTAT, text(path))
        flight.ask(1, PacketKind.OPEN, text(path) + word(READ) + private(0))
        answers = dict((flight.take(), flight.take()))
        handle = None if answers[1].kind != PacketKind.HANDLE else connection.handle(answers[1], name)
        try:
            size = self._size(connection, answers[0], name)
            if handle is None:
                connection.handle(answers[1], name)
            end = range_end(name, size, offset, length)
            if end - offset > MAX_OBJECT:
                raise StoreError(f"an object of more than {MAX_OBJECT} bytes", obj=name)
            return files.read(connection, handle or b"", offset, end, name)
        finally:
            if handle is not None:
                connection.post(PacketKind.CLOSE, text(handle))

    def stat(self, name: str) -> int:
        """Return the object's size in bytes. Raises ObjectNotFound; StoreRefused for anything but a regular file."""
        path = self._path_of(name)
        connection = self._connected()
        return self._size(connection, connection.call(PacketKind.LSTAT, text(path), name), name)

    @staticmethod
    def _size(connection: SftpConnection, answer: SftpAnswer, name: str) -> int:
        found = files.attributes(connection, answer, name)
        if found.is_directory:
            raise ObjectNotFound("no such object: a directory has this name", obj=name)
        if not found.is_file:
            raise StoreRefused("not a regular file", obj=name)
        return found.size

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`. A directory that cannot be read raises: it never looks empty."""
        if checked_prefix(prefix):
            self._path_of(prefix[:-1])
        self._require_open()
        return self._listed(prefix)

    def _listed(self, prefix: str) -> Iterator[Entry]:
        connection = self._connected()

        def read(prefixes: Sequence[str]) -> Sequence[NamedFiles | None]:
            return files.directories(connection, [self._path(found.rstrip("/")) for found in prefixes], self._url)

        yield from files.FolderWalk(read, TEMPORARY, self._url, lasting=True).below(prefix)
        # At the end, when nothing can vanish unnoticed any more: a directory that is gone looks like an empty one.
        self._check_in_place(connection)

    def _check_in_place(self, connection: SftpConnection) -> None:
        """Raise StoreUnavailable if the directory is gone, or another one, such as an empty mount point, is seen."""
        kind, path = (PacketKind.LSTAT, self._path(MARKER)) if self._has_marker else (PacketKind.STAT, self._root)
        if connection.call(kind, text(path), self._url).kind != PacketKind.ATTRS:
            raise StoreUnavailable(_GONE, obj=self._url, hint=_MOUNTED)

    # -- writing ------------------------------------------------------------------------------------------------------

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store an object, all or nothing; its bytes are durable before its name appears, where the server can do that.

        Raises StoreRefused for an existing name with other bytes or a directory that may not be written, StoreFull,
        StoreUnavailable.
        """
        path = self._path_of(self._checked_writable(name))
        connection = self._connected()
        self._make_directories(connection, name)
        temporary = f"{TEMPORARY}/{os.urandom(16).hex()}"
        unfinished = text(self._path(temporary))
        flight = Flight(connection, name)
        flight.ask(0, PacketKind.LSTAT, text(path))
        flight.ask(1, PacketKind.OPEN, unfinished + word(NEW) + private(0o600))
        answers = dict((flight.take(), flight.take()))
        try:
            handle = connection.handle(answers[1], name)
        except ObjectNotFound as error:  # the directory was there before
            raise StoreUnavailable(_GONE, obj=self._url, hint=_MOUNTED) from error
        try:
            if answers[0].kind == PacketKind.ATTRS:
                connection.post(PacketKind.CLOSE, text(handle))
                self._require_equal(name, content)
            else:
                files.write(connection, handle, content, name, self._root)
                self._publish(connection, temporary, name, content)
        finally:
            connection.post(PacketKind.REMOVE, unfinished)  # what was renamed is not there any more
        self._unsynced[name] = connection, True
        self._has_marker = self._has_marker or name == MARKER

    def _publish(self, connection: SftpConnection, temporary: str, name: str, content: bytes) -> None:
        """Give the finished file its name, or find the name taken by the same bytes.

        A hard link never replaces. The protocol says the same of a renaming, but not every server keeps to that, so a
        look comes first.
        """
        old, new = text(self._path(temporary)), text(self._path(name))
        linking = text(HARDLINK.encode()) + old + new
        if self._links and HARDLINK in connection.extensions:
            if self._named(connection, PacketKind.EXTENDED, linking, name, content):
                return
            self._links = False  # the file system there has none
        with self._renaming:
            if self._is_there(connection, name):
                return self._require_equal(name, content)
            if not self._named(connection, PacketKind.RENAME, old + new, name, content):
                raise StoreRefused("the far side says that the object has its name, and it has none", obj=name)

    def _named(self, connection: SftpConnection, kind: int, fields: bytes, name: str, content: bytes) -> bool:
        """Ask for a name; whether it is that of the object now.

        What the server says is not enough to remove the unfinished file: rclone's says yes to a hard link and makes
        none. Raises StoreRefused where the name is taken by other bytes; what the server says, for a renaming.
        """
        flight = Flight(connection, name)
        flight.ask(0, kind, fields)
        flight.ask(1, PacketKind.LSTAT, text(self._path(name)))
        answers = dict((flight.take(), flight.take()))
        there = answers[1].kind == PacketKind.ATTRS
        if files.status_of(connection, answers[0]) == Status.OK:
            return there and self._size(connection, answers[1], name) == len(content)
        if there:
            self._require_equal(name, content)
        elif kind == PacketKind.RENAME:
            files.done(connection, answers[0], name)
        return there

    def _is_there(self, connection: SftpConnection, name: str) -> bool:
        return connection.call(PacketKind.LSTAT, text(self._path(name)), name).kind == PacketKind.ATTRS

    def _require_equal(self, name: str, content: bytes) -> None:
        """Raises StoreRefused if the object does not hold these bytes."""
        try:
            same = self.stat(name) == len(content) and self.get(name) == content
        except ObjectNotFound as error:
            raise StoreRefused("a directory has this name", obj=name) from error
        if not same:
            raise StoreRefused("the store holds other bytes under this name", obj=name)

    def _make_directories(self, connection: SftpConnection, name: str) -> None:
        parts = name.split("/")[:-1]
        wanted = [TEMPORARY, *("/".join(parts[: depth + 1]) for depth in range(len(parts)))]
        missing = [directory for directory in wanted if directory not in self._directories]
        if not missing:
            return
        flight = Flight(connection, name)
        for directory in missing:
            path = text(self._path(directory))
            flight.ask(0, PacketKind.MKDIR, path + private(0o700))  # fails where it is there already
            flight.ask(1, PacketKind.STAT, path)
        answers = [flight.take() for _ in range(flight.pending)]
        refusals = iter([answer for key, answer in answers if key == 0])
        for answer in (answer for key, answer in answers if key == 1):
            made = next(refusals)
            if answer.kind != PacketKind.ATTRS:
                files.done(connection, made, name)
            if not files.attributes(connection, answer, name).is_directory:
                raise StoreRefused("a file stands in place of a directory", obj=name)
        self._directories.update(missing)

    def delete(self, name: str) -> None:
        """Remove an object; no error if there is none. Raises StoreRefused, StoreUnavailable."""
        path = self._path_of(self._checked_writable(name))
        connection = self._connected()
        answer = connection.call(PacketKind.REMOVE, text(path), name)
        code = files.status_of(connection, answer)
        if code == Status.NO_SUCH_FILE:
            self._check_in_place(connection)
        elif code != Status.OK:
            now = connection.call(PacketKind.LSTAT, text(path), name)
            if now.kind == PacketKind.ATTRS and not files.attributes(connection, now, name).is_directory:
                files.done(connection, answer, name)
        self._unsynced[name] = connection, False
        self._has_marker = self._has_marker and name != MARKER

    def sync(self) -> None:
        """Return when every earlier put and delete is durable, where the server can do that.

        What an earlier connection put is looked at again: the machine there may have been restarted. Raises StoreError
        when something is gone, StoreUnavailable.
        """
        with self._syncing:
            connection = self._connected()
            before = dict(self._unsynced)
            if self._sync_failed:
                raise StoreError("an earlier sync failed, writes before it may be lost", obj=self._url)
            if not before:
                return
            self._check_in_place(connection)
            self._look_again(connection, before)
            self._sync_directories(connection, before)
            for name, state in before.items():
                if self._unsynced.get(name) is state:
                    del self._unsynced[name]
            if self._abilities.delete and not self._swept:
                self._swept = True
                self._sweep(connection)

    def _look_again(self, connection: SftpConnection, unsynced: dict[str, tuple[SftpConnection, bool]]) -> None:
        """Raises StoreError if something is gone that an earlier connection put; removes again what it removed."""
        flight = Flight(connection, self._url)
        stale = [(name, put) for name, (where, put) in unsynced.items() if where is not connection]
        for number, (name, put) in enumerate(stale):
            flight.ask(number, PacketKind.LSTAT if put else PacketKind.REMOVE, text(self._path(name)))
        for _ in stale:
            number, answer = flight.take()
            name, put = stale[number]
            if put and answer.kind != PacketKind.ATTRS:
                raise StoreError("what was stored before the connection broke is not there", obj=name)

    def _sync_directories(self, connection: SftpConnection, names: Iterable[str]) -> None:
        """Have the names in directories made durable, the deepest first: what survives then leads to something."""
        if FSYNC not in connection.extensions:
            return
        parts = [name.split("/")[:-1] for name in names]
        found = {"/".join(above[:depth]) for above in parts for depth in range(len(above) + 1)}
        paths = [self._path(directory) for directory in sorted(found, key=lambda name: (-name.count("/"), not name))]
        if self._made:
            paths.append(posixpath.dirname(self._root) or b".")
        flight = Flight(connection, self._url)
        for number, path in enumerate(paths):
            flight.ask(number, PacketKind.OPEN, text(path) + word(READ) + private(0))
        answers = dict(flight.take() for _ in paths)
        handles = [
            connection.handle(answers[number], self._url)
            for number in range(len(paths))
            if answers[number].kind == PacketKind.HANDLE  # others: `abilities.weaker` says so
        ]
        for handle in handles:
            flight.ask(0, PacketKind.EXTENDED, text(FSYNC.encode()) + text(handle))
            connection.post(PacketKind.CLOSE, text(handle))
        codes = {files.status_of(connection, flight.take()[1]) for _ in handles}
        if not codes <= _SYNCED:
            self._sync_failed = True
            raise StoreError("sync failed at the far side, earlier writes may be lost", obj=self._url)

    def _sweep(self, connection: SftpConnection) -> None:
        """Remove unfinished writes that are old by the far side's clock (FORMAT 12: seven days)."""
        place = self._path(TEMPORARY)
        (rows,) = files.directories(connection, [place], TEMPORARY)
        now = files.attributes(connection, connection.call(PacketKind.LSTAT, text(place), TEMPORARY), TEMPORARY).changed
        for row in rows or ():
            old = row.attributes.is_file and row.attributes.changed <= now - _UNFINISHED_KEPT_SECONDS
            if old and _TEMPORARY_NAME.fullmatch(row.name):
                connection.post(PacketKind.REMOVE, text(self._path(f"{TEMPORARY}/{row.name}")))

    # -- the lock, the connection -------------------------------------------------------------------------------------

    def lock(self, *, exclusive: bool, wait_seconds: float = 0.0) -> AbstractContextManager[None]:
        """Hold a lock between the users of this handle. Other processes are not excluded, as `abilities` says."""
        return self._lock.held(exclusive=exclusive, wait_seconds=wait_seconds)

    def close(self) -> None:
        """End the connection; further calls raise StoreError."""
        self._closed = True
        self._connection.close()

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed", obj=self._url)

    def _connected(self) -> SftpConnection:
        """The connection; a new one if the last one broke."""
        with self._connecting:
            self._require_open()
            if self._connection.failed:
                self._connection.close()
                self._connection = self._connect()
                self._check_in_place(self._connection)
            return self._connection

    # -- names --------------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> bytes:
        return self._root + b"/" + name.encode("ascii") if name else self._root

    def _path_of(self, name: str) -> bytes:
        if checked_name(name).partition("/")[0] == TEMPORARY:
            raise StoreRefused(f"names below {TEMPORARY} are kept for unfinished writes", obj=name)
        return self._path(name)

    def _checked_writable(self, name: str) -> str:
        if not self._abilities.write:
            raise StoreRefused("the store was opened for reading only", obj=checked_name(name))
        return name


def _weaker(extensions: frozenset[str], opens_directories: bool) -> tuple[str, ...]:
    """What a server with these extensions cannot promise."""
    found: list[str] = []
    if FSYNC not in extensions:
        found.append("it cannot be asked to make writes durable: a power cut there may take what was stored last")
    elif not opens_directories:
        found.append("it cannot be asked to make names durable: a power cut there may take what was stored last")
    if HARDLINK not in extensions:
        found.append("it makes no hard links: two lamella init at one place and time could replace each other's marker")
    return tuple(found)
