"""Commit bodies and trailers, entries of checkpoints (FORMAT 8)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.ids import WriterId
from lamella.base.names import COMMITS, commit_name, commit_of
from lamella.base.signed import TRAILER_SIZE, Trailer, trailer_of, writer_of
from lamella.format.container import MAX_CONTENT
from lamella.format.cursor import Cursor, u8, u32, u64
from lamella.format.layout import HASH, ID, U64, row
from lamella.format.records import RawRecord, split

PREFIX = COMMITS
MAX_SEEN = 1024
CHECKPOINT_EVERY = 24


class Head(NamedTuple):
    """One commit of a chain: its writer, number and the SHA-256 of its object."""

    writer: WriterId
    seq: int
    sha256: bytes

    @property
    def name(self) -> str:
        """The object name."""
        return commit_name(*self)


HEAD = row(Head, ID, U64, HASH)


def parse_name(name: str) -> Head | None:
    """The commit that `name` names, None if it is not a commit's name."""
    found = commit_of(name)
    return None if found is None else Head(WriterId(found.writer), found.seq, found.sha256)


@dataclass(frozen=True, slots=True)
class Body:
    """What a commit says. `checkpoint` is (0, zeros) when the chain has none before this commit."""

    writer: WriterId
    seq: int
    prev: bytes
    time_ms: int
    checkpoint: tuple[int, bytes]
    seen: tuple[Head, ...]
    records: tuple[RawRecord, ...]

    def encode(self) -> bytes:
        """The body's bytes, before they are cut into parts."""
        head = u8(1) + bytes(7) + self.writer + u64(self.seq) + self.prev + u64(self.time_ms)
        head += u64(self.checkpoint[0]) + self.checkpoint[1] + u32(len(self.seen))
        return b"".join((head, *map(HEAD.encode, self.seen), *(record.encode() for record in self.records)))


def decode_body(content: bytes, head: Head) -> Body:
    """Read the body of the commit named `head`. Raises IntegrityError, UnknownFormat."""
    cursor = Cursor(content, head.name)
    if cursor.uint(1) != 1:
        raise UnknownFormat("a commit of unknown version", obj=head.name)
    cursor.zeros(7)
    writer, seq, prev, time_ms = WriterId(cursor.take(16)), cursor.uint(8), cursor.take(32), cursor.uint(8)
    checkpoint = (cursor.uint(8), cursor.take(32))
    count = cursor.count(4, 56)
    if checkpoint[0] >= seq or (checkpoint[0] == 0) != (checkpoint[1] == bytes(32)):
        cursor.fail("its checkpoint cannot be one of its chain")
    if (writer, seq) != (head.writer, head.seq) or seq < 1 or (seq == 1) != (prev == bytes(32)) or count > MAX_SEEN:
        cursor.fail("its body contradicts its name or its place")
    seen = tuple(HEAD.decode(cursor) for _ in range(count))
    return Body(writer, seq, prev, time_ms, checkpoint, seen, tuple(split(cursor.rest(), head.name)))


def parts(body: bytes) -> Iterator[bytes]:
    """Cut an encoded body into kind-6 contents."""
    for start in range(0, len(body), MAX_CONTENT):
        yield body[start : start + MAX_CONTENT]


def split_trailer(content: bytes, head: Head) -> tuple[bytes, Trailer]:
    """(container, trailer), with both hashes and the writer id checked. Raises IntegrityError."""
    if len(content) <= TRAILER_SIZE or hashlib.sha256(content).digest() != head.sha256:
        raise IntegrityError("a commit that does not match its name", obj=head.name)
    container, trailer = content[:-TRAILER_SIZE], trailer_of(content)
    if writer_id(trailer.public) != head.writer:
        raise IntegrityError("a commit with another writer's key", obj=head.name)
    if hashlib.sha256(container).digest() != trailer.container:
        raise IntegrityError("a commit whose trailer is another one's", obj=head.name)
    return container, trailer


def writer_id(public: bytes) -> WriterId:
    """The id that belongs to a writer's public key."""
    return WriterId(writer_of(public))


def bound(writer: WriterId, seq: int) -> bytes:
    """The end of the additional data of a commit's directory and blobs: a copy under another number opens nothing."""
    return writer + u64(seq)


def fingerprint_message(root: bytes, heads: Iterable[Head]) -> bytes:
    """What the head fingerprint hashes."""
    return b"lamella/1 heads\0" + root + b"".join(sorted(map(HEAD.encode, heads)))


class ChainEntry(NamedTuple):
    """A record with the commit it came from, as checkpoints keep it."""

    seq: int
    prev: bytes
    time_ms: int
    record: RawRecord

    def encode(self) -> bytes:
        """The entry's bytes."""
        return u64(self.seq) + self.prev + u64(self.time_ms) + self.record.encode()
