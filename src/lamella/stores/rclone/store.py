"""`rclone:REMOTE:PATH`: a store on any remote that the user's rclone knows.

No remote of rclone promises an exclusive creation: a look comes first, and two *processes* can put different bytes
under one name at the same moment. Names of packs, commits and segments contain the hash of their bytes; the other names
are read back. Where a remote shows objects before they are whole, they are written below `tmp/` and moved.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import quote

from lamella.base.clock import now_ms
from lamella.base.errors import (
    LamellaError,
    NoRepository,
    ObjectCold,
    ObjectNotFound,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    UsageError,
)
from lamella.base.names import COMMITS, MARKER, PACKS, SEGMENTS
from lamella.base.trust import Clear, Sealed
from lamella.run.pipeline import ordered_map
from lamella.stores.base import Abilities, Entry, checked_name, checked_prefix, range_end
from lamella.stores.memory import NameLocks, ReadersWriterLock
from lamella.stores.rclone.daemon import Daemon, Failed, RcloneRequest
from lamella.stores.sftp.files import FolderWalk
from lamella.stores.sftp.packets import Attributes, NamedFile, NamedFiles
from lamella.stores.sftp.store import MAX_OBJECT, TEMPORARY

_FORM = "write rclone:REMOTE:PATH; `rclone listremotes` names the remotes"
_ROOM = "make room there, with lamella prune too"
_HASHED = (PACKS, COMMITS, SEGMENTS)
_UNFINISHED_KEPT_SECONDS = 7 * 86400
_SIDE_BY_SIDE = 8
_QUICK = {"noModTime": True, "noMimeType": True}
_NOT_FOUND = re.compile(
    r"(object|directory|file) not found|NoSuchBucket|is a directory not a file|not a directory|no such (file|bucket)",
    re.IGNORECASE,
)
_GONE = "Not Found"
"""What rclone says of an object that went away between its look and its reading; a second look decides."""
_FULL = re.compile(r"quota|no space|insufficient.*(storage|space)|storage.*full|disk full|507", re.IGNORECASE)
_REFUSED = re.compile(
    r"access ?denied|forbidden|unauthori[sz]ed|permission|invalid_grant|InvalidAccessKey|SignatureDoesNotMatch"
    r"|read.?only|\b40[13]\b",
    re.IGNORECASE,
)
_COLD = re.compile(r"InvalidObjectState|restore first", re.IGNORECASE)
_SILENT = re.compile(r"time(d )?out|deadline exceeded", re.IGNORECASE)
"""rclone has tried that some times itself."""
_NO_REMOTE = re.compile(r"didn't find section|is a file not a directory|didn't find backend|config", re.IGNORECASE)
_RANGE = re.compile(r"bytes -?[0-9]+--?[0-9]+/([0-9]{1,18})|bytes \*/([0-9]{1,18})")


def open_rclone(place: str, /, *, create: bool, read_only: bool) -> RcloneStore:
    """Open the store at `REMOTE:PATH`, by the `rclone` on the PATH with the user's own configuration.

    Raises UsageError, NoRepository when there is no such directory, StoreRefused, StoreUnavailable.
    """
    if ":" not in place or place.startswith("/") or "]" in place or any(not c.isprintable() for c in place):
        raise UsageError("not a place that rclone could reach", obj=f"rclone:{place}", hint=_FORM)
    return RcloneStore(place, create=create, read_only=read_only)


class RcloneStore:
    """Objects below a path of a remote; made by `open_rclone`. Its lock holds between the users of one handle only."""

    def __init__(self, place: str, *, create: bool, read_only: bool) -> None:
        """Start rclone, and look at the place. Raises UsageError, NoRepository, StoreError."""
        self._url = f"rclone:{place}"
        self._fs = place
        self._closed = False
        self._starting = threading.Lock()
        self._lock = ReadersWriterLock()
        self._names = NameLocks()
        self._swept = False
        self._daemon = Daemon(self._url)
        try:
            self._features = self._known_features()
            if create:
                self._call("operations/mkdir", "", remote="")
            self._has_marker = self._size(MARKER) is not None
            if not self._has_marker and self._directory("") is None:
                hint = "does `rclone lsd` show it?"
                raise NoRepository("there is no such directory", obj=self._url, hint=hint)
        except BaseException:
            self._daemon.close()
            raise
        writes = not read_only
        self._abilities = Abilities(False, delete=writes, write=writes, distant=True, weaker=self._weaker())

    def _known_features(self) -> Mapping[str, Any]:
        try:
            found = self._daemon.call("operations/fsinfo", self._url, fs=self._fs).get("Features")
        except Failed as error:
            if _NO_REMOTE.search(str(error)):
                raise UsageError(f"rclone: {error}", obj=self._url, hint=_FORM) from error
            raise _meaning(error, self._url) from error
        return found if isinstance(found, dict) else {}

    @property
    def _whole(self) -> bool:
        """Whether a name shows an object when it is whole, and not before: buckets have no other way."""
        return self._features.get("BucketBased") is True

    def _weaker(self) -> tuple[str, ...]:
        found = [
            "no remote of rclone keeps two programs from creating one name at the same moment: "
            "two lamella init at one place and time could replace each other's marker"
        ]
        if not self._whole:
            found.append("rclone does not say whether what it stored survives a power cut there")
        if not self._whole and not self._features.get("Move"):
            found.append("this remote moves no files: a run that is killed may leave half an object under its name")
        return tuple(found)

    @property
    def url(self) -> str:
        """Where this store is, in the form a user would give it."""
        return self._url

    @property
    def abilities(self) -> Abilities:
        """No lock between processes; what else the remote cannot do is said in words."""
        return self._abilities

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly `length` bytes from `offset` (all from there when None).

        Raises ObjectNotFound; StoreError when the object ends before; StoreUnavailable, StoreRefused.
        """
        path = self._path_of(name)
        if offset < 0 or length == 0 or (length is not None and length < 0):
            range_end(name, self.stat(name), offset, length)
            return b""
        headers = {}
        if offset or length is not None:
            headers["Range"] = f"bytes={offset}-" + ("" if length is None else str(offset + length - 1))
        most = MAX_OBJECT if length is None else min(length, MAX_OBJECT)
        try:
            reply = self._running().ask(RcloneRequest("GET", path, b"", headers, most), name)
        except Failed as error:
            known = self._size(name) if offset or str(error) == _GONE else None
            if known is None and str(error) == _GONE:
                raise ObjectNotFound("no such object", obj=name) from error
            if known is None or offset < known:
                raise _meaning(error, name) from error
            range_end(name, known, offset, length)  # services refuse a range that begins at the end
            return b""
        size = len(reply.body)
        if headers:
            found = _RANGE.fullmatch(reply.headers.get("content-range", ""))
            if found is None:
                raise StoreUnavailable("rclone answered with another range than was asked for", obj=name)
            size = int(found[1] or found[2])
        end = range_end(name, size, offset, length)
        if len(reply.body) != end - offset:
            raise StoreUnavailable(f"rclone sent {len(reply.body)} bytes instead of {end - offset}", obj=name)
        return reply.body

    def stat(self, name: str) -> int:
        """Return the object's size in bytes. Raises ObjectNotFound."""
        self._path_of(name)
        size = self._size(name)
        if size is None:
            raise ObjectNotFound("no such object", obj=name)
        return size

    def _size(self, name: str) -> int | None:
        try:
            item = self._call("operations/stat", name, remote=name, opt={"filesOnly": True, **_QUICK}).get("item")
        except ObjectNotFound:
            return None
        if not isinstance(item, dict) or item.get("IsDir"):
            return None
        return _whole_number(item.get("Size"), name)

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`. Raises StoreError when it cannot be read to its end."""
        if checked_prefix(prefix):
            self._path_of(prefix[:-1])
        self._running()
        return self._listed(prefix)

    def _listed(self, prefix: str) -> Iterator[Entry]:
        lasting = self._features.get("CanHaveEmptyDirectories") is True
        yield from FolderWalk(self._directories, TEMPORARY, self._url, lasting=lasting).below(prefix)
        # At the end: a disk that was unmounted meanwhile looks like one that has only the directories read before.
        if self._has_marker and self._size(MARKER) is None:
            raise StoreUnavailable("the repository is not there any more", obj=self._url)

    def _directories(self, prefixes: Sequence[str]) -> Sequence[NamedFiles | None]:
        if len(prefixes) == 1:
            return [self._directory(prefixes[0])]
        return [*ordered_map(self._directory, prefixes, workers=_SIDE_BY_SIDE)]

    def _directory(self, prefix: str, options: Mapping[str, bool] = _QUICK) -> NamedFiles | None:
        try:
            items = self._call("operations/list", prefix, remote=prefix.rstrip("/"), opt=dict(options)).get("list")
        except ObjectNotFound:
            return None
        if items is None:
            return []
        if not isinstance(items, list):
            raise StoreUnavailable("rclone answers something else than a listing", obj=prefix)
        # Some clouds keep several files of one name: equal ones are one object.
        return [*dict.fromkeys(_row(item, prefix) for item in items)]

    # -- writing ------------------------------------------------------------------------------------------------------

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store an object, all or nothing.

        Raises StoreRefused for an existing name with other bytes and for anything the remote forbids, StoreFull,
        StoreUnavailable.
        """
        self._path_of(self._checked_writable(name))
        with self._names.held(name):
            size = self._size(name)
            if size is None:
                self._store(name, content)
                size = len(content) if name.startswith(_HASHED) else None
            elif size != len(content):
                raise StoreRefused("the store holds other bytes under this name", obj=name)
            else:
                size = None
            if size is None and self.get(name) != content:
                raise StoreRefused("the store holds other bytes under this name", obj=name)
        self._has_marker = self._has_marker or name == MARKER

    def _store(self, name: str, content: bytes) -> None:
        if self._whole or not self._features.get("Move"):
            self._upload(name, content)
            return
        temporary = f"{TEMPORARY}/{os.urandom(16).hex()}"
        self._upload(temporary, content)
        self._call("operations/movefile", name, srcFs=self._fs, srcRemote=temporary, dstFs=self._fs, dstRemote=name)

    def _upload(self, name: str, content: bytes) -> None:
        """Put a file (multipart/form-data, RFC 7578): rclone compares its size and hash with what it was given."""
        above, _, leaf = name.rpartition("/")
        border = os.urandom(16).hex()
        head = (
            f'--{border}\r\nContent-Disposition: form-data; name="file0"; filename="{leaf}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        body = (head, content, f"\r\n--{border}--\r\n".encode())
        headers = {
            "Content-Type": f"multipart/form-data; boundary={border}",
            "Content-Length": str(sum(map(len, body))),
        }
        path = f"/operations/uploadfile?fs={quote(self._fs, safe='')}&remote={quote(above, safe='')}"
        with self._translated(name):
            self._running().ask(RcloneRequest("POST", path, body, headers, 1 << 20), name)

    def delete(self, name: str) -> None:
        """Remove an object; no error if there is none. Raises StoreRefused where that is not allowed."""
        self._path_of(self._checked_writable(name))
        try:
            self._call("operations/deletefile", name, remote=name)
        except ObjectNotFound:
            return
        self._has_marker = self._has_marker and name != MARKER

    def sync(self) -> None:
        """Nothing to wait for: rclone answers when the remote has answered."""
        self._running()
        if self._abilities.delete and not self._swept and not self._whole:
            self._swept = True
            self._sweep()

    def _sweep(self) -> None:
        """Remove unfinished writes that are old (FORMAT 12: seven days)."""
        rows = self._directory(TEMPORARY, {"noMimeType": True, "filesOnly": True})
        oldest = now_ms() // 1000 - _UNFINISHED_KEPT_SECONDS
        for row in rows or ():
            if 0 < row.attributes.changed < oldest:
                self.delete_unfinished(row.name)

    def delete_unfinished(self, leaf: str) -> None:
        """Remove one unfinished write."""
        try:
            self._call("operations/deletefile", leaf, remote=f"{TEMPORARY}/{leaf}")
        except StoreError:
            return

    # -- the lock, rclone ---------------------------------------------------------------------------------------------

    def lock(self, *, exclusive: bool, wait_seconds: float = 0.0) -> AbstractContextManager[None]:
        """Hold a lock between the users of this handle. Other processes are not excluded, as `abilities` says."""
        return self._lock.held(exclusive=exclusive, wait_seconds=wait_seconds)

    def close(self) -> None:
        """End rclone; further calls raise StoreError."""
        self._closed = True
        self._daemon.close()

    def _running(self) -> Daemon:
        """rclone; a new one if the last one ended. Raises StoreError when the store is closed."""
        with self._starting:
            if self._closed:
                raise StoreError("the store is closed", obj=self._url)
            if self._daemon.ended:
                self._daemon.close()
                self._daemon = Daemon(self._url)
            return self._daemon

    def _call(self, method: str, obj: str, **arguments: object) -> dict[str, Any]:
        if "srcFs" not in arguments:
            arguments["fs"] = self._fs
        with self._translated(obj):
            return self._running().call(method, obj, **arguments)

    @contextmanager
    def _translated(self, obj: str) -> Iterator[None]:
        try:
            yield
        except Failed as error:
            raise _meaning(error, obj) from error

    def _path_of(self, name: str) -> str:
        """The path by which rclone serves an object."""
        if checked_name(name).partition("/")[0] == TEMPORARY:
            raise StoreRefused(f"names below {TEMPORARY} are kept for unfinished writes", obj=name)
        return f"/{quote(f'[{self._fs}]', safe='')}/{name}"

    def _checked_writable(self, name: str) -> str:
        if not self._abilities.write:
            raise StoreRefused("the store was opened for reading only", obj=checked_name(name))
        return name


def _meaning(error: Failed, obj: str) -> LamellaError:
    """The error for what rclone says."""
    said = str(error)
    if _NOT_FOUND.search(said):
        return ObjectNotFound("no such object", obj=obj)
    if _FULL.search(said):
        return StoreFull(f"no space left there: rclone says {said}", obj=obj, hint=_ROOM)
    if _COLD.search(said):
        return ObjectCold(f"it must be thawed first: rclone says {said}", obj=obj, hint="by the service's own tools")
    if _REFUSED.search(said):
        return StoreRefused(f"the remote refuses: rclone says {said}", obj=obj)
    failed = StoreUnavailable(f"rclone says: {said}", obj=obj)
    failed.silent = bool(_SILENT.search(said))
    return failed


def _row(item: object, prefix: str) -> NamedFile:
    if not isinstance(item, dict) or not isinstance(item.get("Name"), str):
        raise StoreUnavailable("rclone answers something else than a listing", obj=prefix)
    name = item["Name"].encode("ascii", "backslashreplace").decode()
    if item.get("IsDir"):
        return NamedFile(name, Attributes(0, stat.S_IFDIR, 0))
    return NamedFile(
        name, Attributes(_whole_number(item.get("Size"), prefix), stat.S_IFREG, _seconds(item.get("ModTime")))
    )


def _whole_number(value: object, obj: str) -> int:
    if not isinstance(value, int) or value < 0:
        raise StoreUnavailable("rclone does not say how large the object is", obj=obj)
    return value


def _seconds(time: object) -> int:
    """Seconds since 1970 of a time as rclone writes it; 0 if it says none."""
    try:
        return int(datetime.fromisoformat(str(time)[:19] + "+00:00").timestamp())
    except ValueError:
        return 0
