"""Runs that are not finished (FORMAT 8, SESSION): what they share from, what they stored, how far they came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

from lamella.base.ids import ChunkId, DomainId, VolumeId
from lamella.format.cursor import Cursor, text, u8, u16, u32, u64
from lamella.format.records import Ref, chunk_log2_of, domain_of


class SessionVolume(NamedTuple):
    """A volume the run means to save, and the snapshot it shares from (NO_REF and NO_CHUNK: none)."""

    volume_id: VolumeId
    name: str
    base: Ref
    base_root: ChunkId


class PartialRoot(NamedTuple):
    """A resume point: a tree whose chunks `[0, done)` are those of the frozen volume."""

    volume_id: VolumeId
    domain_id: DomainId
    root: ChunkId
    size: int
    chunk_log2: int
    done: int


@dataclass(frozen=True, slots=True)
class Session:
    """SESSION: pins what a run that is not finished shares and stored, `packs` since the SESSION before."""

    TYPE: ClassVar[int] = 0x000A
    session_id: bytes
    name: str
    volumes: tuple[SessionVolume, ...] = ()
    packs: tuple[bytes, ...] = ()
    partial_roots: tuple[PartialRoot, ...] = ()

    def encode_value(self) -> bytes:
        volumes = [row.volume_id + text(row.name) + row.base.encode() + row.base_root for row in self.volumes]
        roots = [
            row.volume_id + row.domain_id + row.root + u64(row.size) + u8(row.chunk_log2) + u64(row.done)
            for row in self.partial_roots
        ]
        counted = [u16(len(volumes)), *volumes, u32(len(self.packs)), *self.packs, u16(len(roots)), *roots]
        return b"".join((self.session_id, text(self.name), *counted))

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        session_id, name = cursor.take(16), cursor.text()
        volumes = tuple(_volume(cursor) for _ in range(cursor.count(2, 81)))
        packs = tuple(cursor.take(32) for _ in range(cursor.count(4, 32)))
        roots = tuple(_partial(cursor) for _ in range(cursor.count(2, 73)))
        return cls(session_id, name, volumes, packs, roots)


@dataclass(frozen=True, slots=True)
class Abandon:
    """ABANDON: the session pins nothing any more, because it was published or given up."""

    TYPE: ClassVar[int] = 0x000B
    session_id: bytes

    def encode_value(self) -> bytes:
        return self.session_id

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        return cls(cursor.take(16))


def _volume(cursor: Cursor) -> SessionVolume:
    return SessionVolume(VolumeId(cursor.take(16)), cursor.text(), Ref.decode(cursor), ChunkId(cursor.take(24)))


def _partial(cursor: Cursor) -> PartialRoot:
    volume_id, domain_id, root = VolumeId(cursor.take(16)), domain_of(cursor), ChunkId(cursor.take(24))
    return PartialRoot(volume_id, domain_id, root, cursor.uint(8), chunk_log2_of(cursor), cursor.uint(8))
