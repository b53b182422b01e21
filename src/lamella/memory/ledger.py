"""Which kept moment of a source holds the bytes of which snapshot: this host's memory, bound to the repository.

Losing it, or anything wrong in it, means that everything is read and compared; it is never a reason to assume anything.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lamella.base.ids import ChunkId, SnapId, VolumeId, WriterId
from lamella.crypto.derive import Keys, prf
from lamella.format.records import Ref
from lamella.memory.host import Host, HostMemory
from lamella.memory.resume import remembered_volumes, unfinished_moments

_FILE = "ledger.json"


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A checkpoint of a source whose bytes are those of a committed snapshot."""

    ref: Ref
    root: ChunkId
    size: int
    chunk_log2: int
    identity: bytes
    driver: str
    checkpoint: str

    def fields(self) -> dict[str, Any]:
        """As it is written down."""
        return {
            "writer": self.ref.writer.hex(),
            "seq": self.ref.seq,
            "snap_id": self.ref.snap_id.hex(),
            "root": self.root.hex(),
            "size": self.size,
            "chunk_log2": self.chunk_log2,
            "identity": self.identity.hex(),
            "driver": self.driver,
            "checkpoint": self.checkpoint,
        }


class Ledger:
    """The entries of one repository, by volume."""

    def __init__(self, memory: HostMemory, keys: Keys) -> None:
        self._memory = memory
        self._key = keys.local_key("ledger")

    def entry(self, volume_id: VolumeId) -> tuple[LedgerEntry | None, str]:
        """The entry of a volume, or None and the reason why there is none that can be believed."""
        row = self._rows().get(volume_id.hex())
        if row is None:
            return None, "this host keeps no moment of the last backup"
        try:
            fields = row["entry"]
            genuine = hmac.compare_digest(bytes.fromhex(row["mac"]), self._mac(volume_id, fields))
            entry = _decode(fields)
        except (KeyError, TypeError, ValueError):
            return None, "the record of the last moment cannot be read"
        if not genuine:
            return None, "the record of the last moment was altered or belongs to another repository"
        return entry, ""

    def record(self, volume_id: VolumeId, entry: LedgerEntry) -> None:
        """Replace a volume's entry, durably. Raises RepositoryError."""
        fields = entry.fields()
        row = {"entry": fields, "mac": self._mac(volume_id, fields).hex()}
        with self._memory.lock():
            self._memory.write(_FILE, {"volumes": {**self._rows(), volume_id.hex(): row}})

    def forget(self, volume_id: VolumeId) -> None:
        """Remove a volume's entry, durably; no error if there is none."""
        with self._memory.lock():
            rows = self._rows()
            if rows.pop(volume_id.hex(), None) is not None:
                self._memory.write(_FILE, {"volumes": rows})

    def _rows(self) -> dict[str, Any]:
        rows = self._memory.read(_FILE).get("volumes")
        return rows if isinstance(rows, dict) else {}

    def _mac(self, volume_id: VolumeId, fields: dict[str, Any]) -> bytes:
        return prf(self._key, volume_id + json.dumps(fields, sort_keys=True).encode("utf-8"))


def _decode(fields: dict[str, Any]) -> LedgerEntry:
    writer = WriterId(bytes.fromhex(fields["writer"]))
    ref = Ref(writer, int(fields["seq"]), SnapId(bytes.fromhex(fields["snap_id"])))
    return LedgerEntry(
        ref,
        ChunkId(bytes.fromhex(fields["root"])),
        int(fields["size"]),
        int(fields["chunk_log2"]),
        bytes.fromhex(fields["identity"]),
        str(fields["driver"]),
        str(fields["checkpoint"]),
    )


def needed_checkpoints(host: Host, identity: bytes) -> set[str]:
    """The checkpoints of a source that any repository's ledger or broken run on this host names, believed or not.

    Entries are not authenticated here: keeping one too many is harmless, dropping a needed one costs a comparison.
    """
    return {checkpoint for owner, checkpoint in _named(host) if owner == identity.hex()}


def _named(host: Host) -> Iterator[tuple[str, str]]:
    for path in sorted((host.state_dir / "repo").glob("*/" + _FILE)):
        for row in remembered_volumes(path):
            fields = row.get("entry") if isinstance(row, dict) else None
            if isinstance(fields, dict):
                yield str(fields.get("identity")), str(fields.get("checkpoint"))
    yield from unfinished_moments(host)


def tracked_identities(host: Host) -> list[bytes]:
    """The identities of all sources of which some repository's ledger or broken run on this host names a moment."""
    found: set[bytes] = set()
    for identity, _ in _named(host):
        try:
            found.add(bytes.fromhex(identity))
        except ValueError:
            continue
    return sorted(found)
