"""Where a Btrfs file's bytes lie, from its own extent items. Exact for compressed files too; needs CAP_SYS_ADMIN.

Numbers and layouts are from linux/btrfs.h and linux/btrfs_tree.h.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Iterator

from lamella.base.errors import SourceError
from lamella.sources.reflink.fiemap import flush
from lamella.sources.reflink.maps import Piece

_BTRFS_IOC_TREE_SEARCH_V2 = 0xC0709411
_OWN_TREE = 0
"""As tree number: the tree of the subvolume the open file is in."""
_BTRFS_EXTENT_DATA_KEY = 108
_U64 = (1 << 64) - 1

# struct btrfs_ioctl_search_key (tree, objectid from and to, offset from and to, transaction from and to, type from and
# to, number of items, 36 unused bytes), then the size of the buffer that follows.
_ASK = struct.Struct("=QQQQQQQLLL36xQ")
_ANSWER_COUNT = 9

# struct btrfs_ioctl_search_header: transaction, objectid, offset, type, length of the item.
_HEAD = struct.Struct("=QQQLL")
# struct btrfs_file_extent_item up to the type: generation, bytes in memory, compression, encryption, other encoding,
# type; and what follows unless it is inline: address on disk, bytes on disk, offset in the extent, bytes of the file.
_ITEM = struct.Struct("<QQBBHB")
_PLACE = struct.Struct("<QQQQ")
_ROW = struct.Struct(_HEAD.format + _ITEM.format[1:] + _PLACE.format[1:])
_ROW_ITEM = _ITEM.size + _PLACE.size

_INLINE, _REGULAR, _PREALLOCATED = 0, 1, 2  # BTRFS_FILE_EXTENT_*

_AT_ONCE = 512
_ROOM = 128 << 10
"""For at least two items, whatever they are: an item fits into a node, and nodes have at most 64 KiB."""


def pieces(fd: int, size: int, start: int = 0) -> Iterator[Piece]:
    """Yield the map of an open file of `size` bytes, after its unwritten data was written out.

    `start` is 0 or where a piece started: a piece that starts earlier is not seen. Raises PermissionError without
    CAP_SYS_ADMIN; SourceError if this is no regular file on Btrfs, or the map makes no sense.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise SourceError("only regular files have extent items")
    flush(fd)
    at = start
    for piece in _pieces(fd, status.st_ino, start):
        if piece.start < at or piece.end <= piece.start:
            raise SourceError("the file's extent items overlap or are empty")
        at = piece.end
        if at >= size:
            if piece.start < size:
                yield Piece(piece.start, size, piece.place, piece.opaque)
            return
        yield piece


def _pieces(fd: int, inode: int, start: int) -> Iterator[Piece]:
    """Yield the file's items from key offset `start` on."""
    buffer = bytearray(_ASK.size + _ROOM)
    last: Piece | None = None
    while True:
        key = (_OWN_TREE, inode, inode, start, _U64, 0, _U64, _BTRFS_EXTENT_DATA_KEY, _BTRFS_EXTENT_DATA_KEY, _AT_ONCE)
        _ASK.pack_into(buffer, 0, *key, _ROOM)
        answer = _parsed(memoryview(buffer)[_ASK.size :], _search(fd, buffer), inode)
        # Each answer begins with the last item of the one before. If that is still there, no other item can have grown
        # over the border between them, where it would be seen by neither search and its bytes pass for a hole.
        if last and next(answer, None) != last:
            raise SourceError("the file was laid out anew while its extent items were read")
        before = last
        for last in answer:
            yield last
        # An answer may hold less than has room: only one without anything new is the end.
        if last is before or last is None:
            return
        start = last.start


def _search(fd: int, buffer: bytearray) -> int:
    """Have the kernel fill the buffer; return the number of items in it."""
    try:
        fcntl.ioctl(fd, _BTRFS_IOC_TREE_SEARCH_V2, buffer, True)
    except PermissionError:
        raise
    except OSError as error:
        raise SourceError(f"the file's extent items cannot be read: {error.strerror}") from error
    return int(_ASK.unpack_from(buffer)[_ANSWER_COUNT])


def _parsed(view: memoryview, count: int, inode: int) -> Iterator[Piece]:
    """Yield `count` items. All but inline ones are of one length, so they are unpacked as rows of a table."""
    at = 0
    while count:
        rows = min(count, (len(view) - at) // _ROW.size)
        for row in _ROW.iter_unpack(view[at : at + rows * _ROW.size]):
            _, owner, start, kind, length, generation, _, packing, cipher, other, form, address, _, offset, size = row
            if length != _ROW_ITEM or not form or owner != inode or kind != _BTRFS_EXTENT_DATA_KEY:
                break
            at += _ROW.size
            count -= 1
            if form == _REGULAR and address:
                yield Piece(start, start + size, (address, generation, packing, offset - start), bool(cipher or other))
            elif form <= _PREALLOCATED:
                # Preallocated, or an explicit hole, which has no address.
                yield Piece(start, start + size, None, False)
            else:
                raise SourceError(f"an extent item of unknown type {form}")
        else:
            if rows:
                continue
        if count:
            piece, at = _inline(view, at, inode)
            count -= 1
            yield piece


def _inline(view: memoryview, at: int, inode: int) -> tuple[Piece, int]:
    """The inline item at `at`, and where the next one begins. Its bytes have no address: opaque."""
    if len(view) - at < _HEAD.size + _ITEM.size:
        raise SourceError("an extent item ends beyond the answer")
    _, owner, start, kind, length = _HEAD.unpack_from(view, at)
    at += _HEAD.size
    if owner != inode or kind != _BTRFS_EXTENT_DATA_KEY:
        raise SourceError("Btrfs answered with an item of another file")
    in_memory, form = _ITEM.unpack_from(view, at)[1::4]
    if length < _ITEM.size or form != _INLINE:
        raise SourceError(f"an extent item of type {form} and {length} bytes")
    if length > len(view) - at:
        raise SourceError("an extent item ends beyond the answer")
    return Piece(start, start + max(in_memory, length - _ITEM.size), None, True), at + length
