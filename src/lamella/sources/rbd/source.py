"""The `rbd` driver: an image of Ceph is frozen as a snapshot; the cluster tells which objects differ between two.

A checkpoint is a snapshot `lamella-<owner>-<16 hex>` of the image itself. It is known again by the cluster, pool and
image it belongs to, its random name, its number in the pool, its size and what part of a parent shows through it
(docs/decisions/0056).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Final

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, SourceError, SpacePinned, UsageError
from lamella.base.extents import Extent
from lamella.sources.base import Consistency, FrozenVolume, Keeping, Source
from lamella.sources.driver import MomentToken
from lamella.sources.rbd.address import PREFIX, RbdAddress, parse
from lamella.sources.rbd.cluster import RbdPool, opened, translated

DRIVER: Final = "rbd"

_SNAPSHOT: Final = re.compile(r"lamella-([0-9a-f]{8})-[0-9a-f]{16}")
_OF_USERS: Final = 0  # librbd.h: RBD_SNAP_NAMESPACE_TYPE_USER
_LEAST_FREE: Final = 2 << 30


def open_rbd(text: str, machine: str, keeping: Keeping) -> Source:
    """The image at an address. Raises UsageError, SourceError if it is not there or Ceph cannot be asked."""
    if not keeping.owner:
        raise UsageError(f"the {DRIVER} driver makes snapshots, and their owner is not named", obj=text)
    address = parse(text)
    with opened(address) as pool, pool.image(address.image) as image:
        return RbdSource(address, pool.fsid, _identity(pool, address, image.id()), image.id(), keeping)


def _identity(pool: RbdPool, address: RbdAddress, image: str) -> bytes:
    """`rbd:FSID:POOL ID:IMAGE ID`, with the namespace behind the pool; ids of images are never given twice."""
    namespace = f"/{address.namespace}" if address.namespace else ""
    return f"{PREFIX}{pool.fsid}:{pool.number}{namespace}:{image}".encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class RbdToken(MomentToken):
    """The facts of a snapshot when it was made."""

    image: str
    """Cluster, pool, namespace and image, as in the identity."""
    name: str
    number: int
    size: int
    parent: str
    """The snapshot that a clone shows where it holds nothing itself, and up to which byte; empty for no clone."""


class RbdSource:
    """An image that is snapshotted to be frozen. Remembers what it froze until the moment ends."""

    driver = DRIVER
    tracks = True

    def __init__(self, address: RbdAddress, fsid: str, place: bytes, image: str, keeping: Keeping) -> None:
        self.address, self.image = address, image
        self._fsid, self._place, self._keeping = fsid, place, keeping
        self._unkept: set[str] = set()
        """Snapshots that are read and go when they have been: not kept, or dropped since."""
        self._read: set[str] = set()

    @property
    def identity(self) -> bytes:
        """Cluster, pool and image by their numbers, unless the volume is known as something else."""
        return self._keeping.known_as or self._place

    @property
    def default_name(self) -> str:
        """The name of the image."""
        return self.address.image

    @contextmanager
    def freeze(self) -> Iterator[FrozenVolume]:
        """Make a snapshot and open it. It is removed again unless `keep` is called for it."""
        with self._opened() as pool, ExitStack() as undone:
            _refuse_at_risk(pool, self.address)
            name = f"lamella-{self._keeping.owner}-{token_hex(8)}"
            self._read.add(name)
            self._unkept.add(name)
            undone.callback(self._thaw, pool, name)
            with pool.image(self.address.image, read_only=False) as head:
                if head.id() != self.image:
                    raise SourceError(f"{self.address.text} is no longer the same image", obj=self.address.text)
                head.create_snap(name)
            image = undone.enter_context(pool.image(id=self.image, snapshot=name))
            frozen = FrozenRbd(self, image, self._token(pool, image, name))
            undone.callback(frozen.closed)
            yield frozen

    def keep(self, checkpoint: str) -> None:
        """Let a frozen moment stay. Raises CheckpointLost if it is not there any more."""
        token = RbdToken.parse(checkpoint)
        with self._opened() as pool:
            self.find(pool, token)
        self._unkept.discard(token.name)

    def drop(self, checkpoint: str) -> None:
        """Remove the snapshot with this text, if it is of this image and owner; never another one."""
        with suppress(CheckpointLost):
            token = RbdToken.parse(checkpoint)
            with self._opened() as pool:
                self.find(pool, token)
                if token.name in self._read:
                    self._unkept.add(token.name)
                else:
                    self._remove(pool, token.name)

    def kept(self) -> list[str]:
        """All snapshots of this image and owner, oldest first, but those that go when they have been read."""
        with self._opened() as pool:
            with pool.image(id=self.image) as head:
                names = [one["name"] for one in _snapshots(head) if self._is_ours(one["name"])]
            found = []
            for name in names:
                if name not in self._unkept:
                    with pool.image(id=self.image, snapshot=name) as image:
                        found.append(self._token(pool, image, name).text)
            return found

    def find(self, pool: RbdPool, token: RbdToken) -> None:
        """Raise CheckpointLost unless the snapshot that a token was made of is there, ours, and what it was."""
        if token.image != self._place.decode("utf-8", "surrogateescape") or not self._is_ours(token.name):
            raise CheckpointLost(f"the checkpoint {token.name} belongs to another image or owner")
        with translated(self.address, CheckpointLost):
            with pool.image(id=self.image) as head:
                if all(one["name"] != token.name for one in _snapshots(head)):
                    raise CheckpointLost("the checkpoint is gone")
            with pool.image(id=self.image, snapshot=token.name) as image:
                if self._token(pool, image, token.name) != token:
                    raise CheckpointLost(f"the checkpoint {token.name} is another snapshot than the one that was kept")

    @contextmanager
    def opened(self) -> Iterator[RbdPool]:
        """A connection of its own. Raises SourceError."""
        with self._opened() as pool:
            yield pool

    @contextmanager
    def _opened(self) -> Iterator[RbdPool]:
        with opened(self.address) as pool:
            if pool.fsid != self._fsid:
                raise SourceError(f"{self.address.text} is in another cluster than before", obj=self.address.text)
            yield pool

    def _token(self, pool: RbdPool, image: Any, name: str) -> RbdToken:  # noqa: ANN401 - the bindings have no types
        number = next(one["id"] for one in _snapshots(image) if one["name"] == name)
        place = self._place.decode("utf-8", "surrogateescape")
        return RbdToken(place, name, number, image.size(), _parent(pool, image))

    def _is_ours(self, name: str) -> bool:
        found = _SNAPSHOT.fullmatch(name)
        return found is not None and found[1] == self._keeping.owner

    def _thaw(self, pool: RbdPool, name: str) -> None:
        """Remove the snapshot unless it was kept. Raises SourceError."""
        self._read.discard(name)
        if name in self._unkept:
            with translated(self.address):
                self._remove(pool, name)
            self._unkept.discard(name)

    def _remove(self, pool: RbdPool, name: str) -> None:
        with suppress(pool.rbd.ImageNotFound), pool.image(id=self.image, read_only=False) as head:
            head.remove_snap(name)


class FrozenRbd:
    """A snapshot of an image. Its reads may come from several threads."""

    def __init__(self, source: RbdSource, image: Any, token: RbdToken) -> None:  # noqa: ANN401
        self._source = source
        self._image = image
        self._token = token
        self._group = image.stripe_count() * (1 << image.stat()["order"])

    @property
    def size(self) -> int:
        """Bytes of the image at the moment of the snapshot."""
        return self._token.size

    @property
    def checkpoint(self) -> str:
        """The snapshot's facts now."""
        return self._token.text

    def consistency(self) -> Consistency:
        """LIVE: one moment, of an image that somebody may have been writing."""
        return Consistency.LIVE

    def closed(self) -> None:
        """Forget the image: a late read must fail."""
        self._image = None

    def allocated(self) -> Iterator[Extent]:
        """Yield the objects that there are; all of it for a clone, which shows its parent elsewhere."""
        if self._token.parent:
            yield Extent(0, self.size)
            return
        with translated(self._source.address):
            runs = self._differing(None, self._group).runs()
        for first, end in runs:
            yield Extent(first * self._group, min(end * self._group, self.size))

    def delta_since(self, base: str, grain: int) -> Delta:
        """Objects that differ from the checkpoint, as a whole. Raises CheckpointLost.

        No less than whole objects is believed, nor that one is gone: after a rollback the parts of objects that librbd
        names, and what it says of them, are wrong (docs/decisions/0056).
        """
        token = RbdToken.parse(base)
        with self._source.opened() as pool:
            self._source.find(pool, token)
        if token.parent != self._token.parent:
            raise CheckpointLost("the image shows another part of its parent than it did")
        with translated(self._source.address, CheckpointLost):
            changed = self._differing(token.name, grain)
        return Delta.bounded(grain, token.size, self.size, changed, ChunkSet())

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`. Raises SourceError."""
        text, image = self._source.address.text, self._image
        if image is None or offset < 0 or offset + len(buffer) > self.size:
            raise SourceError(f"{text}: nothing to read beyond its end", obj=text)
        with translated(self._source.address):
            content = image.read(offset, len(buffer)) if len(buffer) else b""
        if len(content) != len(buffer):
            raise SourceError(f"{text} gave {len(content)} of {len(buffer)} bytes at offset {offset}", obj=text)
        buffer[:] = content

    def _differing(self, since: str | None, grain: int) -> ChunkSet:
        """Chunks of `grain` bytes in any group of objects that differs from a snapshot, or that exists."""
        found, group = ChunkSet(), self._group

        def add(offset: int, length: int, exists: bool) -> None:
            end = min(-(-(offset + length) // group) * group, self.size)
            found.add(offset // group * group // grain, -(-end // grain))

        if self.size:
            # By the snapshots of each object. The object map (whole_object) loses what was changed before a rollback.
            self._image.diff_iterate(0, self.size, since, add, include_parent=True, whole_object=False)
        return found


def _snapshots(image: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """Those that users make, oldest first."""
    found = [one for one in image.list_snaps() if one.get("namespace", _OF_USERS) == _OF_USERS]
    return sorted(found, key=lambda one: int(one["id"]))


def _parent(pool: RbdPool, image: Any) -> str:  # noqa: ANN401
    try:
        spec = image.get_parent_image_spec()
    except pool.rbd.ImageNotFound:
        return ""
    names = (spec["pool_name"], spec["pool_namespace"], image.parent_id(), spec["snap_name"])
    return f"{'/'.join(names)}:{image.overlap()}"


def _refuse_at_risk(pool: RbdPool, address: RbdAddress) -> None:
    """Raises SourceAtRisk if a snapshot could fill the cluster: then every machine on it stands still."""
    if pool.size_bytes and pool.free_bytes < min(_LEAST_FREE, pool.size_bytes // 20):
        raise SpacePinned(
            f"the cluster of {address.text} has only {pool.free_bytes >> 20} MiB left",
            obj=address.text,
            hint="free some space or add an OSD: a snapshot needs room for what is written meanwhile",
        )
