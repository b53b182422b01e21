"""Thin pools: what the kernel says of one, and whether it bears another snapshot.

A pool whose data or metadata runs full stops every machine on it, and may not come back without repair. Each snapshot
makes later writes allocate, so it is looked at before one is made (Linux: device-mapper/thin-provisioning.rst, Status).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lamella.base.errors import SourceAtRisk, SourceError, SpacePinned
from lamella.run.spawn import run
from lamella.sources.base import PoolLimits
from lamella.sources.lvm.commands import QUERY_SECONDS, LogicalVolume, device_name

_FIELDS: Final = 7
_HINT_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A thin pool as the kernel sees it. Metadata is counted in blocks of 4 KiB, data in blocks of the pool."""

    transaction: int
    metadata_used: int
    metadata_total: int
    data_used: int
    data_total: int
    held: int | None
    """Block of the reserved metadata snapshot, if somebody has reserved it: there is one at a time."""
    mode: str
    """`rw`, `ro` or `out_of_data_space`."""
    needs_check: bool

    @property
    def data_percent(self) -> float:
        """Share of the data blocks in use."""
        return 100.0 * self.data_used / max(self.data_total, 1)

    @property
    def metadata_percent(self) -> float:
        """Share of the metadata blocks in use."""
        return 100.0 * self.metadata_used / max(self.metadata_total, 1)


def pool_device(pool: LogicalVolume) -> str:
    """The device-mapper name of the pool proper, below the logical volume."""
    return device_name(pool.vg, pool.name) + "-tpool"


def metadata_device(pool: LogicalVolume) -> str:
    """The path of the pool's metadata device."""
    return f"/dev/mapper/{device_name(pool.vg, pool.name)}_tmeta"


def pool_status(pool: LogicalVolume) -> PoolStatus:
    """Ask the kernel. Raises SourceError, SourceAtRisk for a pool that failed."""
    # Without an active thin volume the pool has no layer of its own.
    for device in (pool_device(pool), device_name(pool.vg, pool.name)):
        command = ["dmsetup", "status", "--target", "thin-pool", device]
        try:
            found = run(command, timeout_seconds=QUERY_SECONDS, error=SourceError)
        except SourceError as error:
            trouble = error.message
        else:
            return parse_status(found.decode("ascii", "replace"), pool.text)
    hint = f"activate it: lvchange -ay {pool.text}"
    raise SourceError(f"thin pool {pool.text} is not active: {trouble}", obj=pool.text, hint=hint)


def parse_status(line: str, pool: str) -> PoolStatus:
    """Read a status line. Raises SourceError, SourceAtRisk for a pool that failed."""
    _, target, rest = line.partition(" thin-pool ")
    words = rest.split()
    if words and words[0] in ("Fail", "Error"):
        hint = "look at the kernel's log, and see lvmthin(7) on repair"
        raise SourceAtRisk(f"thin pool {pool} has failed", obj=pool, hint=hint)
    try:
        if not target or len(words) < _FIELDS:
            raise ValueError("too short")
        (metadata_used, metadata_total), (data_used, data_total) = (map(int, word.split("/")) for word in words[1:3])
        held = None if words[3] == "-" else int(words[3])
        transaction, mode = int(words[0]), words[4]
    except ValueError as reason:
        raise SourceError(f"the status of thin pool {pool} cannot be read: {line.strip()!r}", obj=pool) from reason
    return PoolStatus(
        transaction, metadata_used, metadata_total, data_used, data_total, held, mode, "needs_check" in words[5:]
    )


def refuse_at_risk(pool: LogicalVolume, status: PoolStatus, limits: PoolLimits) -> None:
    """Raise SourceAtRisk, saying what helps, if a snapshot could endanger the pool."""
    trouble = state_trouble(status)
    if trouble:
        raise SourceAtRisk(f"thin pool {pool.text} {trouble[0]}", obj=pool.text, hint=trouble[1])
    room = f"volume group {pool.vg} has {pool.vg_free >> 20} MiB free"
    if status.metadata_percent >= limits.metadata_percent:
        raise SpacePinned(
            f"the metadata of thin pool {pool.text} is {status.metadata_percent:.1f} % full, and a snapshot needs more"
            f" (limit {limits.metadata_percent:g} %)",
            obj=pool.text,
            hint=f"lvextend --poolmetadatasize +{_HINT_BYTES >> 20}M {pool.text} ({room})",
        )
    if status.data_percent >= limits.data_percent:
        raise SpacePinned(
            f"the data of thin pool {pool.text} is {status.data_percent:.1f} % full, and a snapshot makes writes"
            f" allocate (limit {limits.data_percent:g} %)",
            obj=pool.text,
            hint=f"lvextend --size +10G {pool.text} ({room}), or remove volumes or snapshots from it",
        )


def state_trouble(status: PoolStatus) -> tuple[str, str] | None:
    """The fault of a pool's state and the remedy, each a piece of a sentence; None without a fault."""
    if status.needs_check:
        return "needs to be checked", "deactivate it and repair it: lvconvert --repair, see lvmthin(7)"
    if status.mode == "out_of_data_space":
        return "is out of data space", "extend it: lvextend --size +10G"
    if status.mode != "rw":
        return "is read-only", "look at the kernel's log, and see lvmthin(7) on repair"
    return None
