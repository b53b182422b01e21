"""Holding the metadata of a thin pool still while it is read: the pool's one metadata snapshot, reserved and released.

A pool has one such slot. Whoever holds it is asked for by nobody, so before reserving we write down that we are about
to; what a kill leaves behind is then known for ours and given back, and what others hold is left alone
(docs/decisions/0007).
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from lamella.base.durable import make_private
from lamella.base.errors import CheckpointLost, SourceError
from lamella.sources.lvm.commands import LogicalVolume, message
from lamella.sources.lvm.pools import pool_device, pool_status

WAIT_SECONDS: Final = 30.0
"""Seconds to wait for the reservation of another program to end."""

_LOOK_AGAIN_SECONDS: Final = 0.5
_MOST_RECORD: Final = 4096


class Reservations:
    """This owner's reservations on one pool, remembered in a file that only one process works with at a time."""

    def __init__(self, pool: LogicalVolume, records: Path | None) -> None:
        self._pool = pool
        self._path = None if records is None else records / f"reserved-{pool.uuid}"

    @contextmanager
    def held(self, wait_seconds: float = WAIT_SECONDS) -> Iterator[None]:
        """Reserve the metadata snapshot, and release it on every way out.

        Raises CheckpointLost if it cannot be had: it belongs to somebody else, or the pool refuses.
        """
        with ExitStack() as stack:
            record = stack.enter_context(self._record(wait_seconds))
            self._wait_until_free(record, wait_seconds)
            record.write({"held": None})
            stack.callback(self._release, record)
            try:
                message(pool_device(self._pool), "reserve_metadata_snap")
            except SourceError as error:
                if pool_status(self._pool).held is not None:  # somebody was faster, and it is not ours to release
                    record.clear()
                raise CheckpointLost(f"the metadata of the pool cannot be reserved: {error.message}") from error
            record.write({"held": pool_status(self._pool).held})
            yield

    def stale(self) -> bool:
        """Whether a killed run of this owner left a reservation. Raises CheckpointLost if one is in use."""
        if self._path is None or not self._path.exists():
            return False
        with self._record(0.0) as record:
            return record.is_ours(pool_status(self._pool).held)

    def mend(self) -> bool:
        """Release what a killed run of this owner left; returns whether there was any. Raises like `stale`."""
        if self._path is None or not self._path.exists():
            return False
        with self._record(0.0) as record:
            if not record.is_ours(pool_status(self._pool).held):
                return False
            message(pool_device(self._pool), "release_metadata_snap")
            record.clear()
            return True

    def _wait_until_free(self, record: _Record, wait_seconds: float) -> None:
        deadline = time.monotonic() + wait_seconds
        while (held := pool_status(self._pool).held) is not None:
            if record.is_ours(held):
                message(pool_device(self._pool), "release_metadata_snap")
            elif time.monotonic() >= deadline:
                raise CheckpointLost(
                    f"another program holds the metadata snapshot of thin pool {self._pool.text}, and there is only one"
                )
            else:
                time.sleep(_LOOK_AGAIN_SECONDS)

    def _release(self, record: _Record) -> None:
        # What cannot be released now is released by the next run: the record says that it is ours.
        with suppress(SourceError):
            if record.is_ours(pool_status(self._pool).held):
                message(pool_device(self._pool), "release_metadata_snap")
            record.clear()

    @contextmanager
    def _record(self, wait_seconds: float) -> Iterator[_Record]:
        if self._path is None:
            yield _Record(-1)
            return
        try:
            make_private(self._path.parent)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as reason:
            raise CheckpointLost(f"cannot write down a reservation in {self._path}: {reason.strerror}") from reason
        try:
            _lock(fd, wait_seconds)
            yield _Record(fd)
        finally:
            os.close(fd)


class _Record:
    """The written record: nothing, or that a reservation was to be made, and which block it got."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._last: dict[str, int | None] | None = None if fd < 0 else self._read()

    def write(self, content: dict[str, int | None]) -> None:
        """Replace it, durably."""
        self._last = content
        if self._fd >= 0:
            text = json.dumps(content).encode("ascii")
            os.pwrite(self._fd, text, 0)
            os.ftruncate(self._fd, len(text))
            os.fsync(self._fd)

    def clear(self) -> None:
        """Nothing of ours is reserved."""
        self._last = None
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)

    def is_ours(self, held: int | None) -> bool:
        """Whether this reservation is the one that was written down.

        One that was to be made, and whose block was not written down any more, is taken for ours: the slot was free
        just before.
        """
        return held is not None and self._last is not None and self._last["held"] in (None, held)

    def _read(self) -> dict[str, int | None] | None:
        try:
            found = json.loads(os.pread(self._fd, _MOST_RECORD, 0))
        except (ValueError, RecursionError):
            return None
        held = found.get("held", "") if isinstance(found, dict) else ""
        return {"held": held} if held is None or type(held) is int else None


def _lock(fd: int, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise CheckpointLost("another lamella has reserved the metadata of the same pool") from None
            time.sleep(_LOOK_AGAIN_SECONDS / 10)
