"""Where a file's bytes lie, asked with FS_IOC_FIEMAP: any file system, no privilege. Numbers are from linux/fiemap.h.

Compressed extents cannot be told apart by this map: it gives their start on the disk with their length in the file, and
the kernel joins neighbours that only look contiguous in this way. They, and everything else whose address is not the
address of these very bytes, are opaque.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from collections.abc import Iterator

from lamella.base.errors import SourceError
from lamella.base.extents import Extent
from lamella.sources.reflink.maps import Piece

_FS_IOC_FIEMAP = 0xC020660B  # linux/fs.h
_FIEMAP_FLAG_SYNC = 0x0001

_FIEMAP_EXTENT_LAST = 0x0001
_FIEMAP_EXTENT_UNWRITTEN = 0x0800
_FIEMAP_EXTENT_MERGED = 0x1000
_FIEMAP_EXTENT_SHARED = 0x2000

_PLAIN = _FIEMAP_EXTENT_LAST | _FIEMAP_EXTENT_MERGED | _FIEMAP_EXTENT_SHARED
"""Flags that say nothing about the bytes. Any other, known or not, makes an extent opaque: UNKNOWN, DELALLOC, ENCODED,
DATA_ENCRYPTED, NOT_ALIGNED, DATA_INLINE, DATA_TAIL; UNWRITTEN alone makes it zeros."""

# struct fiemap: fm_start, fm_length, fm_flags, fm_mapped_extents, fm_extent_count, fm_reserved.
_HEAD = struct.Struct("=QQLLLL")
# struct fiemap_extent: fe_logical, fe_physical, fe_length, 2 reserved, fe_flags, 3 reserved.
_EXTENT = struct.Struct("=QQQ16xL12x")
_BATCH = 512

_FS_IOC_FSGETXATTR = 0x801C581F  # linux/fs.h
_FS_XFLAG_REALTIME = 0x0001
# struct fsxattr: fsx_xflags, extent size, extents, project, CoW extent size, padding.
_FSXATTR = struct.Struct("=LLLLL8x")
_NO_XFLAGS = {errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


def pieces(fd: int, size: int, start: int = 0) -> Iterator[Piece]:
    """Yield the map of an open file of `size` bytes from `start` on, after its unwritten data was written out.

    Raises SourceError if the file system has no such map, or gives one that makes no sense.
    """
    device = _device(fd)
    for low, high, physical, flags in _extents(fd, size, start):
        special = flags & ~_PLAIN
        if not special and physical:
            yield Piece(low, high, (device, physical - low), False)
        else:
            yield Piece(low, high, None, special != _FIEMAP_EXTENT_UNWRITTEN)


def allocated(fd: int, size: int) -> Iterator[Extent]:
    """Yield the merged ranges of an open file of `size` bytes that are no holes, preallocated ones included.

    Raises SourceError as `pieces` does.
    """
    first = end = 0
    for low, high, _, _ in _extents(fd, size, 0):
        if low > end:
            if first < end:
                yield Extent(first, end)
            first = low
        end = high
    if first < end:
        yield Extent(first, end)


def flush(fd: int) -> None:
    """Write out what was written to the file and is not in its map yet. Raises SourceError."""
    head = bytearray(_HEAD.pack(0, 1, _FIEMAP_FLAG_SYNC, 0, 0, 0))
    _ask(fd, head)


def _extents(fd: int, size: int, start: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield `(start, end, physical, flags)` cut to `[start, size)`; checked to ascend and not to overlap."""
    buffer = bytearray(_HEAD.size + _BATCH * _EXTENT.size)
    view = memoryview(buffer)[_HEAD.size :]
    flags = _FIEMAP_FLAG_SYNC
    at = start
    # The LAST flag is not relied on: with a map that ends early the rest would pass for a hole.
    while at < size:
        _HEAD.pack_into(buffer, 0, at, size - at, flags, 0, _BATCH, 0)
        count = _ask(fd, buffer)
        if count == 0:
            return
        asked = at
        for logical, physical, length, extent_flags in _EXTENT.iter_unpack(view[: count * _EXTENT.size]):
            end = logical + length
            if logical < at:
                # Only the extent that holds the place asked for may begin before it.
                if at != asked or end <= at:
                    raise SourceError("the file system's extent map goes backwards or overlaps")
                physical += at - logical
                logical = at
            if end <= logical:
                raise SourceError("the file system's extent map holds an empty extent")
            if logical >= size:
                return
            yield logical, min(end, size), physical, extent_flags
            at = end
        flags = 0


def _ask(fd: int, buffer: bytearray) -> int:
    """Have the kernel fill the buffer; return how many extents it put there."""
    try:
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer, True)
    except OSError as error:
        raise SourceError(f"the file's extent map cannot be read: {error.strerror}") from error
    count, room = _HEAD.unpack_from(buffer)[3:5]
    # Asked with no room for extents, the kernel counts them.
    if room and count > room:
        raise SourceError(f"the file system reports {count} extents where {room} have room")
    return int(count)


def _device(fd: int) -> int:
    """Which device of its file system a file is on: XFS may have a second one whose addresses overlap the first's."""
    buffer = bytearray(_FSXATTR.size)
    try:
        fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, buffer, True)
    except OSError as error:
        if error.errno not in _NO_XFLAGS:
            raise SourceError(f"the file's attributes cannot be read: {error.strerror}") from error
        return 0
    return int(_FSXATTR.unpack(buffer)[0] & _FS_XFLAG_REALTIME)
