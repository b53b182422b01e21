"""Restoring to thin volumes: only data is written, everything else stays unmapped.

`lvm:VG/LV` is made beside its name and gets it when it has been compared. An existing volume is replaced by a snapshot
of itself that was emptied and written: LVM merges that into the volume in one step, which keeps its name and UUID, and
until then the volume is as it was (docs/decisions/0009). With `in_place` the volume itself is emptied and written.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from lamella.base.errors import Locked, SourceAtRisk, SourceError, UsageError
from lamella.sources.base import PoolLimits
from lamella.sources.discarding import discard, discarded_at_once
from lamella.sources.lvm import commands
from lamella.sources.lvm.commands import LogicalVolume
from lamella.sources.lvm.pools import pool_status, refuse_at_risk
from lamella.sources.target import OldState, Target
from lamella.sources.used_target import BlockDevice, in_use
from lamella.sources.zeroing import Zeroing, zero_range

PARTIAL_ENDING: Final = "+lampartial"
"""Ends the name of a volume whose restore is not complete."""
PARTIAL_TAG: Final = "lamella:partial"

_TAGS: Final = ("lamella", PARTIAL_TAG)
_WORDS_WITHOUT_ORIGIN: Final = 5
"""Of the table of a thin volume: start, length, `thin`, pool, id; an external origin comes after them."""


def choose_thin(
    text: str, *, overwrite: bool, in_place: bool, pool: str | None, limits: PoolLimits | None = None
) -> Target:
    """Return the target that fits `lvm:VG/LV`; `pool` is the pool of a new volume, if there are several.

    Raises UsageError if the volume exists and neither consent was given, or its pool is not known; SourceError.
    """
    vg, lv = commands.parsed(text.removeprefix("lvm:"))
    rows = commands.report(vg)
    volume = commands.volume_named(rows, lv)
    limits = limits or PoolLimits()
    if volume is None:
        if in_place:
            raise UsageError(f"{vg}/{lv} does not exist", obj=text, hint="leave out --in-place")
        return NewThin(vg, lv, _chosen_pool(rows, vg, pool), limits)
    if volume.kind != "thin":
        hint = f"give its device instead: {commands.node_of(vg, lv)}"
        raise UsageError(f"{volume.text} is no thin volume but {volume.kind}", obj=text, hint=hint)
    if not (overwrite or in_place):
        raise UsageError(f"{volume.text} exists already", obj=text, hint="add --overwrite, or choose another name")
    found = commands.volume_named(rows, volume.pool)
    if found is None or (pool is not None and pool.removeprefix(f"{vg}/") != found.name):
        raise UsageError(f"{volume.text} is in pool {volume.pool}, and stays there", obj=text, hint="leave out --pool")
    return ThinInPlace(volume, found, limits) if in_place else ReplacedThin(volume, found, limits)


def _chosen_pool(rows: list[LogicalVolume], vg: str, pool: str | None) -> LogicalVolume:
    pools = [row for row in rows if row.kind == "thin-pool"]
    if pool is None and len(pools) == 1:
        return pools[0]
    names = ", ".join(row.name for row in pools) or "none"
    if pool is None:
        raise UsageError(f"volume group {vg} has several thin pools", obj=vg, hint=f"name it with --pool: {names}")
    found = next((row for row in pools if row.name == pool.removeprefix(f"{vg}/")), None)
    if found is None:
        raise UsageError(f"volume group {vg} has no thin pool {pool}", obj=pool, hint=f"thin pools there: {names}")
    return found


class ThinDevice(BlockDevice):
    """The device of a thin volume, emptied and written in place; its size stays what it is."""

    starts_zeroed = True
    holds = False

    def prepare(self, size: int, needed_bytes: int) -> None:
        super().prepare(size, needed_bytes)
        self._empty()

    def _refuse_external_origin(self) -> None:
        """Raise UsageError for a volume in which a discarded block would not read as zero."""
        rdev = os.fstat(self._fd).st_rdev
        if len(commands.table_of(commands.kernel_name(rdev))) > _WORDS_WITHOUT_ORIGIN:
            raise UsageError(
                f"{self._given} has an external origin, which would show where nothing is written",
                obj=str(self._given),
                hint="restore into a new volume",
            )

    def _empty(self) -> None:
        """Give back every block of the volume, and write zeros where a block is only in part the volume's."""
        with self._opening():
            self._refuse_external_origin()
            block = discarded_at_once(self._fd)
            # Without discards the zeros are written: the same to read, only larger.
            whole = self._size // block * block if block else 0
            discard(self._fd, 0, whole)
            zero_range(self._fd, whole, self._size, Zeroing.KEEP_SPACE)


class NamedThin(ThinDevice):
    """A thin volume by name, in a pool whose room is checked before it is used."""

    def __init__(self, vg: str, lv: str, pool: LogicalVolume, limits: PoolLimits) -> None:
        self.vg, self.lv, self.pool, self.limits = vg, lv, pool, limits
        super().__init__(commands.node_of(vg, lv))

    @property
    def _text(self) -> str:
        return f"{self.vg}/{self.lv}"

    def _named(self, name: str) -> Path:
        return Path("/dev") / self.vg / name

    def _refuse_without_room(self, needed_bytes: int) -> None:
        """Raise SourceAtRisk if the data would fill the pool above its limit. It counts as if it shared nothing."""
        status = pool_status(self.pool)
        refuse_at_risk(self.pool, status, self.limits)
        total = self.pool.size
        used = total * status.data_used // max(status.data_total, 1)
        room = int(total * self.limits.data_percent / 100) - used
        if needed_bytes > room:
            raise SourceAtRisk(
                f"{needed_bytes >> 20} MiB would fill thin pool {self.pool.text} above"
                f" {self.limits.data_percent:g} %: {max(room, 0) >> 20} MiB are left until there",
                obj=self.pool.text,
                hint=f"lvextend --size +{(needed_bytes - room >> 20) + 1}M {self.pool.text}, or another pool",
            )


class ThinInPlace(NamedThin):
    """An existing thin volume, emptied and written where it lies: its old state is lost."""

    def __init__(self, volume: LogicalVolume, pool: LogicalVolume, limits: PoolLimits) -> None:
        super().__init__(volume.vg, volume.name, pool, limits)
        self.volume = volume
        self._was_active = True

    def prepare(self, size: int, needed_bytes: int) -> None:
        _refuse_open(self.volume)
        if self.volume.discards == "ignore":  # then every byte of it is written
            needed_bytes = size
        self._was_active = self.path.exists()
        if not self._was_active:
            commands.change("lvchange", "--activate", "y", "--ignoreactivationskip", self._text)
        try:
            self._refuse_without_room(needed_bytes - self.volume.mapped_bytes)
            self._give_back_behind(size)
            resize(self.volume, size)
            super().prepare(size, needed_bytes)
            # What was given back may be held by snapshots.
            self._refuse_without_room(needed_bytes)
        except BaseException:
            self.abandon()
            raise
        self.path = self.working_path = self._named(self.lv)

    def _give_back_behind(self, size: int) -> None:
        """Discard what a smaller volume will not reach any more: reducing the LV alone leaves its blocks mapped.

        The kernel takes whole blocks: one at the old end that is only in part the volume's stays.
        """
        with suppress(OSError), self._named(self.lv).open("rb+", buffering=0) as device:
            block = discarded_at_once(device.fileno())
            if block:
                discard(device.fileno(), -(-size // block) * block, self.volume.size)

    def finish(self) -> None:
        super().finish()
        self._as_it_was()

    def abandon(self) -> Path:
        left = super().abandon()
        self._as_it_was()
        return left

    def _as_it_was(self) -> None:
        if not self._was_active:
            self._was_active = True
            commands.change("lvchange", "--activate", "n", self._text)


class _Beside(NamedThin):
    """A thin volume that is written under another name first."""

    def __init__(self, vg: str, lv: str, pool: LogicalVolume, limits: PoolLimits) -> None:
        super().__init__(vg, lv, pool, limits)
        self._partial = f"{lv}{PARTIAL_ENDING}"

    def prepare(self, size: int, needed_bytes: int) -> None:
        self._refuse_without_room(needed_bytes)
        self._remove_partial()
        with ExitStack() as undone:
            undone.callback(self._remove_partial)
            self._make(size)
            self._given = commands.node_of(self.vg, self._partial)
            super().prepare(size, needed_bytes)
            undone.pop_all()
        self.path, self.working_path = self._named(self.lv), self._named(self._partial)

    def finish(self) -> None:
        super().finish()
        self._give_name()
        self.working_path = self.path
        commands.change("lvchange", *tag_words("--deltag"), self._text)

    def _make(self, size: int) -> None:
        raise NotImplementedError

    def _give_name(self) -> None:
        raise NotImplementedError

    def _remove_partial(self) -> None:
        remove_partial(self.vg, self._partial)


class NewThin(_Beside):
    """A new thin volume."""

    old_state = OldState.NONE

    def _empty(self) -> None:
        """It is empty."""

    def _make(self, size: int) -> None:
        options = ["--type", "thin", "--thinpool", self.pool.text, "--virtualsize", f"{max(size, 1)}b"]
        commands.change("lvcreate", *options, *tag_words("--addtag"), "--name", self._partial)

    def _give_name(self) -> None:
        commands.change("lvrename", self.vg, self._partial, self.lv)


class ReplacedThin(_Beside):
    """An existing thin volume, replaced in one step by what was restored beside it."""

    old_state = OldState.REPLACED

    def __init__(self, volume: LogicalVolume, pool: LogicalVolume, limits: PoolLimits) -> None:
        super().__init__(volume.vg, volume.name, pool, limits)
        self.volume = volume

    def _make(self, size: int) -> None:
        _refuse_open(self.volume)
        if self.volume.discards == "ignore":
            self._refuse_without_room(size)
        options = ["--snapshot", "--permission", "rw", "--setactivationskip", "n", "--activate", "y"]
        commands.change("lvcreate", *options, *tag_words("--addtag"), "--name", self._partial, self._text)
        row = commands.volume_named(commands.report(self.vg), self._partial)
        if row is None:
            raise SourceError(f"{self.vg}/{self._partial} vanished after it was made", obj=self._text)
        resize(row, size)

    def _give_name(self) -> None:
        row = commands.volume_named(commands.report(self.vg), self.lv)
        if row is None or row.uuid != self.volume.uuid:
            raise SourceError(f"{self._text} is no longer the volume that was to be replaced", obj=self._text)
        _refuse_open(row)
        commands.change("lvconvert", "--yes", "--merge", f"{self.vg}/{self._partial}")
        rows = commands.report(self.vg)
        # Had the volume been opened just now, LVM would wait with the exchange until it is activated next time.
        if any(row.name == self._partial or (row.name == self.lv and row.attributes[:1] == "O") for row in rows):
            raise SourceError(
                f"{self._text} was opened just now: the exchange takes effect when it is activated next time",
                obj=self._text,
            )


def remove_partial(vg: str, name: str) -> None:
    """Remove what is left of an attempt. Raises UsageError if it is not ours, Locked if another one goes on."""
    row = commands.volume_named(commands.report(vg), name)
    if row is None:
        return
    if PARTIAL_TAG not in row.tags:
        raise UsageError(f"{row.text} is in the way, and Lamella did not make it", obj=row.text, hint="rename it")
    if row.open:
        raise Locked(f"another restore is writing {row.text}", obj=row.text)
    commands.change("lvremove", "--force", "--yes", row.text)


def tag_words(option: str) -> list[str]:
    """The words that give its tags to an unfinished volume (`--addtag`), or take them away (`--deltag`)."""
    return [word for tag in _TAGS for word in (option, tag)]


def _refuse_open(volume: LogicalVolume) -> None:
    """Raise UsageError if anything has the volume open now."""
    row = commands.volume_named(commands.report(volume.vg), volume.name)
    if row is not None and row.open:
        raise in_use(commands.node_of(volume.vg, volume.name), "its device is open")


def resize(volume: LogicalVolume, size: int) -> None:
    """Make a thin volume as large as the restored one, rounded up to extents as LVM does."""
    wanted = max(1, -(-size // volume.extent)) * volume.extent
    if volume.size != wanted:
        commands.change("lvresize", "--force", "--yes", "--size", f"{wanted}b", volume.text)
