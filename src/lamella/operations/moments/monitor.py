"""`monitor`: giving up old checkpoints by remembering what changed since (docs/decisions/0006)."""

from __future__ import annotations

from dataclasses import dataclass, field

from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost
from lamella.memory.host import Host
from lamella.memory.intervals import GRAIN, Interval, Intervals, compose
from lamella.memory.ledger import needed_checkpoints
from lamella.operations.moments.rotation import drop_unneeded
from lamella.sources.base import FrozenVolume, Source

UNTRACKED = "this kind of source cannot tell what changed, so each backup reads all of it"


@dataclass(slots=True)
class MonitorResult:
    """The result for one source. `changed_bytes` counts what may have changed in the new intervals."""

    source: str
    driver: str
    intervals: int = 0
    changed_bytes: int = 0
    dropped: int = 0
    tracked: bool = True
    """Whether the source can tell what changed: else it keeps no checkpoints, and there is nothing to do."""
    notes: list[str] = field(default_factory=list)


def delta_from(host: Host, source: Source, frozen: FrozenVolume, base: str, grain: int) -> Delta:
    """The ranges that may have changed from a ledger's base to a frozen moment, over intervals if there are any.

    Raises CheckpointLost at any doubt.
    """
    links = Intervals(host, source.identity).walk(base)
    if not links:
        return frozen.delta_since(base, grain)
    last = frozen.delta_since(links[-1].end, GRAIN)
    try:
        return compose(links, last).coarsened(grain)
    except ValueError as error:
        raise CheckpointLost("the intervals since the last backup are on another grid") from error


def monitor(host: Host, source: Source, *, lock_wait: float = 0.0) -> MonitorResult:
    """Take a new moment of a source, note what changed since the older ones, and drop these.

    Does nothing for a source that no repository's ledger needs. Raises Locked, SourceError, SourceAtRisk,
    RepositoryError.
    """
    result = MonitorResult(source.default_name, source.driver)
    with host.source_lock(source.identity, lock_wait):
        intervals = Intervals(host, source.identity)
        bases = needed_checkpoints(host, source.identity)
        result.tracked = source.tracks
        if not source.tracks or not bases:
            result.notes.append("no backup of this source keeps a checkpoint" if source.tracks else UNTRACKED)
            result.dropped = len(drop_unneeded(host, source))
            return result
        ends = intervals.keep_only(bases)
        with source.freeze() as frozen:
            fresh = _links(frozen, ends, result)
            if fresh and frozen.checkpoint:
                source.keep(frozen.checkpoint)
                for link in fresh:
                    intervals.add(link.begin, link.end, link.delta)
        result.intervals = len(fresh)
        result.changed_bytes = sum(len(link.delta.changed) for link in fresh) * GRAIN
        result.dropped = len(drop_unneeded(host, source))
    return result


def _links(frozen: FrozenVolume, ends: set[str], result: MonitorResult) -> list[Interval]:
    links: list[Interval] = []
    for moment in sorted(ends):
        try:
            links.append(Interval(moment, frozen.checkpoint, (), frozen.delta_since(moment, GRAIN)))
        except CheckpointLost as error:
            result.notes.append(f"a backup of this source must compare everything next time: {error.message}")
    return links
