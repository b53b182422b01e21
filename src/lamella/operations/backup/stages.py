"""The values of a run, one for each stage, and what became of it. Sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lamella.base.ids import NO_CHUNK, ChunkId
from lamella.format.node import Shape
from lamella.format.records import RawRecord
from lamella.history.catalogue import Snapshot
from lamella.operations.backup.plan import VolumePlan
from lamella.operations.writing.chunks import VolumeRead
from lamella.sources.base import Consistency, FrozenVolume, Source

if TYPE_CHECKING:
    from lamella.base.delta import Delta
    from lamella.memory.ledger import ResumePoint


NO_MOMENT = (Consistency.UNKNOWN, Consistency.CHANGED)
"""The parts of the volume need not have existed at the same time."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """A planned volume at the moment it was frozen."""

    plan: VolumePlan
    volume: FrozenVolume
    time_ms: int
    shape: Shape
    notes: tuple[RawRecord, ...] = ()

    @property
    def source(self) -> Source:
        """The source that was frozen."""
        return self.plan.request.source


@dataclass(frozen=True, slots=True)
class Begun:
    """The progress of an interrupted run, and what may have changed since the moment it read."""

    point: ResumePoint
    since: Delta


@dataclass(frozen=True, slots=True)
class Way:
    """The way in which one attempt reads a volume, and its base."""

    mode: str
    reason: str
    base: Snapshot | None
    begun: Begun | None = None
    notes: tuple[RawRecord, ...] = ()
    """Inner records for the snapshot: maps that earlier attempts refuted, where sampling continues."""

    @property
    def base_root(self) -> ChunkId:
        """The root of the base's tree, NO_CHUNK without a base."""
        return NO_CHUNK if self.base is None else self.base.added.root

    def resumed_bytes(self, shape: Shape) -> int:
        """The number of bytes of the volume that an interrupted run has read."""
        return 0 if self.begun is None else min(self.begun.point.done << shape.chunk_log2, shape.size)


@dataclass(frozen=True, slots=True)
class Read:
    """A volume that was read to its end; its tree is stored."""

    frozen: Frozen
    way: Way
    tree: VolumeRead
    consistency: int


@dataclass(frozen=True, slots=True)
class VolumeResult:
    """The result for one volume. `resumed_bytes` had been read by a run that was interrupted."""

    volume: str
    driver: str
    mode: str
    reason: str
    source_bytes: int = 0
    read_bytes: int = 0
    sampled_bytes: int = 0
    resumed_bytes: int = 0
    changed_chunks: int = 0
    new_chunks: int = 0
    stored_bytes: int = 0
    changed_bytes: int = 0
    delta_chunks: int = 0
    result: str = "failed"
    consistency: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class BackupResult:
    """The result of a run. `snapshot` is empty if nothing was saved."""

    snapshot: str
    complete: bool
    seconds: float
    metadata_bytes: int
    stored_bytes: int
    fingerprint: str
    volumes: list[VolumeResult]
    warnings: list[str] = field(default_factory=list)

    @property
    def word(self) -> str:
        """`complete`, `incomplete` if a volume was not saved, else `changed` if one changed while it was read."""
        changed = any(row.result == "changed" for row in self.volumes)
        return "incomplete" if not self.complete else "changed" if changed else "complete"


def failed(plan: VolumePlan, error: str, way: Way | None = None, shape: Shape | None = None) -> VolumeResult:
    """The result of a volume that was not saved; `way` and `shape` where its reading had begun."""
    said = way or plan
    size, resumed = (0, 0) if way is None or shape is None else (shape.size, way.resumed_bytes(shape))
    return VolumeResult(plan.volume, plan.driver, said.mode, said.reason, size, resumed_bytes=resumed, error=error)


def saved(read: Read) -> VolumeResult:
    """The result of a volume that was read to its end."""
    begun = failed(read.frozen.plan, "", read.way, read.frozen.shape)
    figures, shape = read.tree.figures, read.frozen.shape
    said = {**figures._asdict(), "changed_bytes": min(figures.changed_chunks << shape.chunk_log2, shape.size)}
    result = "changed" if read.consistency == Consistency.CHANGED else "complete"
    return replace(begun, result=result, consistency=read.consistency, **said)
