"""The `lvm_thin` driver: a thin volume is frozen as a snapshot in its pool; snapshots are compared by its metadata.

A checkpoint is a read-only snapshot `<LV>+lam<owner>x<n>` in the same pool, which says in its tags whose it is. It is
known again by the UUIDs of its volume group, pool and logical volume and by its number in the pool, never by its name
alone (docs/decisions/0007).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, SourceError, UsageError
from lamella.base.extents import Extent
from lamella.sources.base import Consistency, FrozenVolume, Keeping, Source
from lamella.sources.checkpoint_files import source_name
from lamella.sources.driver import MomentToken, OpenVolume, read_failed
from lamella.sources.lvm import commands, thin_tools
from lamella.sources.lvm.commands import LogicalVolume
from lamella.sources.lvm.pools import metadata_device, pool_status, refuse_at_risk
from lamella.sources.lvm.reservation import Reservations

DRIVER: Final = "lvm_thin"
TAG: Final = "lamella"
"""On every logical volume that Lamella makes."""

_SNAPSHOT: Final = re.compile(r"(.+)\+lam([0-9a-f]{8})x([1-9][0-9]{0,15})")
_LONGEST_DEVICE_NAME: Final = 126  # dm-ioctl.h: DM_NAME_LEN is 128 with its zero; lvm2 allows one less
_UUID_LENGTH: Final = len("LVM-") + 64
_EXTERNAL: Final = f"{TAG}:external="

Edit = Callable[[int, Callable[[], None]], None]
"""Changes an open clone; calls the second argument now and then, which raises once there is no room for more."""


def open_lvm_thin(text: str, machine: str, keeping: Keeping) -> Source:
    """Return the thin volume that `lvm:VG/LV`, `VG/LV` or the path of a device means.

    Raises UsageError if it is no thin volume, SourceError if it is not there or LVM cannot be asked.
    """
    if not keeping.owner:
        raise UsageError(f"the {DRIVER} driver makes snapshots, and their owner is not named", obj=text)
    place = text.removeprefix("lvm:")
    vg, lv = (commands.names_at(Path(place)) if place.startswith("/") else None) or commands.parsed(place)
    volume = commands.volume_named(commands.report(vg), lv)
    if volume is None:
        raise SourceError(f"there is no logical volume {vg}/{lv}", obj=text)
    if volume.kind != "thin":
        hint = f"back up its device with the file driver: {commands.node_of(vg, lv)}"
        raise UsageError(f"{volume.text} is no thin volume but {volume.kind}", obj=text, hint=hint)
    return ThinSource(volume, keeping)


@dataclass(frozen=True, slots=True)
class ThinToken(MomentToken):
    """The facts of a snapshot when it was made."""

    vg: str
    pool: str
    volume: str
    name: str
    thin: int
    transaction: int
    size: int
    external: str
    """UUID, as the kernel knows it, of the device that unmapped blocks are read from; empty if they read as zero."""

    @classmethod
    def of(cls, row: LogicalVolume) -> ThinToken:
        """Describe a snapshot as it is now."""
        external = next((tag.removeprefix(_EXTERNAL) for tag in row.tags if tag.startswith(_EXTERNAL)), "")
        return cls(row.vg_uuid, row.pool_uuid, row.uuid, row.name, row.thin_id, row.transaction, row.size, external)


def identity_of(vg_uuid: str, lv: str) -> bytes:
    """`lvm:UUID:LV`: a volume made again under its name is the same volume."""
    return f"lvm:{vg_uuid}:{lv}".encode("ascii")


def named_by(identity: bytes) -> tuple[str, str] | None:
    """UUID of the volume group and name of the logical volume; None for an identity of another kind."""
    kind, _, rest = identity.decode("ascii", "replace").partition(":")
    vg_uuid, _, lv = rest.partition(":")
    return (vg_uuid, lv) if kind == "lvm" and vg_uuid and lv else None


def place_of(identity: bytes) -> str | None:
    """`lvm:VG/LV` for the identity of a volume in a volume group that is here, whether or not the volume is.

    Raises SourceError if LVM cannot be asked.
    """
    named = named_by(identity)
    if named is None:
        return None
    vg = next((row.vg for row in commands.report() if row.vg_uuid == named[0]), None)
    return None if vg is None else f"lvm:{vg}/{named[1]}"


def owner_in(row: LogicalVolume) -> str:
    """Whose snapshot it is, 8 hexadecimal digits; empty for what is no snapshot of ours by name and tags."""
    found = _SNAPSHOT.fullmatch(row.name)
    return found[2] if found and row.kind == "thin" and f"{TAG}:owner={found[2]}" in row.tags else ""


def volume_in(row: LogicalVolume) -> str:
    """The beginning of the name of a snapshot of ours: that of its volume, cut if it was too long."""
    found = _SNAPSHOT.fullmatch(row.name)
    return found[1] if found else row.name


def source_in(row: LogicalVolume) -> str:
    """The 16 hexadecimal digits of its source, from its tags."""
    start = f"{TAG}:source="
    return next((tag.removeprefix(start) for tag in row.tags if tag.startswith(start)), "")


def remove(row: LogicalVolume) -> None:
    """Remove a snapshot of ours. Raises SourceError."""
    commands.change("lvremove", "--force", "--yes", row.text)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The snapshots of one source (16 hexadecimal digits) and owner (8) in a volume group."""

    source: str
    owner: str

    def has(self, row: LogicalVolume) -> bool:
        """Whether it is one of them, by its name and tags."""
        return owner_in(row) == self.owner and source_in(row) == self.source

    def find(self, token: ThinToken, rows: list[LogicalVolume]) -> LogicalVolume:
        """The snapshot that a token was made of. Raises CheckpointLost unless it is there, ours, and what it was."""
        row = commands.volume_named(rows, token.name)
        if row is None:
            raise CheckpointLost("the checkpoint is gone")
        if not self.has(row):
            raise CheckpointLost(f"the checkpoint {row.name} belongs to another source or owner")
        if ThinToken.of(row) != token:
            raise CheckpointLost(f"the checkpoint {row.name} is another snapshot than the one that was kept")
        if row.writable:
            raise CheckpointLost(f"the checkpoint {row.name} has been made writable")
        return row


class ThinSource:
    """A thin volume that is snapshotted to be frozen. Remembers what it froze until the moment ends."""

    driver = DRIVER
    tracks = True

    def __init__(self, volume: LogicalVolume, keeping: Keeping) -> None:
        self._vg, self._vg_uuid, self._lv = volume.vg, volume.vg_uuid, volume.name
        self._keeping = keeping
        self.checkpoints = Checkpoints(source_name(self.identity), keeping.owner)
        """This owner's."""
        self._tags = (TAG, f"{TAG}:owner={keeping.owner}", f"{TAG}:source={self.checkpoints.source}")
        self._frozen: dict[str, LogicalVolume | None] = {}
        """Snapshots that this object makes (None yet) or reads, by name."""
        self._unkept: set[str] = set()
        """Those among them that go when they have been read: not kept, or dropped since."""

    @property
    def identity(self) -> bytes:
        """UUID of the volume group and name of the logical volume, unless the volume is known as something else."""
        return self._keeping.known_as or identity_of(self._vg_uuid, self._lv)

    @property
    def default_name(self) -> str:
        """The name of the logical volume."""
        return self._lv

    @contextmanager
    def freeze(self) -> Iterator[FrozenVolume]:
        """Make a snapshot and open it. It is removed again unless `keep` is called for it."""
        with ExitStack() as undone:
            yield self._snapshot(self._lv, undone, None)

    def clone(self, image: int, undone: ExitStack, edit: Edit) -> FrozenThin | str:
        """A snapshot of a frozen one, held by `undone`, changed by `edit` before it is read; or why there can be none.

        Raises SourceError; SourceAtRisk if the changes could endanger the pool.
        """
        rdev = os.fstat(image).st_rdev
        origin = next((row for row in self._frozen.values() if row and commands.is_device_of(row, rdev)), None)
        if origin is None:
            return "it is no moment of this volume"
        if self._external_origin(origin.name):  # which would show where a block is given back
            return "it has an external origin"
        return self._snapshot(origin.name, undone, edit)

    def _snapshot(self, origin: str, undone: ExitStack, edit: Edit | None) -> FrozenThin:
        rows = self._report()
        pool = self._pool_fit_for_a_snapshot(rows)
        name = self._next_name(rows)
        self._frozen[name] = None
        self._unkept.add(name)
        undone.callback(self._thaw, name)
        self._make(name, origin, "r" if edit is None else "rw")
        if edit is not None:
            with ExitStack() as changed:
                fd = self._opened(name, changed, os.O_RDWR)
                edit(fd, lambda: refuse_at_risk(pool, pool_status(pool), self._keeping.limits))
            commands.change("lvchange", "--permission", "r", f"{self._vg}/{name}")
        fd = self._opened(name, undone)
        external = self._external_origin(name)
        if external:
            commands.change("lvchange", "--addtag", _EXTERNAL + external, f"{self._vg}/{name}")
        rows = self._report()
        row = commands.volume_named(rows, name)
        if row is None or not commands.is_device_of(row, os.fstat(fd).st_rdev):
            raise SourceError(f"{commands.node_of(self._vg, name)} is not the snapshot that was made", obj=name)
        self._frozen[name] = row
        frozen = FrozenThin(fd, row, self, pool, rows)
        undone.callback(frozen.closed)
        return frozen

    def keep(self, checkpoint: str) -> None:
        """Let a frozen moment stay. Raises CheckpointLost if it is not there any more."""
        token = ThinToken.parse(checkpoint)
        frozen = self._frozen.get(token.name)
        # What is open cannot have been removed.
        if frozen is None or ThinToken.of(frozen) != token:
            self.checkpoints.find(token, self._report())
        self._unkept.discard(token.name)

    def drop(self, checkpoint: str) -> None:
        """Remove the snapshot with this text or name, if it is of this source and owner; never another one."""
        token: ThinToken | None = None
        with suppress(CheckpointLost):
            token = ThinToken.parse(checkpoint)
        name = checkpoint if token is None else token.name
        if not _SNAPSHOT.fullmatch(name):
            return
        row = commands.volume_named(self._report(), name)
        if row is None or not self.checkpoints.has(row) or (token is not None and token.volume != row.uuid):
            return
        if name in self._frozen:
            self._unkept.add(name)
        else:
            remove(row)

    def kept(self) -> list[str]:
        """All snapshots of this source and owner, oldest first, but those that go when they have been read."""
        rows = [row for row in self._report() if self.checkpoints.has(row) and row.name not in self._unkept]
        return [ThinToken.of(row).text for row in sorted(rows, key=lambda row: _number(row.name))]

    @contextmanager
    def kept_bytes(self, checkpoint: str) -> Iterator[OpenVolume]:
        """The bytes of a kept moment, whose device is there meanwhile. Raises CheckpointLost, SourceError."""
        row = self.checkpoints.find(ThinToken.parse(checkpoint), self._report(CheckpointLost))
        with ExitStack() as undone:
            commands.change("lvchange", "--activate", "y", "--ignoreactivationskip", row.text)
            undone.callback(commands.change, "lvchange", "--activate", "n", row.text)
            fd = self._opened(row.name, undone)
            if not commands.is_device_of(row, os.fstat(fd).st_rdev):
                raise SourceError(f"{commands.node_of(self._vg, row.name)} is not the checkpoint", obj=row.name)
            kept = OpenVolume(commands.node_of(self._vg, row.name), fd, os.lseek(fd, 0, os.SEEK_END))
            undone.callback(kept.closed)  # a mapping would keep the device in use
            yield kept

    def delta(self, base: ThinToken, now: ThinToken, pool: LogicalVolume, grain: int) -> Delta:
        """The ranges that may differ from one snapshot to another. Raises CheckpointLost."""
        if base.pool != now.pool:
            raise CheckpointLost("the checkpoint is in another pool than the volume")
        if base.external != now.external:
            raise CheckpointLost("the checkpoint has another external origin than the volume")
        thin_tools.require_thin_delta()
        with Reservations(pool, self._keeping.records).held():
            # Both exist after the reservation was made: so they did when it was, with the same numbers.
            rows = self._report(CheckpointLost)
            for token in (base, now):
                self.checkpoints.find(token, rows)
            return thin_tools.delta(metadata_device(pool), (base.thin, base.size), (now.thin, now.size), grain)

    def mapped(self, now: ThinToken, pool: LogicalVolume) -> Iterator[Extent]:
        """The ranges that a snapshot maps. Raises SourceError."""
        with Reservations(pool, self._keeping.records).held(wait_seconds=0):
            return thin_tools.mapped(metadata_device(pool), now.thin, now.size)

    def _report(self, error: type[SourceError] = SourceError) -> list[LogicalVolume]:
        try:
            return [row for row in commands.report(self._vg) if row.vg_uuid == self._vg_uuid]
        except SourceError as reason:
            raise error(reason.message, obj=self._vg) from reason

    def _pool_fit_for_a_snapshot(self, rows: list[LogicalVolume]) -> LogicalVolume:
        """The pool of the volume. Raises SourceError; SourceAtRisk if a snapshot could endanger it."""
        volume = commands.volume_named(rows, self._lv)
        if volume is None or volume.kind != "thin":
            raise SourceError(f"the thin volume {self._vg}/{self._lv} no longer exists", obj=f"{self._vg}/{self._lv}")
        pool = commands.volume_named(rows, volume.pool)
        if pool is None:
            raise SourceError(f"{volume.text} has no pool", obj=volume.text)
        refuse_at_risk(pool, pool_status(pool), self._keeping.limits)
        return pool

    def _next_name(self, rows: list[LogicalVolume]) -> str:
        ending = f"+lam{self._keeping.owner}x"
        # Whatever has such a name, ours or not: it is taken.
        taken = (_number(row.name) for row in rows if ending in row.name and _SNAPSHOT.fullmatch(row.name))
        number = 1 + max(taken, default=0)
        ending += str(number)
        start = self._lv
        while len(commands.device_name(self._vg, start + ending)) > _LONGEST_DEVICE_NAME and len(start) > 1:
            start = start[:-1]
        return start + ending

    def _make(self, name: str, origin: str, permission: str) -> None:
        options = ["--snapshot", "--permission", permission, "--setactivationskip", "y", "--ignoreactivationskip"]
        tags = [word for tag in self._tags for word in ("--addtag", tag)]
        commands.change("lvcreate", *options, "--activate", "y", *tags, "--name", name, f"{self._vg}/{origin}")

    def _opened(self, name: str, undone: ExitStack, how: int = os.O_RDONLY) -> int:
        node = commands.node_of(self._vg, name)
        try:
            fd = os.open(node, how | os.O_CLOEXEC)
        except OSError as reason:
            raise read_failed(node, reason) from reason
        undone.callback(os.close, fd)
        return fd

    def _external_origin(self, name: str) -> str:
        """The kernel's UUID of the device that an active thin volume reads unmapped blocks from; empty if none."""
        words = commands.table_of(commands.device_name(self._vg, name))
        if words[2:3] != ["thin"] or len(words) not in (5, 6):
            raise SourceError(f"the snapshot {name} has a table that nobody knows: {' '.join(words)}", obj=name)
        if len(words) == 5:
            return ""
        major, _, minor = words[5].partition(":")
        uuid = commands.kernel_uuid(os.makedev(int(major), int(minor)))
        # Without the ending of the layer, which is another one when the origin itself is active.
        return uuid[:_UUID_LENGTH] or "unknown"

    def _thaw(self, name: str) -> None:
        """Remove the snapshot, or let it be without a device if it was kept. Raises SourceError."""
        row = self._frozen.pop(name)
        if name not in self._unkept:
            commands.change("lvchange", "--activate", "n", f"{self._vg}/{name}")
            return
        if row is None:
            row = commands.volume_named(self._report(), name)
        if row is not None and self.checkpoints.has(row):
            remove(row)
        self._unkept.discard(name)


class FrozenThin(OpenVolume):
    """A thin snapshot: nobody writes to it. `pool` and `rows` are what was there when it was made."""

    def __init__(
        self, fd: int, row: LogicalVolume, source: ThinSource, pool: LogicalVolume, rows: list[LogicalVolume]
    ) -> None:
        super().__init__(commands.node_of(row.vg, row.name), fd, os.lseek(fd, 0, os.SEEK_END))
        self._token = ThinToken.of(row)
        self._source = source
        self._pool = pool
        self._rows = rows

    @property
    def checkpoint(self) -> str:
        """UUIDs and numbers of the snapshot."""
        return self._token.text

    def consistency(self) -> Consistency:
        """LIVE: one moment, of a volume that somebody may have been writing."""
        return Consistency.LIVE

    def allocated(self) -> Iterator[Extent]:
        """Yield what the snapshot maps; all of it with an external origin, or if the metadata cannot be read now."""
        if not self._token.external:
            try:
                yield from self._source.mapped(self._token, self._pool)
            except SourceError:
                pass
            else:
                return
        yield Extent(0, self._size)

    def delta_since(self, base: str, grain: int) -> Delta:
        """The ranges that differ from the checkpoint, from the metadata of the pool. Raises CheckpointLost."""
        token = ThinToken.parse(base)
        if token != self._token:
            self._source.checkpoints.find(token, self._rows)
        return self._source.delta(token, self._token, self._pool, grain)


def _number(name: str) -> int:
    return int(name.rpartition("x")[2])
