"""Memory from one backup to the next: checkpoints, how far a broken run came, ids of new volumes.

A checkpoint is bound by a MAC to the repository's keys. Losing a table, or anything wrong in it, means that everything
is read and compared, or sent twice; it is never a reason to assume anything.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from lamella.base.clock import Clock, now_ms
from lamella.base.errors import RepositoryError
from lamella.base.ids import CATALOGUE, ChunkId, DomainId, VolumeId, WriterId
from lamella.crypto.derive import Keys, prf
from lamella.crypto.sign import public_of
from lamella.format.commit import writer_id
from lamella.format.records import Ref, volume_id
from lamella.memory.codec import FLAT
from lamella.memory.encoding import encode
from lamella.memory.host import Host, HostMemory, Table

KEPT_MS = 7 * 24 * 3600 * 1000
"""For so long a broken run's moment is kept, as prune keeps what it stored (FORMAT 8, SESSION)."""
Key = TypeVar("Key")
Row = TypeVar("Row")
Mac = Annotated[bytes, 32]


def _mac(key: bytes, volume_id: VolumeId, entry: LedgerEntry | ResumePoint) -> bytes:
    return prf(key, volume_id + json.dumps(encode(entry), sort_keys=True).encode("utf-8"))


def _without(rows: Mapping[Key, Row], gone: Key) -> dict[Key, Row]:
    return {key: row for key, row in rows.items() if key != gone}


# -- checkpoints ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A checkpoint of a source whose bytes are those of a committed snapshot."""

    ref: Annotated[Ref, FLAT]
    root: ChunkId
    size: int
    chunk_log2: int
    identity: bytes
    driver: str
    checkpoint: str


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """An entry and its MAC."""

    entry: LedgerEntry
    mac: Mac


def _ledger(memory: HostMemory) -> Table[dict[VolumeId, LedgerRow]]:
    return Table(memory, "ledger.json", dict[VolumeId, LedgerRow], "volumes")


class Ledger:
    """The entries of one repository, by volume."""

    def __init__(self, memory: HostMemory, keys: Keys) -> None:
        self._table = _ledger(memory)
        self._key = keys.local_key("ledger")

    def entry(self, volume_id: VolumeId) -> tuple[LedgerEntry | None, str]:
        """The entry of a volume, or None and the reason why there is none that can be believed."""
        row = self._table.read().get(volume_id)
        if row is None:
            return None, "this host keeps no checkpoint of the last backup"
        if not hmac.compare_digest(row.mac, _mac(self._key, volume_id, row.entry)):
            return None, "the record of the last checkpoint was altered or belongs to another repository"
        return row.entry, ""

    def record(self, volume_id: VolumeId, entry: LedgerEntry) -> None:
        """Replace a volume's entry, durably. Raises RepositoryError."""
        row = LedgerRow(entry, _mac(self._key, volume_id, entry))
        self._table.change(lambda rows: {**rows, volume_id: row})

    def forget(self, volume_id: VolumeId) -> None:
        """Remove a volume's entry, durably; no error if there is none. Raises RepositoryError."""
        self._table.change(lambda rows: _without(rows, volume_id))


# -- broken runs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """A partial root of a session, and the checkpoint whose bytes its chunks `[0, done)` are.

    The repository says how far the run came (SESSION, FORMAT 8), this memory which moment it read: only together, and
    only if they agree in everything, do they let a run go on.
    """

    session_id: bytes
    root: ChunkId
    size: int
    chunk_log2: int
    done: int
    base_root: ChunkId
    """Root of the snapshot the other chunks are shared from; 24 zero bytes without one."""
    compared: bool
    """The run compared everything: no change map may be used for what it had not come to."""
    identity: bytes
    driver: str
    checkpoint: str
    time_ms: int


@dataclass(frozen=True, slots=True)
class ResumeRow:
    """A resume point and its MAC."""

    entry: ResumePoint
    mac: Mac


def _resume(memory: HostMemory) -> Table[dict[VolumeId, tuple[ResumeRow, ...]]]:
    return Table(memory, "unfinished.json", dict[VolumeId, tuple[ResumeRow, ...]], "volumes")


class ResumeMemory:
    """The resume points of one repository, by volume."""

    def __init__(self, memory: HostMemory, keys: Keys) -> None:
        self._table = _resume(memory)
        self._key = keys.local_key("resume")

    def points(self, volume_id: VolumeId) -> list[ResumePoint]:
        """Those of a volume that can be believed."""
        rows = self._table.read().get(volume_id, ())
        return [row.entry for row in rows if hmac.compare_digest(row.mac, _mac(self._key, volume_id, row.entry))]

    def record(self, volume_id: VolumeId, points: Sequence[ResumePoint]) -> None:
        """Replace a volume's points, durably; an empty list forgets the volume. Raises RepositoryError."""
        rows = tuple(ResumeRow(point, _mac(self._key, volume_id, point)) for point in points)
        self._table.change(lambda stored: {**stored, volume_id: rows} if rows else _without(stored, volume_id))


# -- every repository of this host -------------------------------------------------------------------------------------


def needed_checkpoints(host: Host, identity: bytes, served: Sequence[HostMemory] | None = None) -> set[str]:
    """The checkpoints of a source that any repository's ledger or broken run on this host names, believed or not.

    Only those of the memories `served`, if any are given.

    Entries are not authenticated here: keeping one too many is harmless, dropping a needed one costs a comparison.
    """
    return {entry.checkpoint for entry in _named(served or host.memories()) if entry.identity == identity}


def tracked_identities(host: Host) -> list[bytes]:
    """The identities of all sources of which some repository's ledger or broken run on this host names a moment."""
    return sorted({entry.identity for entry in _named(host.memories())})


def _named(memories: Sequence[HostMemory], clock: Clock = now_ms) -> Iterator[LedgerEntry | ResumePoint]:
    now = clock()
    for memory in memories:
        for row in _ledger(memory).read().values():
            yield row.entry
        for rows in _resume(memory).read().values():
            yield from (row.entry for row in rows if abs(now - row.entry.time_ms) <= KEPT_MS)


# -- volumes whose first backup is not finished ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewVolume:
    """The ids of a volume that is not in the repository yet.

    Without this memory each attempt would have a new domain, and what the broken-off one sent could not be found again.
    """

    creator: WriterId
    nonce: Annotated[bytes, 16]
    domain_id: DomainId
    domain_label: str

    @property
    def volume_id(self) -> VolumeId:
        """The id that follows from creator and nonce."""
        return volume_id(self.creator, self.nonce)


def _intended(memory: HostMemory) -> Table[dict[bytes, NewVolume]]:
    """By the source's identity."""
    return Table(memory, "intended.json", dict[bytes, NewVolume])


def new_volume(memory: HostMemory, identity: bytes, domain_label: str) -> NewVolume:
    """The ids given to this source before, else fresh random ones. A domain counts only for the same label.

    Before the host has a writer key (`HostMemory.creator`) they are good for showing a plan only.
    """
    known, key = _intended(memory).read().get(identity), memory.writer_key()
    creators = [] if key is None else [writer_id(public_of(seed)) for seed in key.seeds]
    may_go_on = known is not None and known.creator in creators and known.domain_id != CATALOGUE
    if known is not None and may_go_on and known.domain_label == domain_label:
        return known
    creator = creators[-1] if creators else WriterId(bytes(16))
    return NewVolume(creator, os.urandom(16), DomainId(os.urandom(16)), domain_label)


def remember(memory: HostMemory, identity: bytes, ids: NewVolume) -> str:
    """Keep the ids until the volume is published; returns why that failed, empty if it did not."""
    try:
        _intended(memory).change(lambda known: {**known, identity: ids})
    except RepositoryError as error:
        return error.message
    return ""


def forget(memory: HostMemory, identity: bytes) -> None:
    """The volume is in the repository now. Raises RepositoryError."""
    _intended(memory).change(lambda known: _without(known, identity))
