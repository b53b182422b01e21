"""A volume in memory whose changes are tracked, with faults that can be switched on: lies, losses, refusals, kills.

`TrackedDisk` is what outlives a process: the content and the checkpoints. `TrackedSource` is the disk as one process
sees it. After a kill every call raises Killed until `revive`, and what the process had not undone stays.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, SourceError
from lamella.base.extents import Extent
from lamella.sources.base import Consistency, FrozenVolume

_BLOCK = 1 << 16


class Killed(BaseException):
    """The process is gone. Not an Exception: no `except Exception` may carry on."""


@dataclass(slots=True)
class Faults:
    """What is wrong with the driver. Shares are from 0 to 1."""

    hidden: float = 0.0
    """Share of the changed chunks that no delta names."""
    false_zeros: float = 0.0
    """Share of the changed chunks with data that are reported as zero."""
    always_zero: frozenset[int] = frozenset()
    """Chunks that every delta reports as zero, changed or not."""
    lost: bool = False
    """Whether every checkpoint is taken for lost."""
    refused: frozenset[str] = frozenset()
    """Methods that raise SourceError: freeze, keep, drop, kept, delta_since, read_into."""
    kill_at: int = 0
    """Number of the call at which Killed is raised, counted from 1 since `revive`; 0 for never."""
    kill_after: bool = False
    """Whether that call has its effect first."""


@dataclass(slots=True)
class TrackedDisk:
    """A volume called `name`. `content` may be changed at will between runs."""

    name: str
    content: bytearray
    faults: Faults = field(default_factory=Faults)
    moments: dict[str, bytes] = field(default_factory=dict)
    """Every moment that exists, by its checkpoint, leftovers of kills included."""
    concealed: set[int] = field(default_factory=set)
    """The chunks that some delta should have named and did not, or called zero falsely."""
    calls: int = 0
    """How many calls there were since `revive`."""
    log: Counter[str] = field(default_factory=Counter)
    """All calls ever, by method."""
    randomness: Random = field(default_factory=lambda: Random(0))
    dead: bool = False
    _made: int = 0
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def source(self) -> TrackedSource:
        """The disk for a new process."""
        return TrackedSource(self)

    def revive(self) -> None:
        """Count calls from the start, without a kill to come."""
        self.dead, self.calls, self.faults.kill_at = False, 0, 0

    def new_moment(self) -> str:
        """Make a moment of the present content; no two in the life of the disk have the same text."""
        self._made += 1
        checkpoint = f"{self.name}#{self._made}"
        self.moments[checkpoint] = bytes(self.content)
        return checkpoint

    @contextmanager
    def counted(self, method: str) -> Iterator[None]:
        """One call of a driver's method, with what the faults do to it. Raises Killed, SourceError."""
        with self._mutex:
            if self.dead:
                raise Killed(f"{method} by a dead process")
            self.calls += 1
            self.log[method] += 1
            here = self.calls == self.faults.kill_at
            self.dead = here and not self.faults.kill_after
        if self.dead:
            raise Killed(f"killed before {method}")
        if method in self.faults.refused:
            raise SourceError(f"{method} is refused", obj=self.name)
        yield
        if here:
            self.dead = True
            raise Killed(f"killed after {method}")

    def delta(self, old: bytes, new: bytes, grain: int) -> Delta:
        """What a driver with these faults says of two contents."""
        changed, zeroed = ChunkSet(), ChunkSet()
        false = set()
        for chunk in range(-(-len(new) // grain)):
            now = new[chunk * grain : (chunk + 1) * grain]
            if chunk in self.faults.always_zero:
                zeroed.add(chunk, chunk + 1)
                false |= {chunk} if _has_data(now) else set()
            elif now != old[chunk * grain : (chunk + 1) * grain] and self._told(chunk, now, changed, zeroed):
                false.add(chunk)
        delta = Delta.bounded(grain, len(old), len(new), changed, zeroed)
        self.concealed |= {chunk for chunk in false if chunk not in delta.changed}
        return delta

    def _told(self, chunk: int, now: bytes, changed: ChunkSet, zeroed: ChunkSet) -> bool:
        """Put a chunk that changed where the driver puts it; returns whether that is a lie."""
        chance = self.randomness.random()
        if chance < self.faults.hidden:
            return True
        data = _has_data(now)
        lie = data and chance < self.faults.hidden + self.faults.false_zeros
        (zeroed if lie or not data else changed).add(chunk, chunk + 1)
        return lie


class TrackedSource:
    """A disk as one process sees it; remembers which of its moments are not kept yet."""

    def __init__(self, disk: TrackedDisk) -> None:
        self._disk = disk
        self._unkept: set[str] = set()

    driver = "tracked"
    tracks = True

    @property
    def identity(self) -> bytes:
        """Follows from the name."""
        return b"tracked:" + self._disk.name.encode("utf-8")

    @property
    def default_name(self) -> str:
        """The name."""
        return self._disk.name

    @contextmanager
    def freeze(self) -> Iterator[FrozenVolume]:
        """The content as it is now; a process that dies inside leaves the moment behind."""
        checkpoint = ""
        try:
            with self._disk.counted("freeze"):
                checkpoint = self._disk.new_moment()
                self._unkept.add(checkpoint)
            yield _Moment(self._disk, checkpoint)
        finally:
            if checkpoint in self._unkept and not self._disk.dead:
                with self._disk.counted("thaw"):
                    self._disk.moments.pop(checkpoint, None)
                    self._unkept.discard(checkpoint)

    def keep(self, checkpoint: str) -> None:
        """Let a moment stay. Raises CheckpointLost if it does not exist."""
        with self._disk.counted("keep"):
            if checkpoint not in self._disk.moments:
                raise CheckpointLost("the moment is gone", obj=self._disk.name)
            self._unkept.discard(checkpoint)

    def drop(self, checkpoint: str) -> None:
        """Remove a moment."""
        with self._disk.counted("drop"):
            self._disk.moments.pop(checkpoint, None)

    @contextmanager
    def kept_bytes(self, checkpoint: str) -> Iterator[FrozenVolume]:
        """The bytes of a moment. Raises CheckpointLost if it does not exist."""
        with self._disk.counted("kept_bytes"):
            if checkpoint not in self._disk.moments:
                raise CheckpointLost("the moment is gone", obj=self._disk.name)
        yield _Moment(self._disk, checkpoint)

    def kept(self) -> list[str]:
        """All moments but those this process has frozen and not kept."""
        with self._disk.counted("kept"):
            return [checkpoint for checkpoint in self._disk.moments if checkpoint not in self._unkept]


class _Moment:
    """A frozen disk."""

    def __init__(self, disk: TrackedDisk, checkpoint: str) -> None:
        self._disk = disk
        self._content = disk.moments[checkpoint]
        self.checkpoint = checkpoint

    @property
    def size(self) -> int:
        return len(self._content)

    def consistency(self) -> Consistency:
        with self._disk.counted("consistency"):
            return Consistency.LIVE

    def allocated(self) -> Iterator[Extent]:
        """Blocks of 64 KiB with anything in them but zeros."""
        with self._disk.counted("allocated"):
            pass
        for start in range(0, len(self._content), _BLOCK):
            end = min(start + _BLOCK, len(self._content))
            if _has_data(self._content[start:end]):
                yield Extent(start, end)

    def delta_since(self, base: str, grain: int) -> Delta:
        with self._disk.counted("delta_since"):
            old = self._disk.moments.get(base)
            if old is None or self._disk.faults.lost:
                raise CheckpointLost("the moment is gone", obj=self._disk.name)
            return self._disk.delta(old, self._content, grain)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._disk.counted("read_into"):
            if offset < 0 or offset + len(buffer) > len(self._content):
                raise SourceError("read past the end of a tracked disk", obj=self._disk.name)
            buffer[:] = self._content[offset : offset + len(buffer)]


def _has_data(piece: bytes) -> bool:
    return piece != bytes(len(piece))
