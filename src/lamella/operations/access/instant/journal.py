"""Which chunks a target holds, and which of them its guest wrote to: what a killed restore and a power cut leave true.

One file of a head and three bitmaps, one bit for each chunk. `touched`: the guest wrote to it. `present`: the target
holds it. `settled`: the target holds it whatever happens to the power.

The order of things (decision 0051), each step after the one before it:

* a write of the guest: touched; if the chunk is settled, the journal is made durable; the target; present; the reply;
* a chunk from the repository: the target; present;
* a flush: the target is made durable; then touched; then settled; the reply.

After a killed process `present` is believed: the kernel has all that was written. After a power cut `settled` is. A
chunk that is settled and not touched is the repository's, byte for byte, so its id can be checked at the end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lamella.base.durable import PRIVATE, sync_directory
from lamella.base.errors import IntegrityError, LamellaError, Locked, SourceError, UsageError
from lamella.operations.access.bitmap import Bitmap
from lamella.operations.access.kept_file import Owner, is_sealed, read_all, sealed, write_all
from lamella.sources.served_target import ServedTarget, unfinished

_MAGIC = b"LMLINST1"
_HEAD = struct.Struct("<8s16s16s16sQIB16sQ")
"""Magic, repository, volume, snapshot, bytes of the volume and of a chunk, 1 when complete, the moment of the power,
the inode of the complete file. A SHA-256 of all that follows."""
_SPACE = 4096
_SECTOR = 512
"""A head fits into one: a power cut leaves the old or the new head."""

_LOSING = {errno.EIO, errno.ENOSPC, errno.EDQUOT}
"""What a step says that does more than synchronise, if that failed."""

Sync = Callable[[], None]


class Journal:
    """The journal of one restore. Thread-safe; two calls for the same chunk must not come at the same time.

    After an error of the disk every later change raises: what became of the last one is not known.
    """

    def __init__(self, fd: int, path: Path, owner: Owner, size: int, chunk_size: int) -> None:
        self.path = path
        self.is_complete = False
        self._fd = fd
        self._owner = owner
        self._size, self._chunk_size = size, chunk_size
        self.chunks = -(-size // chunk_size)
        self._touched, self._present, self._settled = (Bitmap(self.chunks) for _ in range(3))
        self._length = len(self._present.octets)
        space = -(-self._length // _SPACE) * _SPACE
        self._touched_at, self._present_at, self._settled_at = (_SPACE + place * space for place in range(3))
        self._end = _SPACE + 3 * space
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._low, self._high = self._length, 0
        """The octets in which `present` and `settled` differ lie within these."""
        self._touches = self._durable_touches = 0
        """The number of times that `touched` was written, and how many of these are durable."""
        self._lost: OSError | None = None
        self._moment = bytes(16)
        self._inode = 0
        self._removed = False

    # -- asking -------------------------------------------------------------------------------------------------------

    def has(self, chunk: int) -> bool:
        """Whether the target holds a chunk."""
        return self._present.has(chunk)

    def runs(self, first: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """`[first, end)` cut into chunks that the target holds, and others."""
        return self._present.runs(first, end)

    def touched_runs(self, first: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """`[first, end)` cut into chunks that the guest wrote to, and others."""
        return self._touched.runs(first, end)

    def holds_all(self) -> bool:
        """Whether the target holds everything."""
        return self._present.covers(0, self.chunks)

    # -- changing -----------------------------------------------------------------------------------------------------

    def touch(self, first: int, end: int) -> None:
        """The guest is about to write to these chunks. Raises OSError."""
        with self._lock:
            self._require_sound()
            if self._removed or self._touched.covers(first, end):
                return
            self._touched.add(first, end)
            self._write(self._touched_at, self._touched, first, end)
            self._touches += 1
            touches = self._touches
            # Else the target could be durable before this, and the chunk pass for the repository's.
            must = any(value for _, _, value in self._settled.runs(first, end))
        if must:
            self._make_durable(touches)

    def add(self, first: int, end: int) -> None:
        """The target holds these chunks now. Raises OSError."""
        with self._lock:
            self._require_sound()
            if self._present.covers(first, end):
                return
            self._present.add(first, end)
            self._low, self._high = min(self._low, first // 8), max(self._high, (end + 7) // 8)
            self._write(self._present_at, self._present, first, end)

    def flush(self, sync: Sync) -> None:
        """Make everything durable; `sync` does so with the target. Raises OSError."""
        with self._flushing:
            with self._lock:
                self._require_sound()
                low, high, touches = self._low, self._high, self._touches
                self._low, self._high = self._length, 0
                settled = bytes(self._present.octets[low:high])
                # Before the target is synced: a write that comes meanwhile must take the longer way.
                if low < high:
                    self._settled.octets[low:high] = settled
            try:
                self.synced(sync)
                if self._removed:
                    return
                if touches > self._durable_touches:
                    self._make_durable(touches)
                if low < high:
                    write_all(self._fd, self._settled_at + low, memoryview(settled))
                    self.synced(lambda: os.fdatasync(self._fd))
            except OSError:
                with self._lock:
                    self._low, self._high = min(self._low, low), max(self._high, high)
                raise

    def complete(self, sync: Sync, inode: int) -> None:
        """Make everything durable; note that the target, which has this inode, needs nothing more. Raises OSError."""
        self.flush(sync)
        self.is_complete, self._inode = True, inode
        self.synced(self._write_head)

    def synced(self, sync: Sync) -> None:
        """Call what makes the target durable. After a failure only what was settled before is believed, by this process
        and the next one. Raises what `sync` raises."""
        try:
            sync()
        except (OSError, SourceError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            # The kernel tells of lost pages once, also where the disk had no room for them: what is lost stays lost.
            if isinstance(cause, OSError) and (cause is error or cause.errno in _LOSING):
                self._lost, self._moment = cause, bytes(16)
                with suppress(OSError):
                    self._write_head()
            raise

    def remove(self) -> None:
        """The target stands alone: from now on nothing is noted. Raises OSError."""
        with self._lock:
            self._removed = True
        self.path.unlink(missing_ok=True)
        sync_directory(self.path.absolute().parent)

    def close(self) -> None:
        """Close the file; nothing is flushed."""
        fd, self._fd = self._fd, -1  # a thread that comes late must not meet another file
        if fd >= 0:
            os.close(fd)

    # -- opening ------------------------------------------------------------------------------------------------------

    def begin(self, moment: bytes) -> None:
        """Lay out a new file. Raises OSError."""
        self._moment = moment
        os.ftruncate(self._fd, 0)
        with suppress(OSError):  # with all its space, where that can be had: a full disk comes before the guest
            os.posix_fallocate(self._fd, 0, self._end)
        os.ftruncate(self._fd, self._end)
        os.fsync(self._fd)
        self._write_head()
        sync_directory(self.path.absolute().parent)

    def resume(self, moment: bytes, found: bytes, sync: Sync) -> None:
        """Believe what may be believed of the file whose head is `found`. Raises OSError, IntegrityError."""
        *_, complete, before, self._inode = _HEAD.unpack(found[: _HEAD.size])
        self.is_complete = bool(complete)
        place = self._present_at if before == moment else self._settled_at
        for bitmap, start in ((self._present, place), (self._touched, self._touched_at)):
            bitmap.octets[:] = read_all(self._fd, start, self._length, self._length)
        both = int.from_bytes(self._touched.octets, "little") & int.from_bytes(self._present.octets, "little")
        self._touched.octets[:] = both.to_bytes(self._length, "little")
        # Of a killed process: what it wrote may still be on its way, and what it noted of its guest's writes.
        self.synced(sync)
        self.synced(lambda: os.fdatasync(self._fd))
        for bitmap, start in (
            (self._touched, self._touched_at), (self._present, self._present_at), (self._present, self._settled_at),
        ):  # fmt: skip
            write_all(self._fd, start, memoryview(bitmap.octets))
        self._settled.octets[:] = self._present.octets
        self._moment = moment
        self.synced(self._write_head)

    def head(self) -> bytes:
        """The head of the file."""
        ids = self._owner.repo_id, self._owner.volume_id, self._owner.snap_id
        state = self.is_complete, self._moment, self._inode
        return sealed(_HEAD.pack(_MAGIC, *ids, self._size, self._chunk_size, *state))

    def _write_head(self) -> None:
        write_all(self._fd, 0, memoryview(self.head().ljust(_SECTOR, b"\0")))
        os.fdatasync(self._fd)

    def _write(self, start: int, bitmap: Bitmap, first: int, end: int) -> None:
        low, high = first // 8, (end + 7) // 8
        try:
            write_all(self._fd, start + low, memoryview(bitmap.octets)[low:high])
        except OSError as error:
            self._lost = error
            raise

    def _make_durable(self, touches: int) -> None:
        self.synced(lambda: os.fdatasync(self._fd))
        with self._lock:
            self._durable_touches = max(self._durable_touches, touches)

    def _require_sound(self) -> None:
        if self._lost is not None:
            raise OSError(self._lost.errno, self._lost.strerror)


class Known(NamedTuple):
    """Whose journal a file is, whether it says that its target is complete, and which inode that then has."""

    owner: Owner
    is_complete: bool
    inode: int


def owner_of(path: Path) -> Known | None:
    """What a file says; None if it is not there or was only begun. Raises UsageError for any other file than a journal,
    IntegrityError, LamellaError."""
    try:
        if not path.exists():
            return None
        with path.open("rb", buffering=0) as file:
            found = file.read(_SECTOR)
    except OSError as error:
        raise LamellaError(f"cannot read {path}: {error.strerror}", obj=str(path)) from error
    if not any(found):
        return None
    if found[:8] != _MAGIC:
        raise UsageError(f"{path} is not the journal of a restore", obj=str(path), hint="name another file")
    if not is_sealed(found, _HEAD.size):
        raise IntegrityError(f"the head of the journal {path} is damaged", obj=str(path))
    _, repo_id, volume_id, snap_id, *_, complete, _, inode = _HEAD.unpack(found[: _HEAD.size])
    return Known(Owner(repo_id, volume_id, snap_id, ""), bool(complete), inode)


def require_own(path: Path, owner: Owner, target: ServedTarget) -> bool:
    """Whether there is a journal of this owner. Call it before the target is opened, which gives it its size.

    Raises UsageError for another owner's, for a target that may hold a guest's writes and has no journal, and for a
    journal whose target is not there, or is not that file alone; IntegrityError, LamellaError.
    """
    known = owner_of(path)
    if known is None and not target.untouched:
        raise UsageError(
            f"{path} is missing: it says which parts of the target the guest wrote",
            obj=str(path),
            hint="bring it back, or remove the target to begin anew",
        )
    if known is not None and _ids(known[0]) != _ids(owner):
        raise UsageError(
            f"{path} belongs to another restore, of snapshot {known[0].snap_id.hex()}",
            obj=str(path),
            hint=f"go on with that snapshot, or remove that file and its target to begin anew with {owner.text}",
        )
    if known is not None and target.names != 1:
        where = str(unfinished(target.path))
        trouble = f"has {target.names} names, and could be written to under each" if target.names else "is missing"
        hint = f"leave it the one name, or remove it and {path} to begin anew"
        raise UsageError(
            f"{where} {trouble}",
            obj=where,
            hint=hint if target.names else f"bring it back, or remove {path} to begin anew",
        )
    return known is not None


def open_journal(path: Path, owner: Owner, size: int, chunk_size: int, moment: bytes, target: ServedTarget) -> Journal:
    """The journal in the file `path`, which is made if nobody can have written to the open target.

    `moment` is the same as long as neither this machine nor the disk lost power. Raises UsageError for another
    snapshot's, and for a target that holds something and has no journal; Locked, IntegrityError, OSError.
    """
    known = require_own(path, owner, target)
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW, PRIVATE)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UsageError(f"{path} is not a file", obj=str(path), hint="name another file")
        _lock(fd, path)
        journal = Journal(fd, path, owner, size, chunk_size)
        if not known:
            journal.begin(moment)
        else:
            journal.resume(moment, read_all(fd, 0, _SECTOR), target.sync)
    except BaseException:
        os.close(fd)
        raise
    return journal


def _ids(owner: Owner) -> tuple[bytes, bytes, bytes]:
    return owner.repo_id, owner.volume_id, owner.snap_id


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Locked(f"another restore uses {path}", obj=str(path), hint="end that restore first") from None
