"""The ranges to read by change maps: changed since the base, or since an interrupted run's moment."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost
from lamella.format.inner import Sampled
from lamella.history.catalogue import Snapshot, VolumeState
from lamella.memory.host import Host
from lamella.memory.ledger import ResumePoint
from lamella.operations.backup import mapped, sampling
from lamella.operations.backup.plan import COMPARE, INCREMENTAL, BackupOptions, partial_tree
from lamella.operations.backup.stages import Begun, Frozen, Way
from lamella.operations.moments.monitor import delta_from
from lamella.operations.shared.completeness import is_complete
from lamella.operations.shared.reading import Task
from lamella.operations.shared.selection import find_snapshot
from lamella.packs.tree import Tree
from lamella.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class Todo:
    """The tasks of an attempt, the tree they change, and the chunk at which the next run's sampling begins."""

    base: Tree
    tasks: Iterable[Task]
    cursor: int


def map_mismatch(repo: Repository, options: BackupOptions, volume: VolumeState, newest: Snapshot | None) -> str:
    """Why another tool's map cannot be used with the newest snapshot; "" if it can."""
    wanted = find_snapshot(repo, volume, options.changes_base)
    claimed = options.changes.base if options.changes is not None else ""
    if newest is None or wanted.ref != newest.ref:
        return "the snapshot that the change map starts from is not the latest usable one"
    if claimed and claimed != wanted.name:
        return f"the change map says that it starts from {claimed}"
    if not is_complete(repo, wanted):
        return "parts of the last snapshot are missing from the repository"
    return ""


def going_on(host: Host, frozen: Frozen, way: Way, point: ResumePoint) -> Way:
    """The way that reads only what an interrupted run did not reach, and what changed since its moment.

    If nothing of that run can be used, the way stays and its reason says so (docs/decisions/0016).
    """
    try:
        if point.chunk_log2 != frozen.shape.chunk_log2:
            raise CheckpointLost("it used another chunk size")
        since = _since(host, frozen, point.checkpoint, point.size)
    except CheckpointLost as error:
        why = f"the interrupted run cannot be continued: {error.message}"
        return replace(way, reason=f"{way.reason}; {why}" if way.reason else why)
    if point.compared and way.mode == INCREMENTAL:
        way = replace(way, mode=COMPARE, reason="the interrupted run compared everything")
    return replace(way, begun=Begun(point, since))


def tasks(repo: Repository, options: BackupOptions, frozen: Frozen, way: Way) -> Todo:
    """The ranges that an incremental or continued attempt reads. Raises CheckpointLost if no change map can be used."""
    volume, shape = frozen.volume, frozen.shape
    changed = _since_base(repo.host, options, frozen, way) if way.mode == INCREMENTAL else None
    if way.begun is None:
        if changed is None or way.base is None:
            raise ValueError("a way without a change map")
        sample = _sample(options, way, changed)
        return Todo(repo.tree(way.base), mapped.changes(volume, shape, changed, sample.chunks), sample.cursor)
    since, done = way.begun.since, min(way.begun.point.done, shape.chunks)
    rest = Delta.everything(since.grain, since.base_size, since.size) if changed is None else changed
    whole = since.spliced(done, rest)
    sample = _sample(options, way, whole)
    if changed is not None:
        found = mapped.changes(volume, shape, whole, sample.chunks)
    else:
        found = mapped.resumed(volume, shape, whole, sample.chunks, done)
    return Todo(partial_tree(shape.volume_id, way.begun.point), found, sample.cursor)


def _since_base(host: Host, options: BackupOptions, frozen: Frozen, way: Way) -> Delta:
    """The ranges that may have changed since the base. Raises CheckpointLost."""
    entry, base = frozen.plan.entry, way.base
    if base is not None and options.changes is not None:
        return options.changes.delta(frozen.shape.chunk_size, base.added.size, frozen.shape.size)
    if entry is None or base is None:
        raise CheckpointLost("there is no checkpoint")
    return _since(host, frozen, entry.checkpoint, base.added.size)


def _since(host: Host, frozen: Frozen, checkpoint: str, size: int) -> Delta:
    grain = frozen.shape.chunk_size
    delta = delta_from(host, frozen.source, frozen.volume, checkpoint, grain)
    if (delta.base_size, delta.size, delta.grain) != (size, frozen.shape.size, grain):
        raise CheckpointLost("the checkpoint has another size than what was stored of it")
    return delta


def _sample(options: BackupOptions, way: Way, delta: Delta) -> sampling.Sample:
    before = None if way.base is None else Sampled.of(way.base.added)
    cursor = 0 if before is None else before.cursor
    return sampling.choose(delta, cursor, options.reread_bytes, random.SystemRandom())
