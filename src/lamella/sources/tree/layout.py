"""The bytes of a tree in its volume, and back: superblock, listings, owners (docs/TREES.md). Pure.

Every length is checked before it is used: whoever could write to a repository could write such bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from itertools import pairwise
from typing import Final, NamedTuple

from lamella.base.errors import IntegrityError

MAGIC: Final = b"LMLFILES"
SUPERBLOCK_BYTES: Final = 4096
LISTING_MOST: Final = 1 << 30
"""Bytes of one directory's listing."""
OWNERS_MOST: Final = 8 << 20
NAME_MOST: Final = 255
"""Bytes of one name (NAME_MAX of linux/limits.h)."""
TARGET_MOST: Final = 4095
"""Bytes of the target of a symbolic link."""
FILE_MOST: Final = 1 << 50
"""Bytes of one file."""
TOP: Final = b"."
"""The only name in the listing that the superblock points to: the directory itself that was saved."""

_VERSION: Final = 1
_LISTING_MAGIC: Final = b"LMLD"
_SUPERBLOCK = struct.Struct("<8s2I7Q")
_HEAD = struct.Struct("<4sBBH3I")
ROW = struct.Struct("<5I2Q2q")
"""What stat(2) says: mode, uid, gid, links, device (numbered by the tree), inode, size, mtime and ctime in ns."""
PLACE = struct.Struct("<2QI")
"""Where the content is: address, bytes, flags."""
_EXTRA = struct.Struct("<IBI")


class Flag(IntFlag):
    """What is to be known of an entry beside what stat(2) said."""

    CHANGED = 1
    """It changed while it was read: the content mixes several states."""
    ABSENT = 2
    """Its content, or what is in the directory, could not be read."""
    RECENT = 4
    """It changed so shortly before it was looked at that it may change again without a trace: read it next time."""


class Extra(IntEnum):
    """What only some entries have."""

    TARGET = 1
    """The target of a symbolic link."""
    ATTRIBUTE = 2
    """An extended attribute: its name, a zero byte, its value."""
    DEVICE = 3
    """Major and minor number of a device, u32 each."""


class Superblock(NamedTuple):
    """The first bytes of the volume."""

    top_address: int
    top_length: int
    owners_address: int
    owners_length: int
    files: int
    folders: int
    file_bytes: int
    """Sizes of all regular files together."""

    def encode(self) -> bytes:
        """The superblock."""
        head = _SUPERBLOCK.pack(MAGIC, _VERSION, 0, *self)
        return head + bytes(SUPERBLOCK_BYTES - len(head))

    @classmethod
    def decode(cls, raw: bytes) -> Superblock:
        """Raises IntegrityError for what is no superblock of this version."""
        if len(raw) < _SUPERBLOCK.size or raw[:8] != MAGIC:
            raise IntegrityError("the volume does not begin like a tree of files")
        _, version, zero, *fields = _SUPERBLOCK.unpack_from(raw)
        if (version, zero) != (_VERSION, 0):
            raise IntegrityError(f"a tree of files of version {version}, which this program does not know")
        return cls(*fields)


class FileStatus(NamedTuple):
    """A row of a listing: what stat(2) said."""

    mode: int
    uid: int
    gid: int
    links: int
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class ContentPlace(NamedTuple):
    """Where the content of an entry is in the volume: a file's bytes, or a directory's listing."""

    address: int
    length: int
    flags: int


@dataclass(slots=True)
class Listing:
    """What is in one directory, in columns, ordered by the bytes of the names."""

    names: bytes = b""
    """The names, joined by zero bytes."""
    rows: bytes | bytearray = b""
    places: bytes | bytearray = b""
    extras: bytes = b""

    @property
    def count(self) -> int:
        """Number of entries."""
        return len(self.rows) // ROW.size

    @property
    def length(self) -> int:
        """Bytes of `encode`."""
        return _HEAD.size + len(self.names) + len(self.rows) + len(self.places) + len(self.extras)

    def encode(self) -> bytes:
        """The listing as it is stored."""
        unsure = any(flags for _, _, flags in PLACE.iter_unpack(self.places))
        head = _HEAD.pack(_LISTING_MAGIC, _VERSION, unsure, 0, self.count, len(self.names), len(self.extras))
        return b"".join((head, self.names, self.rows, self.places, self.extras))

    def split_names(self) -> list[bytes]:
        """Each name."""
        return self.names.split(b"\0") if self.count else []

    def statuses(self) -> Iterator[FileStatus]:
        """Each row."""
        return map(FileStatus._make, ROW.iter_unpack(self.rows))

    def all_places(self) -> Iterator[ContentPlace]:
        """Each place."""
        return map(ContentPlace._make, PLACE.iter_unpack(self.places))

    def split_extras(self) -> dict[int, list[tuple[int, bytes]]]:
        """Number of an entry -> kind and value of each of its extras."""
        found: dict[int, list[tuple[int, bytes]]] = {}
        for number, kind, value in _extras(self.extras):
            found.setdefault(number, []).append((kind, value))
        return found


def same_status(stored: bytes | memoryview, names: bytes, rows: bytes | bytearray) -> bool:
    """Whether a stored listing has just these names and rows, and nothing in it has to be read again."""
    middle = _HEAD.size + len(names)
    return (
        len(stored) >= middle + len(rows)
        and _HEAD.unpack_from(stored)[2:6] == (0, 0, len(rows) // ROW.size, len(names))
        and stored[_HEAD.size : middle] == names
        and stored[middle : middle + len(rows)] == rows
    )


def decode_listing(raw: bytes) -> Listing:
    """Raises IntegrityError for anything that no writer of this version makes."""
    if len(raw) < _HEAD.size:
        raise _broken("it is too short")
    magic, version, _, zero, count, names_length, extras_length = _HEAD.unpack_from(raw)
    if (magic, version, zero) != (_LISTING_MAGIC, _VERSION, 0):
        raise _broken("it does not begin like one")
    ends = [_HEAD.size]
    for length in (names_length, count * ROW.size, count * PLACE.size, extras_length):
        ends.append(ends[-1] + length)
    if ends[-1] != len(raw):
        raise _broken("its lengths contradict each other")
    found = Listing(*(raw[start:end] for start, end in pairwise(ends)))
    _check_names(found.split_names(), count, found.names)
    _check_extras(found.extras, count)
    return found


def _check_names(names: Sequence[bytes], count: int, joined: bytes) -> None:
    if len(names) != count or (not count and joined):
        raise _broken("its names are not as many as its entries")
    if any(not 0 < len(name) <= NAME_MOST or b"/" in name for name in names):
        raise _broken("a name is empty, too long or a path")
    if names != [TOP] and not {b".", b".."}.isdisjoint(names):
        raise _broken("a name leads elsewhere")
    if any(before >= after for before, after in pairwise(names)):
        raise _broken("its names are not in order")


def _check_extras(raw: bytes, count: int) -> None:
    before = 0
    for number, kind, value in _extras(raw):
        if not before <= number < count:
            raise _broken("a detail belongs to no entry")
        before = number
        if kind == Extra.TARGET and (not 0 < len(value) <= TARGET_MOST or b"\0" in value):
            raise _broken("the target of a link is none")
        if kind == Extra.DEVICE and len(value) != 8:
            raise _broken("the number of a device is none")
        if kind == Extra.ATTRIBUTE and not 0 < value.find(b"\0") <= NAME_MOST:
            raise _broken("an extended attribute has no name")


def extra(number: int, kind: Extra, value: bytes) -> bytes:
    """An extra as it is stored: of the entry of this number."""
    return _EXTRA.pack(number, kind, len(value)) + value


def _extras(raw: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Raises IntegrityError where the bytes end too soon."""
    at = 0
    while at < len(raw):
        if len(raw) - at < _EXTRA.size:
            raise _broken("its details end too soon")
        number, kind, length = _EXTRA.unpack_from(raw, at)
        at += _EXTRA.size
        if length > len(raw) - at:
            raise _broken("its details end too soon")
        yield number, kind, raw[at : at + length]
        at += length


@dataclass(slots=True)
class OwnerNames:
    """The names of the accounts and groups that files belong to, by number, as the host called them."""

    users: dict[int, str] = field(default_factory=dict)
    groups: dict[int, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """As JSON, ordered by number."""
        both = {"groups": dict(sorted(self.groups.items())), "users": dict(sorted(self.users.items()))}
        return json.dumps(both).encode("ascii")

    @classmethod
    def decode(cls, raw: bytes) -> OwnerNames:
        """Raises IntegrityError."""
        try:
            both = json.loads(raw)
            return cls(_numbered(both["users"]), _numbered(both["groups"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise IntegrityError("the names of the files' owners cannot be read") from None


def _numbered(names: Mapping[str, object]) -> dict[int, str]:
    return {int(number): name for number, name in names.items() if isinstance(name, str)}


def _broken(why: str) -> IntegrityError:
    return IntegrityError(f"the listing of a directory is damaged: {why}")
