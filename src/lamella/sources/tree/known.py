"""What the last snapshot had of a tree: every listing, and which chunks are in use.

This host keeps that in one file, whose loss costs time only: it is made again from the snapshot itself. The file says
for the root of which tree of chunks it holds; for any other it is as good as lost.
"""

from __future__ import annotations

import hashlib
import hmac
import mmap
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from lamella.base.durable import make_private
from lamella.base.errors import IntegrityError
from lamella.sources.tree.layout import TOP, ContentPlace, FileStatus, Listing, decode_listing
from lamella.sources.tree.space import Space

_MAGIC: Final = b"LMLKNOW2"
_HASH: Final = 32
_HEAD = struct.Struct("<8s32s32sI4Q")
_RECORD = struct.Struct("<2IQQ")
_OWNERS = struct.Struct("<2Q")
_SHARED, _LARGE = struct.Struct("<2Q"), struct.Struct("<3Q")


class KnownFolder(NamedTuple):
    """A directory as the last snapshot has it."""

    path: bytes
    inode: int
    address: int
    raw: bytes | memoryview
    """Its listing, encoded."""

    @property
    def listing(self) -> Listing:
        """Its listing. Raises IntegrityError."""
        return decode_listing(bytes(self.raw))


@dataclass(slots=True)
class KnownTree:
    """A tree as the last snapshot has it."""

    space: Space
    folders: dict[bytes, KnownFolder] = field(default_factory=dict)
    """By their paths."""
    owners: ContentPlace = field(default_factory=lambda: ContentPlace(0, 0, 0))
    owners_raw: bytes = b""
    _by_inode: dict[int, KnownFolder] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the volume."""
        return self.space.end << self.space.log2

    @property
    def has_entries(self) -> bool:
        """Whether anything is in the directory that was saved. Raises IntegrityError."""
        return sum(folder.listing.count for folder in self.folders.values()) > 1  # itself is the entry of TOP

    def moved(self, inode: int) -> KnownFolder | None:
        """A directory with this inode, wherever it was."""
        if not self._by_inode:
            self._by_inode = {folder.inode: folder for folder in self.folders.values()}
        return self._by_inode.get(inode)


def allocated(status: FileStatus, place: ContentPlace) -> tuple[int, int]:
    """The address and the bytes that an entry has in the volume, whatever of them was filled; 0 bytes: none."""
    if stat.S_ISDIR(status.mode):
        return place.address, place.length
    is_stored = stat.S_ISREG(status.mode) and place.address
    return (place.address, status.size) if is_stored else (0, 0)


def rebuilt(log2: int, folders: Iterable[KnownFolder], owners: ContentPlace, owners_raw: bytes) -> KnownTree:
    """A tree from its listings, TOP included, and the names of its owners. Raises IntegrityError."""
    known = KnownTree(Space(log2), owners=owners, owners_raw=owners_raw)
    known.space.retain(owners.address, owners.length)
    for folder in folders:
        known.folders[folder.path] = folder
        listing = folder.listing
        for status, place in zip(listing.statuses(), listing.all_places(), strict=True):
            known.space.retain(*allocated(status, place))
    top = known.folders.get(TOP)
    if top is not None:
        known.space.retain(top.address, len(top.raw))
    return known


class KnownFile:
    """The file in which this host keeps what it knows of one tree in one repository, sealed with a key of it.

    Whoever could change the file would say of a changed file that it is saved.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self._path = path
        self._key = key
        self._map: mmap.mmap | None = None

    def load(self, root: bytes, log2: int) -> KnownTree | None:
        """What is known of the tree with this root; None if the file is lost, damaged, of another root or key."""
        try:
            with self._path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            return None
        with suppress(struct.error, ValueError, IndexError, IntegrityError):
            return self._parsed(memoryview(self._map), root, log2)
        return None

    def _parsed(self, view: memoryview, root: bytes, log2: int) -> KnownTree | None:
        magic, digest, found_root, found_log2, folders, shared, large, owners = _HEAD.unpack_from(view)
        if (magic, found_root, found_log2) != (_MAGIC, root.ljust(32, b"\0"), log2):
            return None
        if not hmac.compare_digest(hmac.new(self._key, view[8 + _HASH :], hashlib.sha256).digest(), digest):
            return None
        at, known = _HEAD.size, KnownTree(Space(log2))
        address, length = _OWNERS.unpack_from(view, at)
        known.owners = ContentPlace(address, length, 0)
        at += _OWNERS.size
        known.owners_raw = bytes(view[at : at + owners])
        at += owners
        for _ in range(shared):
            chunk, needed = _SHARED.unpack_from(view, at)
            known.space.shared[chunk] = needed
            at += _SHARED.size
        for _ in range(large):
            chunk, count, users = _LARGE.unpack_from(view, at)
            known.space.large[chunk] = (count, users)
            at += _LARGE.size
        for _ in range(folders):
            path_length, length, inode, address = _RECORD.unpack_from(view, at)
            at += _RECORD.size
            path = bytes(view[at : at + path_length])
            at += path_length
            known.folders[path] = KnownFolder(path, inode, address, view[at : at + length])
            at += length
        return known

    def save(self, root: bytes, known: KnownTree, count: int, folders: Iterable[KnownFolder]) -> None:
        """Keep what is known of the tree with this root, `count` folders. Raises OSError; the old file stays then."""
        make_private(self._path.parent)
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        digest, space = hmac.new(self._key, digestmod=hashlib.sha256), known.space

        def head() -> bytes:
            numbers = (space.log2, count, len(space.shared), len(space.large), len(known.owners_raw))
            return _HEAD.pack(_MAGIC, digest.digest(), root.ljust(32, b"\0"), *numbers)

        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(partial, flags, 0o600), "wb", 1 << 20) as file:
                first = head()
                file.write(first)
                digest.update(first[8 + _HASH :])
                for part in _parts(known, folders):
                    file.write(part)
                    digest.update(part)
                file.seek(0)
                file.write(head())
            partial.replace(self._path)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise

    def close(self) -> None:
        """Give up the mapping; what was loaded from it is not used any more."""
        self._map = None


def _parts(known: KnownTree, folders: Iterable[KnownFolder]) -> Iterator[bytes | memoryview]:
    """What follows the head of the file."""
    yield _OWNERS.pack(*known.owners[:2])
    yield known.owners_raw
    for chunk, needed in known.space.shared.items():
        yield _SHARED.pack(chunk, needed)
    for chunk, (count, users) in known.space.large.items():
        yield _LARGE.pack(chunk, count, users)
    for folder in folders:
        yield _RECORD.pack(len(folder.path), len(folder.raw), folder.inode, folder.address)
        yield folder.path
        yield folder.raw
