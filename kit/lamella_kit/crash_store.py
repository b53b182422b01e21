"""A store whose machine loses power at a chosen call, with every choice of which un-synced writes survive.

The way to use it: run an operation once to learn how many calls it makes; then, for each of `crash_points(calls)`, run
it on a fresh store until PowerCut, and for each of `surviving_subsets(len(store.unsynced))` look at what `after_crash`
returns for it.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations

from lamella.base.trust import Clear, Sealed
from lamella.stores.base import Abilities, Entry, checked_name
from lamella.stores.memory import MemoryStore

WRITING_CALLS = frozenset({"put", "delete", "sync"})
ALL_CALLS = WRITING_CALLS | {"get", "list", "stat"}


class PowerCut(BaseException):
    """The power is gone. Not an Exception: no `except Exception` may carry on."""


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """A moment: before or after the effect of the counted call number `call`, the first being 1."""

    call: int
    after_effect: bool


@dataclass(frozen=True, slots=True)
class Change:
    """A write that no sync has covered yet: an object's bytes, or None for its removal."""

    name: str
    content: bytes | None


def crash_points(calls: int) -> Iterator[CrashPoint]:
    """Yield both moments of every call of a run that makes `calls` counted calls."""
    for call in range(1, calls + 1):
        yield CrashPoint(call, after_effect=False)
        yield CrashPoint(call, after_effect=True)


def surviving_subsets(
    count: int, *, every_up_to: int = 6, random_subsets: int = 8, seed: int = 0
) -> Iterator[frozenset[int]]:
    """Yield sets of indices of un-synced writes that may survive, none of them twice.

    Every subset while `count` is at most `every_up_to`; beyond that none, all, only the last, all but the first, and up
    to `random_subsets` that depend on `count` and `seed` alone.
    """
    indices = range(count)
    if count <= every_up_to:
        for size in range(count + 1):
            yield from map(frozenset, combinations(indices, size))
        return
    chosen = [frozenset[int](), frozenset(indices), frozenset({count - 1}), frozenset(indices[1:])]
    source = random.Random(f"{seed}/{count}")
    chosen += [frozenset(i for i in indices if source.random() < 0.5) for _ in range(random_subsets)]
    yield from dict.fromkeys(chosen)


class CrashStore:
    """In-memory objects that remember which writes are durable. Without a crash point it is a plain store.

    `point` is when PowerCut is raised; from then on every call raises it, and locks are simply gone. `counted` names
    the methods that count as calls.
    """

    def __init__(
        self,
        objects: Mapping[str, bytes] | None = None,
        point: CrashPoint | None = None,
        *,
        counted: Collection[str] = WRITING_CALLS,
    ) -> None:
        self._memory = MemoryStore(objects)
        self._durable = self._memory.objects()
        self._unsynced: list[Change] = []
        self._point = point
        self._counted = frozenset(counted)
        self._calls: list[tuple[str, str]] = []
        self._off = False
        self._mutex = threading.RLock()

    @property
    def calls(self) -> int:
        """How many counted calls there have been, the one that met the crash included."""
        return len(self._calls)

    @property
    def log(self) -> tuple[tuple[str, str], ...]:
        """The counted calls in order: method, and name or prefix."""
        return tuple(self._calls)

    @property
    def unsynced(self) -> tuple[Change, ...]:
        """The writes whose survival is open, in their order."""
        return tuple(self._unsynced)

    def after_crash(self, surviving: Collection[int]) -> MemoryStore:
        """Return what the disk holds when of the un-synced writes only those with these indices survived."""
        objects = dict(self._durable)
        for index, change in enumerate(self._unsynced):
            if index not in surviving:
                continue
            if change.content is None:
                objects.pop(change.name, None)
            else:
                objects[change.name] = change.content
        return MemoryStore(objects)

    @property
    def url(self) -> str:
        """Not a place that can be opened again."""
        return "crash:"

    @property
    def abilities(self) -> Abilities:
        """Everything."""
        return self._memory.abilities

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store an object; durable after the next sync."""
        with self._counting("put", name):
            before = self._content(name)
            self._memory.put(name, content)
            if before is None:
                self._unsynced.append(Change(name, bytes(content)))

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes asked for, un-synced ones too."""
        with self._counting("get", name):
            return self._memory.get(name, offset, length)

    def stat(self, name: str) -> int:
        """Return the object's size in bytes."""
        with self._counting("stat", name):
            return self._memory.stat(name)

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`."""
        with self._counting("list", prefix):
            return self._memory.list(prefix)

    def delete(self, name: str) -> None:
        """Remove an object; durable after the next sync."""
        with self._counting("delete", name):
            before = self._content(name)
            self._memory.delete(name)
            if before is not None:
                self._unsynced.append(Change(name, None))

    def sync(self) -> None:
        """Make everything durable."""
        with self._counting("sync", ""):
            self._memory.sync()
            self._durable = self._memory.objects()
            self._unsynced.clear()

    @contextmanager
    def lock(self, *, exclusive: bool, wait_seconds: float = 0.0) -> Iterator[None]:
        """Hold the lock; it vanishes with the power."""
        self._check_power()
        with self._memory.lock(exclusive=exclusive, wait_seconds=wait_seconds):
            yield

    def close(self) -> None:
        """Refuse further calls; allowed even without power, so that clean-up on the way out does not hide the crash."""
        self._memory.close()

    @contextmanager
    def _counting(self, method: str, name: str) -> Iterator[None]:
        # The whole call is one step: the count decides where the crash falls, so two threads must not share a number.
        with self._mutex:
            self._check_power()
            here = False
            if method in self._counted:
                self._calls.append((method, name))
                here = self._point is not None and self._point.call == len(self._calls)
            if here and self._point and not self._point.after_effect:
                self._cut()
            try:
                yield
            finally:
                # Also when the call failed: its answer is what the crash takes away.
                if here:
                    self._cut()

    def _cut(self) -> None:
        self._off = True
        raise PowerCut(f"power cut at call {len(self._calls)}: {' '.join(self._calls[-1])}")

    def _check_power(self) -> None:
        if self._off:
            raise PowerCut("the power is gone")

    def _content(self, name: str) -> bytes | None:
        return self._memory.objects().get(checked_name(name))
