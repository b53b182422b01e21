"""A frozen volume of which only so many bytes a second are read, so that the machine's own work goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from lamella.base.delta import Delta
from lamella.base.extents import Extent
from lamella.sources.base import Consistency, FrozenVolume
from lamella.stores.wrap.limited import TokenBucket


class LimitedVolume:
    """The volume inside; every read waits until its bytes may go through the bucket, which several may share."""

    def __init__(
        self, inner: FrozenVolume, bucket: TokenBucket, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._inner = inner
        self._bucket = bucket
        self._sleep = sleep

    @property
    def size(self) -> int:
        """Bytes of the volume."""
        return self._inner.size

    @property
    def checkpoint(self) -> str:
        """That of the volume inside."""
        return self._inner.checkpoint

    def consistency(self) -> Consistency:
        """That of the volume inside."""
        return self._inner.consistency()

    def allocated(self) -> Iterator[Extent]:
        """Those of the volume inside."""
        return self._inner.allocated()

    def delta_since(self, base: str, grain: int) -> Delta:
        """That of the volume inside."""
        return self._inner.delta_since(base, grain)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read, when the turn of these bytes has come."""
        seconds = self._bucket.book(len(buffer))
        if seconds > 0:
            self._sleep(seconds)
        self._inner.read_into(offset, buffer)
