"""Restoring to RBD images.

A new image is made beside its name, and renamed when it was compared. An existing one is written where it lies, with
its id and its snapshots: RBD cannot exchange two images in one step. Nothing is cached on the way, so what is read back
comes from the cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

from lamella.base.errors import Locked, SourceAtRisk, SourceError, UsageError, shown_bytes
from lamella.sources.local_target import PARTIAL_SUFFIX
from lamella.sources.rbd.address import RbdAddress, parse
from lamella.sources.rbd.cluster import RbdPool, opened, translated
from lamella.sources.target import OldState, Target

_WATCHED_SECONDS: Final = 30  # Ceph: osd_client_watch_timeout
_PIECE: Final = 64 << 20


def choose_rbd(text: str, *, overwrite: bool, in_place: bool) -> Target:
    """Return the target for `rbd:POOL/IMAGE`. Raises UsageError if the image exists without consent; SourceError."""
    address = parse(text)
    with opened(address) as pool:
        there = address.image in pool.rbd.RBD().list(pool.io)
    if there and not (overwrite or in_place):
        hint = "add --overwrite, which writes into it, or choose another name"
        raise UsageError(f"{address.text} exists already", obj=text, hint=hint)
    if in_place and not there:
        raise UsageError(f"{address.text} does not exist", obj=text, hint="leave out --in-place")
    return RbdTarget(address, there=there)


class RbdTarget:
    """An image, through a connection of its own that lasts from `prepare` to `finish` or `abandon`."""

    tail_bytes = 0

    def __init__(self, address: RbdAddress, *, there: bool) -> None:
        self._address, self._there = address, there
        self._undone = ExitStack()
        self._pool: RbdPool | None = None
        self._image: Any = None
        self._name = address.image if there else address.image + PARTIAL_SUFFIX
        self._size = 0
        self.path = Path(address.text)
        self.working_path = Path(address.text.removesuffix(address.image) + self._name)
        self.old_state = OldState.LOST if there else OldState.NONE
        self.starts_zeroed = False
        self.holds = True
        self.notes: list[str] = []

    def prepare(self, size: int, needed_bytes: int) -> None:
        """Open the image, which is made if it is not there, and give it the size."""
        with ExitStack() as undone:
            pool = undone.enter_context(opened(self._address))
            new = self._name not in pool.rbd.RBD().list(pool.io)
            if pool.size_bytes and needed_bytes > pool.free_bytes:
                missing = shown_bytes(needed_bytes - pool.free_bytes)
                raise SourceAtRisk(
                    f"the cluster of {self.path} has {missing} too few for the volume",
                    obj=str(self.path),
                    hint="free some space there, or choose another cluster",
                )
            if new:
                pool.rbd.RBD().create(pool.io, self._name, size)
            self._image = undone.enter_context(pool.image(self._name, read_only=False))
            self._refuse_used()
            if self._image.size() != size:
                self._image.resize(size)
            self._pool, self._size = pool, size
            self.starts_zeroed, self.holds = new, not new
            self._undone = undone.pop_all()

    def write(self, offset: int, content: bytes | bytearray | memoryview) -> None:
        """Write all of `content`, durably."""
        view = memoryview(content).cast("B")
        self._check_range(offset, offset + len(view))
        with translated(self._address):
            self._image.write(bytes(view), offset)

    def zero(self, start: int, end: int) -> None:
        """Images have no space to keep."""
        self.punch(start, end)

    def punch(self, start: int, end: int) -> None:
        """Zeros; librbd removes objects that are zero as a whole. A discard might leave small parts as they are."""
        self._check_range(start, end)
        with translated(self._address):
            for offset in range(start, end, _PIECE):
                self._image.write_zeroes(offset, min(_PIECE, end - offset))

    def settle(self) -> None:
        """All is durable when it was written; say so."""
        with translated(self._address):
            self._image.flush()
            self._image.invalidate_cache()

    def is_direct(self, start: int, end: int) -> bool:
        """There is no cache on this side."""
        return True

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        self._check_range(offset, offset + len(buffer))
        with translated(self._address):
            content = self._image.read(offset, len(buffer)) if len(buffer) else b""
        if len(content) != len(buffer):
            raise SourceError(f"{self.working_path} ends before offset {offset + len(buffer)}", obj=str(self.path))
        buffer[:] = content

    def stored(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Everything: librbd reads what it does not store as zeros at no cost."""
        self._check_range(start, end)
        if start < end:
            yield start, end

    def finish(self) -> None:
        """Give it its name. Raises UsageError if another image took the name meanwhile."""
        pool = self._pool
        assert pool is not None
        with translated(self._address):
            self._image.flush()
            self._image.close()
            if not self._there:
                try:
                    pool.rbd.RBD().rename(pool.io, self._name, self._address.image)
                except pool.rbd.ImageExists:
                    hint = f"the restored image is {self.working_path}"
                    raise UsageError(f"{self.path} has been made meanwhile", obj=str(self.path), hint=hint) from None
        self.working_path = self.path
        self._undone.close()

    def abandon(self) -> Path:
        """Close the image, and leave it."""
        with suppress(SourceError):
            self._undone.close()
        return self.working_path

    def _refuse_used(self) -> None:
        """Raise UsageError or Locked if another client has the image open to write."""
        others = [one["addr"] for one in self._image.watchers_list()][1:]
        if others and self._there:
            hint = f"shut the guest down first; a client that was killed counts for {_WATCHED_SECONDS} s"
            raise UsageError(f"{self.path} is in use by {others[0]}", obj=str(self.path), hint=hint)
        if others:
            hint = f"a restore that was killed counts for {_WATCHED_SECONDS} s"
            raise Locked(f"another restore is writing {self.working_path}", obj=str(self.path), hint=hint)

    def _check_range(self, start: int, end: int) -> None:
        if self._pool is None:
            raise ValueError("the target is not open")
        if not 0 <= start <= end <= self._size:
            raise ValueError(f"[{start}, {end}) is not inside a volume that ends at {self._size}")
