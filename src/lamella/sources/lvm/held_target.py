"""Restoring to thin volumes that begin with what is right already (docs/decisions/0083).

A new volume begins as a snapshot of the checkpoint; so does what an import of qubesd made, which gives its name to that
snapshot. A volume that is there begins with what it holds: LVM merges a snapshot into its own origin only, so the
snapshot of the volume itself that is merged back at the end is not emptied first. Whatever is right stays shared with
the checkpoint, and the pool is looked at while the rest is written.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from lamella.base.errors import CheckpointLost, SourceError
from lamella.sources.base import Keeping, PoolLimits
from lamella.sources.checkpoint_files import source_name
from lamella.sources.discarding import discard, discarded_at_once
from lamella.sources.held_zeros import not_zero
from lamella.sources.lvm import commands
from lamella.sources.lvm.commands import LogicalVolume
from lamella.sources.lvm.pools import pool_status, refuse_at_risk
from lamella.sources.lvm.target import (
    PARTIAL_ENDING,
    NamedThin,
    NewThin,
    ReplacedThin,
    ThinInPlace,
    remove_partial,
    resize,
    tag_words,
)
from lamella.sources.lvm.thin import Checkpoints, ThinToken, identity_of
from lamella.sources.target import Target
from lamella.sources.zeroing import Zeroing, zero_range

_LOOK_AGAIN_BYTES: Final = 16 << 20
"""After so many bytes the pool is looked at again: a small write may cost a whole block of it."""


class ThinCheckpoint:
    """The checkpoint that a volume may begin as. Raises CheckpointLost for a text that names no snapshot."""

    def __init__(self, identity: bytes, keeping: Keeping, checkpoint: str) -> None:
        self._checkpoints = Checkpoints(source_name(identity), keeping.owner)
        self._token = ThinToken.parse(checkpoint)
        self.identity = identity

    def find(self, pool: LogicalVolume) -> LogicalVolume:
        """The snapshot. Raises CheckpointLost unless it is there, what it was, and in this pool; SourceError."""
        row = self._checkpoints.find(self._token, commands.report(pool.vg))
        if row.pool != pool.name:
            raise CheckpointLost(f"the checkpoint is in pool {row.pool}, and the volume is to be in {pool.name}")
        return row


class _MostlyRight(NamedThin):
    """A thin volume whose contents are mostly right. Zeros are discarded; blocks that are right stay shared."""

    starts_zeroed = False
    holds = True
    differing_bytes = 0
    """The bytes that are expected to be written."""
    _block = 0
    _unlooked = 0

    def write(self, offset: int, content: bytes | bytearray | memoryview) -> None:
        self._look_at_pool(len(content))
        super().write(offset, content)

    def _empty(self) -> None:
        """Only what lies behind the volume's end is cleared."""
        self._looking = threading.Lock()
        with self._opening():
            self._refuse_external_origin()
            self._block = discarded_at_once(self._fd)
            size, self._size = self._size, self._size + self.tail_bytes
            self._clear(size, self._size)
            self._size = size

    def _zero(self, start: int, end: int, *, keep_space: bool) -> None:
        self._check_range(start, end)
        with self._translated("clear", start):
            self._clear(start, end)

    def _clear(self, start: int, end: int) -> None:
        """Discard whole blocks of the pool; in the others write zeros where there are none."""
        low = high = start
        if self._block and -(-start // self._block) < end // self._block:
            low, high = -(-start // self._block) * self._block, end // self._block * self._block
            discard(self._fd, low, high)
        parts = [(first, stop) for first, stop in ((start, low), (high, end)) if first < stop]
        for offset, until in not_zero(self.read_into, parts):
            self._look_at_pool(until - offset)
            zero_range(self._fd, offset, until, Zeroing.KEEP_SPACE)

    def _look_at_pool(self, written: int) -> None:
        """Raise SourceAtRisk once the pool is above its limits. A mistaken checkpoint must not fill it."""
        with self._looking:
            self._unlooked += written
            if self._unlooked < _LOOK_AGAIN_BYTES:
                return
            self._unlooked = 0
        refuse_at_risk(self.pool, pool_status(self.pool), self.limits)

    def _refuse_without_room(self, needed_bytes: int) -> None:
        super()._refuse_without_room(min(needed_bytes, self.differing_bytes))

    def _begin_as(self, moment: LogicalVolume, name: str, size: int, tags: list[str]) -> None:
        """Make a snapshot of a checkpoint under a name of its own."""
        options = ["--snapshot", "--permission", "rw", "--setactivationskip", "n", "--activate", "y"]
        commands.change("lvcreate", *options, *tags, "--name", name, moment.text)
        row = commands.volume_named(commands.report(self.vg), name)
        if row is None:
            raise SourceError(f"{self.vg}/{name} vanished after it was made", obj=self._text)
        resize(row, size)


class HeldInPlace(_MostlyRight, ThinInPlace):
    """An existing thin volume, of which only what differs is written over."""


class HeldReplaced(_MostlyRight, ReplacedThin):
    """An existing thin volume, replaced by a snapshot of itself in which only what differs was written."""


class SeededThin(_MostlyRight, NewThin):
    """A new thin volume that begins as a snapshot of a checkpoint."""

    def __init__(self, vg: str, lv: str, pool: LogicalVolume, limits: PoolLimits, moment: ThinCheckpoint) -> None:
        super().__init__(vg, lv, pool, limits)
        self._moment = moment
        moment.find(pool)

    def _make(self, size: int) -> None:
        self._begin_as(self._moment.find(self.pool), self._partial, size, tag_words("--addtag"))


class SeededImport(_MostlyRight, ThinInPlace):
    """The empty volume of an import of qubesd, exchanged for a snapshot of a checkpoint that gets its name.

    qubesd knows an import by its name. Killed in between there is no volume of that name, and so no import.
    """

    def __init__(self, volume: LogicalVolume, pool: LogicalVolume, limits: PoolLimits, moment: ThinCheckpoint) -> None:
        super().__init__(volume, pool, limits)
        self._moment = moment
        moment.find(pool)

    def prepare(self, size: int, needed_bytes: int) -> None:
        self._exchange(size)
        super().prepare(size, needed_bytes)

    def _exchange(self, size: int) -> None:
        """Put a snapshot of the checkpoint in the place of the empty volume."""
        remove_partial(self.vg, partial := f"{self.lv}{PARTIAL_ENDING}")
        self._begin_as(self._moment.find(self.pool), partial, size, tag_words("--addtag"))
        commands.change("lvremove", "--force", "--yes", self._text)
        commands.change("lvrename", self.vg, partial, self.lv)
        commands.change("lvchange", *tag_words("--deltag"), self._text)
        self.volume = _row(self.vg, self.lv)


def held_target(target: Target, identity: bytes, checkpoint: str, keeping: Keeping, differing_bytes: int) -> Target:
    """The same target, but with contents: a new volume begins as the checkpoint of the source with this identity; that
    source itself, written over or replaced, begins with what it holds.

    Raises CheckpointLost if the target is neither, or the checkpoint does not serve; SourceError.
    """
    found: _MostlyRight
    moment = ThinCheckpoint(identity, keeping, checkpoint)
    if isinstance(target, NewThin):
        found = SeededThin(target.vg, target.lv, target.pool, target.limits, moment)
    elif isinstance(target, ThinInPlace | ReplacedThin) and identity_of(target.volume.vg_uuid, target.lv) == identity:
        kind = HeldInPlace if isinstance(target, ThinInPlace) else HeldReplaced
        found = kind(target.volume, target.pool, target.limits)
    else:
        raise CheckpointLost("the target is not the volume that the checkpoint is of")
    found.differing_bytes = differing_bytes
    return found


def held_import(path: Path, identity: bytes, checkpoint: str, keeping: Keeping, differing_bytes: int) -> Target:
    """The target for the device that an import of qubesd made: it begins as the checkpoint.

    Raises CheckpointLost if it does not serve, SourceError.
    """
    names = commands.names_at(path)
    if names is None:
        raise CheckpointLost(f"{path} is no logical volume")
    volume = _row(*names)
    found = SeededImport(
        volume, _row(names[0], volume.pool), keeping.limits, ThinCheckpoint(identity, keeping, checkpoint)
    )
    found.differing_bytes = differing_bytes
    return found


def _row(vg: str, name: str) -> LogicalVolume:
    row = commands.volume_named(commands.report(vg), name)
    if row is None:
        raise SourceError(f"there is no logical volume {vg}/{name}", obj=f"{vg}/{name}")
    return row
