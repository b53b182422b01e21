"""Records of runs that are not finished (FORMAT 8): what they pin, and that they pin nothing any more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lamella.base.ids import ChunkId, DomainId, VolumeId
from lamella.format.layout import CHUNK, ID, TEXT, U64, many, row
from lamella.format.records import CHUNK_LOG2, DOMAIN, PACKS, REF, Record, Ref


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


_VOLUME = row(SessionVolume, ID, TEXT, REF, CHUNK)
_PARTIAL = row(PartialRoot, ID, DOMAIN, CHUNK, U64, CHUNK_LOG2, U64)


@dataclass(frozen=True, slots=True)
class Session(Record):
    """SESSION: pins what a run that is not finished shares and stored, `packs` since the SESSION before."""

    TYPE = 0x000A
    LAYOUT = (ID, TEXT, many(2, _VOLUME), PACKS, many(2, _PARTIAL))
    session_id: bytes
    name: str
    volumes: tuple[SessionVolume, ...] = ()
    packs: tuple[bytes, ...] = ()
    partial_roots: tuple[PartialRoot, ...] = ()


@dataclass(frozen=True, slots=True)
class Abandon(Record):
    """ABANDON: the session pins nothing any more, because it was published or given up."""

    TYPE = 0x000B
    LAYOUT = (ID,)
    session_id: bytes
