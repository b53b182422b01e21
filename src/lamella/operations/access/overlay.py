"""Writes of a client to a snapshot or another disk: kept beside what they are written to, which never changes.

A kept overlay is one sparse file: a head that says whose writes these are, two bitmaps, then the blocks that were
written, each at its own place. The first bitmap is written when a client flushes, after the blocks were made durable;
the second bitmap with every write. After a power cut only the first is believed, after a killed process the second.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lamella.base.durable import PRIVATE, sync_directory
from lamella.base.errors import IntegrityError, Locked, UsageError
from lamella.operations.access.bitmap import Bitmap
from lamella.operations.access.blocks import Blocks
from lamella.operations.access.disk import ReadableDisk
from lamella.operations.access.kept_file import NO_ROOM, Owner, is_sealed, read_all, sealed, write_all
from lamella.operations.access.view import PIECE, Part, SnapshotView, Stretch
from lamella.sources.zeroing import Zeroing, zero_range

_MAGIC = b"LMLOVER1"
_HEAD = struct.Struct("<8s16s16s16sQI")
"""Magic, repository, volume, snapshot, size in bytes, bytes of a block. The boot and a SHA-256 of all that follow."""
_HEAD_SPACE = 4096
_BOOT_BYTES = 36
_MOST_BITMAP = 8 * 1024 * 1024
_LEAST_BLOCK = 4096


def block_size(size: int) -> int:
    """Bytes of a block: the bitmap of a volume of `size` bytes stays within 8 MiB."""
    block = _LEAST_BLOCK
    while size > block * 8 * _MOST_BITMAP:
        block *= 2
    return block


class _NoBitmaps:
    """The bitmaps of an overlay that is thrown away: none."""

    data_start = 0

    def written(self, bitmap: Bitmap, first: int, end: int) -> None:
        """Nothing is kept."""

    def flush(self, bitmap: Bitmap) -> None:
        """Nothing has to last."""


class _KeptBitmaps:
    """The bitmaps of a kept overlay, in its file; with the head `distrusted` only the first of them is believed."""

    def __init__(self, fd: int, bitmap: Bitmap, distrusted: bytes) -> None:
        self._fd = fd
        self._distrusted = distrusted
        self._length = len(bitmap.octets)
        space = -(-self._length // _HEAD_SPACE) * _HEAD_SPACE
        self._flushed = _HEAD_SPACE
        self._written = _HEAD_SPACE + space
        self.data_start = _HEAD_SPACE + 2 * space
        self._lost: OSError | None = None
        self._low, self._high = self._length, 0
        """The octets that differ between the two bitmaps lie within these."""

    def load(self, bitmap: Bitmap, same_boot: bool) -> None:
        """Fill the bitmap with what may be believed, and make both bitmaps agree. Raises OSError."""
        place = self._written if same_boot else self._flushed
        content = read_all(self._fd, place, self._length)
        bitmap.octets[: len(content)] = content
        self._sync()  # of a killed process: its blocks may still be on their way
        for start in (self._flushed, self._written):
            write_all(self._fd, start, memoryview(bitmap.octets))
        self._sync()

    def written(self, bitmap: Bitmap, first: int, end: int) -> None:
        """Blocks `[first, end)` were written. Raises OSError; the next flush then tries again."""
        low, high = first // 8, (end + 7) // 8
        self._low, self._high = min(self._low, low), max(self._high, high)
        write_all(self._fd, self._written + low, memoryview(bitmap.octets)[low:high])

    def flush(self, bitmap: Bitmap) -> None:
        """Make the blocks durable, then the bitmap that says so. Raises OSError, and from then on always."""
        if self._lost is not None:
            raise OSError(self._lost.errno, self._lost.strerror)
        try:
            self._sync()
            if self._low < self._high:
                part = memoryview(bitmap.octets)[self._low : self._high]
                for start in (self._written, self._flushed):
                    write_all(self._fd, start + self._low, part)
                self._sync()
                self._low, self._high = self._length, 0
        except OSError as error:
            if error.errno not in NO_ROOM:
                self._lost = error
            raise

    def _sync(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            # The kernel tells of lost pages once, also where the disk had no room for them: what is lost stays lost,
            # and whoever opens the file next must not believe that it is there.
            self._lost = error
            with suppress(OSError):
                write_all(self._fd, 0, memoryview(self._distrusted))
            raise


class Overlay:
    """A snapshot with what was written to it since. Thread-safe; made by `kept_overlay` or `thrown_away`."""

    def __init__(
        self, view: ReadableDisk, fd: int, bitmap: Bitmap, block: int, record: _KeptBitmaps | _NoBitmaps
    ) -> None:
        self.size = view.size
        self._view = view
        self._fd = fd
        self._bitmap = bitmap
        self._blocks = Blocks(view.size, block)
        self._record = record
        self._lock = threading.Lock()
        self.room: int | None = None
        """So many bytes may still be written; None: as many as there is space for."""

    def parts(self, offset: int, length: int) -> Iterator[Part]:
        """The bytes of a range in parts. Raises IntegrityError, StoreError, OSError."""
        for start, end, written in self._blocks.clipped(self._bitmap.runs, offset, offset + length):
            if not written:
                yield from self._view.parts(start, end - start)
                continue
            while start < end:
                step = min(PIECE, end - start)
                yield read_all(self._fd, self._record.data_start + start, step, step)
                start += step

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range at once."""
        return b"".join(bytes(part) if isinstance(part, int) else part for part in self.parts(offset, length))

    def expect(self, offset: int, length: int) -> None:
        """The range will soon be read."""
        for start, end, written in self._blocks.clipped(self._bitmap.runs, offset, min(offset + length, self.size)):
            if not written:
                self._view.expect(start, end - start)

    def extents(self, offset: int, length: int, most: int | None = None) -> list[Stretch]:
        """The stretches of the range; written parts count as data."""
        found: list[Stretch] = []
        for start, end, written in self._blocks.clipped(self._bitmap.runs, offset, min(offset + length, self.size)):
            if most is not None and len(found) >= most:
                break
            if written:
                found.append(Stretch(end - start, hole=False, zero=False))
            else:
                found += self._view.extents(start, end - start, None if most is None else most - len(found))
        return found

    def write(self, offset: int, content: memoryview) -> None:
        """Put bytes there. Raises OSError; IntegrityError, StoreError if the rest of a block cannot be had."""
        end = offset + len(content)
        rests = self._blocks.rests(offset, end, self._bitmap.has, self._view)
        with self._lock:
            self._spend(len(content))
            # A block counts from the moment it is whole: first the rest of it, then the new bytes.
            for block, rest in rests.items():
                if not self._bitmap.has(block):
                    self._put(block * self._blocks.block, memoryview(rest))
            self._put(offset, content)
            self._mark(*self._blocks.touched(offset, end))

    def zero(self, offset: int, length: int, *, allocate: bool) -> None:
        """Make a range read as zeros; with `allocate` the space is taken. Raises as `write`."""
        end = offset + length
        for start, stop in self._blocks.edges(offset, end):
            self.write(start, memoryview(bytes(stop - start)))
        first, last = self._blocks.covered(offset, end)
        if first >= last:
            return
        with self._lock:
            # Also where nothing counts as written: a write that failed may have left something.
            block = self._blocks.block
            low, high = first * block, min(last * block, self.size)
            base = self._record.data_start
            keep = allocate and self.room is None
            zero_range(self._fd, base + low, base + high, Zeroing.KEEP_SPACE if keep else Zeroing.GIVE_BACK)
            self._mark(first, last)

    def trim(self, offset: int, length: int) -> None:
        """Whole blocks of the range become zeros without space. Raises OSError."""
        start, end = self._blocks.whole(offset, offset + length)
        if start < end:
            self.zero(start, end - start, allocate=False)

    def flush(self) -> None:
        """Make all that was written durable. Raises OSError."""
        with self._lock:
            self._record.flush(self._bitmap)

    def changes(self) -> Iterator[tuple[int, int, bool]]:
        """The ranges that were written, ascending: start, end, and whether nothing but zeros takes no space there."""
        base = self._record.data_start
        for start, end, written in self._blocks.clipped(self._bitmap.runs, 0, self.size):
            if written:
                for low, high, hole in _stretches(self._fd, base + start, base + end):
                    yield low - base, high - base, hole

    def close(self) -> None:
        """Flush and close. Raises OSError."""
        with self._lock:
            try:
                self._record.flush(self._bitmap)
            finally:
                fd, self._fd = self._fd, -1  # a thread that comes late must not meet another file
                os.close(fd)

    def _spend(self, count: int) -> None:
        if self.room is not None:
            if count > self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.room -= count

    def _put(self, offset: int, content: memoryview) -> None:
        write_all(self._fd, self._record.data_start + offset, content)

    def _mark(self, first: int, end: int) -> None:
        if not self._bitmap.covers(first, end):
            self._bitmap.add(first, end)
            self._record.written(self._bitmap, first, end)


def _stretches(fd: int, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """A range of a file cut into data and holes (lseek(2), SEEK_DATA)."""
    while start < end:
        try:
            data = min(os.lseek(fd, start, os.SEEK_DATA), end)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = end
        if start < data:
            yield start, data, True
        if data < end:
            start = min(os.lseek(fd, data, os.SEEK_HOLE), end)
            yield data, start, False
        else:
            start = end


def thrown_away(view: ReadableDisk, folder: Path) -> Overlay:
    """An overlay without a name in `folder`; nothing of it is left when its process ends. Raises OSError."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.truncate(view.size)
        fd = os.dup(file.fileno())
    block = block_size(view.size)
    return Overlay(view, fd, Bitmap(-(-view.size // block)), block, _NoBitmaps())


def kept_overlay(view: SnapshotView, path: Path, owner: Owner, boot: str) -> Overlay:
    """The overlay in the file `path`, which is made if there is none; `boot` is the kernel's id of this boot.

    Raises UsageError for a file that is none, or holds the writes to another snapshot; Locked; IntegrityError; OSError.
    """
    fd = _opened(path)
    try:
        _lock(fd, path)
        block = block_size(view.size)
        head = _HEAD.pack(_MAGIC, owner.repo_id, owner.volume_id, owner.snap_id, view.size, block)
        found = read_all(fd, 0, _HEAD_SPACE)
        if found:
            _require_own(found, head, path, owner)
        whole = sealed(head + _boot(boot))
        bitmap = Bitmap(-(-view.size // block))
        record = _KeptBitmaps(fd, bitmap, sealed(head + _boot("")))
        if not found:
            write_all(fd, 0, memoryview(whole))
        if os.fstat(fd).st_size < record.data_start + view.size:  # new, or made by a process that was killed
            os.ftruncate(fd, record.data_start + view.size)
        record.load(bitmap, same_boot=not found or found[: len(whole)] == whole)
        write_all(fd, 0, memoryview(whole))
        os.fsync(fd)
        sync_directory(path.absolute().parent)
    except BaseException:
        os.close(fd)
        raise
    return Overlay(view, fd, bitmap, block, record)


def _opened(path: Path) -> int:
    """Raises UsageError for anything but a file, OSError."""
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK, PRIVATE)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"{path} is not a file", obj=str(path), hint="name a file that does not exist yet")
    return fd


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Locked(f"{path} is in use by another export", obj=str(path), hint="end that export first") from None


def _boot(text: str) -> bytes:
    return text.encode("ascii")[:_BOOT_BYTES].ljust(_BOOT_BYTES)


def _require_own(found: bytes, head: bytes, path: Path, owner: Owner) -> None:
    """Raises UsageError, IntegrityError."""
    if found[:8] != _MAGIC:
        raise UsageError(f"{path} is not an overlay", obj=str(path), hint="name a file that does not exist yet")
    if not is_sealed(found, _HEAD.size + _BOOT_BYTES):
        raise IntegrityError(f"the head of the overlay {path} is damaged", obj=str(path))
    if found[: _HEAD.size] != head:
        volume, snap = found[24:40].hex(), found[40:56].hex()
        hint = f"it belongs to snapshot {snap} of volume {volume}; name another file for {owner.text}"
        raise UsageError(f"{path} holds what was written to another snapshot", obj=str(path), hint=hint)
