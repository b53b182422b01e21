"""The `zfs` driver: a volume is frozen as a snapshot and read as a clone of that; a send stream tells what changed.

A checkpoint is a bookmark `#lamella-<owner>-<16 hex>-<size in hex>`: it holds no space, and the kernel sends what
changed since. It is known again by the GUIDs of pool, volume and snapshot and by the transaction group it was made in
(docs/decisions/0055).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Final

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, SourceAtRisk, SourceError, UsageError
from lamella.base.extents import Extent
from lamella.run.spawn import stream
from lamella.sources.base import Consistency, FrozenVolume, Keeping, Source
from lamella.sources.driver import MomentToken, OpenVolume
from lamella.sources.zfs import commands
from lamella.sources.zfs.commands import ZfsMoment
from lamella.sources.zfs.stream import Expected, delta

DRIVER: Final = "zfs"

_NAME: Final = re.compile(r"lamella-([0-9a-f]{8})-[0-9a-f]{16}-([0-9a-f]{1,16})")
_SEND_SECONDS: Final = 24 * 3600.0
_LEAST_FREE: Final = 2 << 30
_HOLES: Final = Path("/sys/module/zfs/parameters/send_holes_without_birth_time")


def open_zfs(text: str, machine: str, keeping: Keeping) -> Source:
    """The volume that `zfs:POOL/VOL` names. Raises UsageError if it is none, SourceError if it is not there."""
    if not keeping.owner:
        raise UsageError(f"the {DRIVER} driver makes snapshots, and their owner is not named", obj=text)
    name = commands.parsed(text)
    kind = commands.facts(name, "type")["type"]
    if kind != "volume":
        hint = "name a volume, or back up the images in it by their paths"
        raise UsageError(f"{name} is a {kind} of ZFS, not a volume", obj=text, hint=hint)
    return ZfsSource(name, commands.pool_facts(_pool(name), "guid")["guid"], keeping)


def _pool(name: str) -> str:
    return name.partition("/")[0]


@dataclass(frozen=True, slots=True)
class ZfsToken(MomentToken):
    """The facts of a snapshot when it was made; GUIDs as decimal numbers."""

    pool: str
    volume: str
    name: str
    guid: str
    created: int
    size: int


class ZfsSource:
    """A volume that is snapshotted to be frozen. Remembers what it froze until the moment ends."""

    driver = DRIVER
    tracks = True

    def __init__(self, volume: str, pool: str, keeping: Keeping) -> None:
        self.volume = volume
        self._pool, self._keeping = pool, keeping
        self._read: set[str] = set()
        """Names of the moments that are read now: their snapshots are not leftovers."""

    @property
    def identity(self) -> bytes:
        """GUID of the pool and name in it: a volume made again under its name is the same volume."""
        inside = self.volume.partition("/")[2]
        return self._keeping.known_as or f"zfs:{self._pool}:{inside}".encode("utf-8", "surrogateescape")

    @property
    def default_name(self) -> str:
        """The last part of its name."""
        return self.volume.rpartition("/")[2]

    @contextmanager
    def freeze(self) -> Iterator[FrozenVolume]:
        """Make a snapshot and a clone to read it by; both go when it ends. `keep` makes the bookmark."""
        with ExitStack() as undone:
            guid, size = self._fit_for_a_snapshot()
            self._remove_leftovers()
            self._remove_orphans()
            name = f"lamella-{self._keeping.owner}-{token_hex(8)}-{size:x}"
            self._read.add(name)
            undone.callback(self._thaw, name)
            commands.change("snapshot", f"{self.volume}@{name}")
            fd = self._opened(name)
            undone.callback(os.close, fd)
            row = self._moment("@", name)
            if row is None or os.lseek(fd, 0, os.SEEK_END) != size:
                raise SourceError(f"{self.volume} changed its size or vanished just now", obj=self.volume)
            frozen = FrozenZfs(fd, size, self, self._token(row, guid))
            undone.callback(frozen.closed)
            yield frozen

    def keep(self, checkpoint: str) -> None:
        """Make the bookmark of a frozen moment. Raises CheckpointLost if neither is there any more."""
        token = ZfsToken.parse(checkpoint)
        if token.name in self._read and self._moment("#", token.name) is None:
            commands.change("bookmark", f"{self.volume}@{token.name}", f"{self.volume}#{token.name}")
        self.find(token)

    def drop(self, checkpoint: str) -> None:
        """Destroy the bookmark with this text, and what a kill left of its snapshot; never anything else's."""
        with suppress(CheckpointLost):
            token = ZfsToken.parse(checkpoint)
            found = [row for row in self._ours() if self._token(row, token.volume) == token]
            if found and commands.facts(self.volume, "guid")["guid"] == token.volume:
                for row in found:
                    self._remove(row)

    def kept(self) -> list[str]:
        """All moments of this volume and owner, oldest first, leftovers of a kill included."""
        guid = commands.facts(self.volume, "guid")["guid"]
        rows = [row for row in self._ours() if row.mark == "#" or row.name not in self._read]
        return list(dict.fromkeys(self._token(row, guid).text for row in rows))

    def find(self, token: ZfsToken) -> None:
        """Raise CheckpointLost unless the bookmark that a token stands for is there, ours, and what it was."""
        if not self._is_ours(token.name):
            raise CheckpointLost(f"the checkpoint {token.name} belongs to another owner")
        try:
            guid = commands.facts(self.volume, "guid")["guid"]
            row = self._moment("#", token.name)
        except SourceError as error:
            raise CheckpointLost(error.message) from error
        if row is None:
            raise CheckpointLost("the checkpoint is gone")
        if self._token(row, guid) != token:
            raise CheckpointLost(f"the checkpoint {token.name} is another one than was kept")

    def _fit_for_a_snapshot(self) -> tuple[str, int]:
        """GUID and size of the volume. Raises SourceError; SourceAtRisk if a snapshot could fill the pool."""
        found = commands.facts(self.volume, "type", "guid", "volsize", "keystatus")
        if found["type"] != "volume":
            raise SourceError(f"{self.volume} is no longer a volume", obj=self.volume)
        if found["keystatus"] == "unavailable":
            hint = f"zfs load-key {self.volume}"
            raise SourceError(f"{self.volume} is encrypted and its key is not loaded", obj=self.volume, hint=hint)
        pool = commands.pool_facts(_pool(self.volume), "guid", "size", "free", "health")
        if pool["guid"] != self._pool:
            raise SourceError(f"{self.volume} is in another pool than before", obj=self.volume)
        free, total = int(pool["free"]), int(pool["size"])
        if free < min(_LEAST_FREE, total // 20) or pool["health"] in ("FAULTED", "SUSPENDED", "UNAVAIL"):
            raise SourceAtRisk(
                f"the pool of {self.volume} is {pool['health']} with {free >> 20} MiB free",
                obj=self.volume,
                hint="free some space in the pool, or mend it",
            )
        return found["guid"], int(found["volsize"])

    def _opened(self, name: str) -> int:
        """A descriptor of a clone of a snapshot. As a bare device: the kernel looks for no partitions in it."""
        clone = self._clone(name)
        options = ["-o", "readonly=on", "-o", "volmode=dev", "-o", "snapdev=hidden"]
        commands.change("clone", *options, f"{self.volume}@{name}", clone)
        return commands.opened(clone)

    def _clone(self, name: str) -> str:
        return f"{self.volume}.{name}"

    def _token(self, row: ZfsMoment, volume: str) -> ZfsToken:
        named = _NAME.fullmatch(row.name)
        assert named is not None
        return ZfsToken(self._pool, volume, row.name, str(row.guid), row.created, int(named[2], 16))

    def _ours(self) -> list[ZfsMoment]:
        return [row for row in commands.moments(self.volume) if self._is_ours(row.name)]

    def _moment(self, mark: str, name: str) -> ZfsMoment | None:
        return next((row for row in self._ours() if (row.mark, row.name) == (mark, name)), None)

    def _is_ours(self, name: str) -> bool:
        found = _NAME.fullmatch(name)
        return found is not None and found[1] == self._keeping.owner

    def _thaw(self, name: str) -> None:
        """Remove clone and snapshot. Raises SourceError."""
        self._read.discard(name)
        if self.volume not in self._remove_orphans():
            return  # it was destroyed while it was read
        row = self._moment("@", name)
        if row is not None:
            self._remove(row)

    def _remove_leftovers(self) -> None:
        """Remove snapshots of ours whose bookmark was made: a kill left them, and they hold space."""
        rows = self._ours()
        marked = {row.guid for row in rows if row.mark == "#"}
        for row in rows:
            if row.mark == "@" and row.guid in marked and row.name not in self._read:
                self._remove(row)

    def _remove_orphans(self) -> dict[str, str]:
        """Remove clones of ours whose volume is gone; returns the volumes that were in the pool.

        Whoever destroys a volume that is read may promote the clone before, as qubesd does: then the clone has all
        snapshots of the volume, and would outlive it.
        """
        volumes = commands.volumes(_pool(self.volume))
        for clone, origin in volumes.items():
            volume, _, name = clone.rpartition(".")
            if origin == "-" and self._is_ours(name) and name not in self._read and volume not in volumes:
                with suppress(SourceError):  # another run reads it still, or somebody made a clone of his own
                    commands.change("destroy", "-r", clone)
        return volumes

    def _remove(self, row: ZfsMoment) -> None:
        if row.mark == "#":
            commands.destroy(f"{self.volume}#{row.name}")
        elif row.name not in self._read:
            clone = self._clone(row.name)
            with suppress(SourceError):  # it may not be there; the snapshot cannot go if it stays
                if commands.facts(clone, "origin")["origin"] == f"{self.volume}@{row.name}":
                    commands.destroy(clone)
            commands.destroy(f"{self.volume}@{row.name}")


class FrozenZfs(OpenVolume):
    """The clone of a snapshot: nobody writes to it."""

    def __init__(self, fd: int, size: int, source: ZfsSource, token: ZfsToken) -> None:
        super().__init__(Path(f"zfs:{source.volume}@{token.name}"), fd, size)
        self._source = source
        self._token = token

    @property
    def checkpoint(self) -> str:
        """GUIDs and transaction group of the snapshot."""
        return self._token.text

    def consistency(self) -> Consistency:
        """LIVE: one moment, of a volume that somebody may have been writing."""
        return Consistency.LIVE

    def allocated(self) -> Iterator[Extent]:
        """Yield all of it: ZFS tells holes of a volume to nobody but a full send stream."""
        if self._size:
            yield Extent(0, self._size)

    def delta_since(self, base: str, grain: int) -> Delta:
        """The ranges that the kernel would send since the bookmark; it reads what changed. Raises CheckpointLost."""
        token, now = ZfsToken.parse(base), self._token
        if token == now:
            return Delta.bounded(grain, now.size, now.size, ChunkSet(), ChunkSet())
        self._source.find(token)
        with suppress(OSError):
            if _HOLES.read_text("ascii").strip() == "0":
                raise CheckpointLost(f"this kernel leaves holes out of streams: {_HOLES.name} is 0")
        volume = self._source.volume
        # Never raw (-w): of encrypted volumes it has other blocks than those that are read.
        send = ["zfs", "send", "-c", "-i", f"#{token.name}", f"{volume}@{now.name}"]
        expected = Expected(int(token.guid), int(now.guid), token.size, now.size)
        with closing(stream(send, timeout_seconds=_SEND_SECONDS, error=CheckpointLost)) as pieces:
            return delta(pieces, expected, grain)
