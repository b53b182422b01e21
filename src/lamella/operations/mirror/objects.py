"""The objects of a repository by their names alone: what they are, and whether their bytes are what the name says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from lamella.base.errors import IntegrityError, ObjectNotFound, StoreError
from lamella.base.ids import WriterId
from lamella.base.names import (
    COMMITS,
    SLOT_SIZE,
    TRAILER_SIZE,
    Part,
    commit_message,
    hash_in,
    pack_hash,
    pack_name,
    part_of,
)
from lamella.crypto.sign import verified
from lamella.format import marker
from lamella.format.commit import parse_name, split_trailer
from lamella.format.container import MAX_OBJECT
from lamella.operations.shared.findings import DAMAGE, Finding
from lamella.packs.reach import require_alive
from lamella.stores.base import Entry, Store

_MAX_TEXT = 16 * 1024 * 1024
_MAX_BYTES = {
    Part.PACK: MAX_OBJECT,
    Part.SEGMENT: MAX_OBJECT,
    Part.COMMIT: MAX_OBJECT + TRAILER_SIZE,
    Part.KEY: SLOT_SIZE,
}


class Listing(NamedTuple):
    """What a store lists below a prefix, in order."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, store: Store, prefix: str) -> Listing:
        """List it. Raises StoreError."""
        return cls(tuple(sorted(store.list(prefix), key=lambda entry: entry.name)))


@dataclass(slots=True)
class Objects:
    """The objects of one place. Packs are kept by their hash: there may be a million."""

    packs: dict[bytes, int] = field(default_factory=dict)
    small: dict[str, int] = field(default_factory=dict)
    commits: dict[tuple[WriterId, int], set[bytes]] = field(default_factory=dict)
    ignored: str = ""
    """A name that belongs to no repository, if there is one."""

    @classmethod
    def listed(cls, store: Store, commits: Listing | None = None) -> Objects:
        """Everything a store lists, commits before packs. Raises StoreError."""
        found = cls()
        for entry in (commits or Listing.of(store, COMMITS)).entries:
            found.add(entry)
        for entry in store.list(""):
            if not entry.name.startswith(COMMITS):
                found.add(entry)
        return found

    def add(self, entry: Entry) -> None:
        """Take an object in."""
        name = entry.name
        sha256 = pack_hash(name)
        if sha256 is not None:
            self.packs[sha256] = entry.size
            return
        part = part_of(name)
        if not part:
            self.ignored = self.ignored or name
            return
        self.small[name] = entry.size
        head = parse_name(name) if part == Part.COMMIT else None
        if head is not None:
            self.commits.setdefault((head.writer, head.seq), set()).add(head.sha256)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.packs) + len(self.small)

    def has(self, name: str) -> bool:
        """Whether an object of that name is there."""
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """Its size in bytes."""
        sha256 = pack_hash(name)
        return self.small.get(name) if sha256 is None else self.packs.get(sha256)

    def entries(self) -> Iterator[Entry]:
        """All of them: slots and text, packs, segments, commits."""
        for sha256, size in sorted(self.packs.items()):
            yield Entry(pack_name(sha256), size)
        for name, size in sorted(self.small.items()):
            yield Entry(name, size)

    def different(self, other: Objects) -> Iterator[tuple[str, int]]:
        """Names that both have, and their size here, where the sizes differ."""
        mine: Iterable[tuple[str, int]] = ((pack_name(one), size) for one, size in self.packs.items())
        for rows in (mine, self.small.items()):
            for name, size in rows:
                if other.size(name) not in (None, size):
                    yield name, size


def check(store: Store, entry: Entry, mark: marker.Marker) -> bytes | Finding:
    """The bytes of an object if they are what its name says, else what is wrong with them.

    Raises ObjectNotFound if it is gone, StoreError if the store is out of reach.
    """
    name, part = entry.name, part_of(entry.name)
    if entry.size > (_MAX_TEXT if part is None else _MAX_BYTES.get(part, _MAX_TEXT)):
        return Finding("mirror", DAMAGE, name, f"an object of {entry.size} bytes cannot be what its name says")
    try:
        content = store.get(name)
    except ObjectNotFound:
        raise
    except StoreError as error:
        require_alive(store, error)
        return Finding("mirror", DAMAGE, name, f"cannot be read: {error.message}")
    if _is_what_it_says(name, part, content, mark):
        return content
    return Finding("mirror", DAMAGE, name, "its bytes are not what its name says; not copied")


def _is_what_it_says(name: str, part: Part | None, content: bytes, mark: marker.Marker) -> bool:
    if part == Part.TEXT:
        return True  # nothing but a prune-signed FILE record says what it must be, and that needs a key
    head = parse_name(name)
    if head is None:
        named = hash_in(name)
        return named is not None and hashlib.sha256(content).digest().startswith(named)
    try:
        _, trailer = split_trailer(content, head)
    except IntegrityError:
        return False
    message = commit_message(mark.root, head.writer, head.seq, trailer.container)
    return verified(trailer.public, trailer.signature, message)
