"""Random changes to an image file: everything a running machine, its host and its owner do to one between two backups.

For tests of change tracking: what these leave behind is where maps of extents go wrong. Reproducible from the seed as
far as the file system is. Numbers are from linux/fs.h, linux/falloc.h and linux/btrfs.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import TracebackType

BLOCK = 4096

_FICLONE = 0x40049409
_FICLONERANGE = 0x4020940D
_FIDEDUPERANGE = 0xC0189436
_BTRFS_IOC_DEFRAG_RANGE = 0x40309410
_BTRFS_DEFRAG_RANGE_COMPRESS = 1
_BTRFS_DEFRAG_RANGE_START_IO = 2
_BTRFS_COMPRESS_ZSTD = 3

_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02
_FALLOC_FL_COLLAPSE_RANGE = 0x08
_FALLOC_FL_ZERO_RANGE = 0x10
_FALLOC_FL_INSERT_RANGE = 0x20

# struct file_clone_range; struct file_dedupe_range with one file_dedupe_range_info; and
# struct btrfs_ioctl_defrag_range_args.
_CLONE = struct.Struct("=qQQQ")
_DEDUPE = struct.Struct("=QQHHLqQQlL")
_DEFRAG = struct.Struct("=QQQLL16x")

# The file system does not do this, or not here and now: part of the game.
_REFUSALS = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.EAGAIN, errno.ETXTBSY, errno.ENOSPC, errno.EPERM}

_LENGTHS = (1, 512, BLOCK, BLOCK, 4 * BLOCK, 32 * BLOCK, 100 * BLOCK, 300 * BLOCK)


class ImageChanges:
    """Changes one image file, which never grows beyond `most` bytes. A context manager: it keeps the file open.

    `done` counts the operations by name, `refused` those the file system would not do.
    """

    def __init__(self, path: Path, randomness: Random, most: int) -> None:
        self.path, self.most = path, most // BLOCK * BLOCK
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._random = randomness
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._earlier: Path | None = None
        operations: dict[str, tuple[int, Callable[[], None]]] = {
            "write": (32, self._write),
            "write again": (4, self._write_again),
            "write directly": (8, self._write_directly),
            "write by mmap": (4, self._write_mapped),
            "punch": (4, lambda: self._allocate(_FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE)),
            "zero": (4, lambda: self._allocate(_FALLOC_FL_ZERO_RANGE)),
            "preallocate": (4, lambda: self._allocate(0)),
            "preallocate, keep size": (4, lambda: self._allocate(_FALLOC_FL_KEEP_SIZE)),
            "collapse": (4, lambda: self._allocate(_FALLOC_FL_COLLAPSE_RANGE)),
            "insert": (4, lambda: self._allocate(_FALLOC_FL_INSERT_RANGE)),
            "resize": (4, self._resize),
            "clone": (4, self._clone_within),
            "clone back": (4, self._clone_back),
            "dedupe": (4, self._dedupe),
            "defragment": (4, lambda: self._defragment(compress=False)),
            "defragment, compress": (4, lambda: self._defragment(compress=True)),
            "sync": (4, lambda: os.fsync(self._fd)),
            "recreate": (1, self._recreate),
        }
        self._operations = {name: operation for name, (_, operation) in operations.items()}
        self._names = [name for name, (weight, _) in operations.items() for _ in range(weight)]
        os.pwrite(self._fd, self._content(self.most // 2), 0)

    def __enter__(self) -> ImageChanges:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def without(self, *names: str) -> None:
        """Leave out the operations of these names from now on."""
        self._names = [name for name in self._names if name not in names]

    def change(self, count: int, earlier: Path | None = None) -> None:
        """Do `count` operations; some bring back what the file `earlier` holds, a reflink copy of the image."""
        self._earlier = earlier
        for _ in range(count):
            name = self._random.choice(self._names)
            try:
                self._operations[name]()
            except OSError as reason:
                if reason.errno not in _REFUSALS:
                    raise
                self.refused[name] += 1
            else:
                self.done[name] += 1

    def copy(self, target: Path) -> Path:
        """Make `target` a reflink copy of the image as it is now, unwritten data included; return it."""
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.ioctl(fd, _FICLONE, self._fd)
        finally:
            os.close(fd)
        return target

    @property
    def _size(self) -> int:
        return os.fstat(self._fd).st_size

    def _content(self, length: int) -> bytes:
        chance = self._random.random()
        if chance < 0.35:
            return self._random.randbytes(length)
        if chance < 0.8:  # compressible
            return (self._random.randbytes(16) * (length // 16 + 1))[:length]
        return bytes([0 if chance < 0.9 else self._random.randrange(256)]) * length

    def _range(self, *, aligned: bool) -> tuple[int, int]:
        """Somewhere in the file or a little beyond its end: offset and length, at least 1."""
        length = self._random.choice(_LENGTHS)
        offset = self._random.randrange(max(1, min(self.most - 1, self._size + 8 * BLOCK)))
        if aligned:
            offset, length = offset // BLOCK * BLOCK, max(BLOCK, length // BLOCK * BLOCK)
        return offset, min(length, self.most - offset)

    def _block(self, *, room: int) -> int:
        """The offset of some block of the file with `room` bytes of the file from there on."""
        if self._size < room:
            raise OSError(errno.EINVAL, "the file is too short for this")
        return self._random.randrange((self._size - room) // BLOCK + 1) * BLOCK

    def _write(self) -> None:
        offset, length = self._range(aligned=self._random.random() < 0.6)
        os.pwrite(self._fd, self._content(length), offset)

    def _write_again(self) -> None:
        """The same bytes once more: another place, no change."""
        offset = self._block(room=BLOCK)
        os.pwrite(self._fd, os.pread(self._fd, 8 * BLOCK, offset), offset)

    def _write_directly(self) -> None:
        offset, length = self._range(aligned=True)
        fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        try:
            with mmap.mmap(-1, length) as aligned:
                aligned.write(self._content(length))
                os.pwrite(fd, aligned, offset)
        finally:
            os.close(fd)

    def _write_mapped(self) -> None:
        """Left to the kernel to write out, without msync(2)."""
        with mmap.mmap(self._fd, max(self._size, 0)) as memory:
            for _ in range(self._random.randrange(1, 9)):
                offset = self._random.randrange(len(memory))
                end = min(offset + 9, len(memory))
                memory[offset:end] = self._random.randbytes(end - offset)

    def _allocate(self, mode: int) -> None:
        moving = mode in (_FALLOC_FL_COLLAPSE_RANGE, _FALLOC_FL_INSERT_RANGE)
        offset, length = self._range(aligned=moving or self._random.random() < 0.6)
        if mode == _FALLOC_FL_INSERT_RANGE and self._size + length > self.most:
            raise OSError(errno.EINVAL, "no room to insert")
        _fallocate(self._fd, mode, offset, length)

    def _resize(self) -> None:
        near = self._size + self._random.randrange(-9 * BLOCK, 9 * BLOCK)
        far = self._random.randrange(1, self.most)
        os.ftruncate(self._fd, max(1, min(self.most, self._random.choice((near, far)))))

    def _clone_within(self) -> None:
        length = self._random.choice((1, 4, 40)) * BLOCK
        source, target = self._block(room=length), self._block(room=length)
        fcntl.ioctl(self._fd, _FICLONERANGE, _CLONE.pack(self._fd, source, length, target))

    def _clone_back(self) -> None:
        if self._earlier is None:
            raise OSError(errno.EINVAL, "there is no earlier copy")
        fd = os.open(self._earlier, os.O_RDONLY)
        try:
            common = min(self._size, os.fstat(fd).st_size) // BLOCK
            first = self._random.randrange(max(common, 1))
            length = min(common - first, 16) * BLOCK
            fcntl.ioctl(self._fd, _FICLONERANGE, _CLONE.pack(fd, first * BLOCK, length or 1, first * BLOCK))
        finally:
            os.close(fd)

    def _dedupe(self) -> None:
        length = 4 * BLOCK
        source, target = self._block(room=length), self._block(room=length)
        if abs(source - target) < length:
            raise OSError(errno.EINVAL, "the ranges overlap")
        os.pwrite(self._fd, os.pread(self._fd, length, source), target)
        os.fsync(self._fd)
        request = bytearray(_DEDUPE.pack(source, length, 1, 0, 0, self._fd, target, 0, 0, 0))
        fcntl.ioctl(self._fd, _FIDEDUPERANGE, request, True)

    def _defragment(self, *, compress: bool) -> None:
        flags = _BTRFS_DEFRAG_RANGE_START_IO | (_BTRFS_DEFRAG_RANGE_COMPRESS if compress else 0)
        request = _DEFRAG.pack(0, (1 << 64) - 1, flags, 0, _BTRFS_COMPRESS_ZSTD if compress else 0)
        fcntl.ioctl(self._fd, _BTRFS_IOC_DEFRAG_RANGE, request)

    def _recreate(self) -> None:
        """Another file takes the name, with a part of the same content copied."""
        kept = os.pread(self._fd, self._random.randrange(self._size + 1), 0)
        beside = self.path.with_name(self.path.name + ".new")
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.pwrite(fd, kept or b"x", 0)
        beside.rename(self.path)
        os.close(self._fd)
        self._fd = fd


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "fallocate64", None) or libc.fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(fd, mode, offset, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
