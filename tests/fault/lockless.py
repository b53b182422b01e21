"""A store without a lock, whose listings may lag, and a clock that tests turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

from lamella.base.trust import Clear, Sealed
from lamella.operations.prune.needed import DAY_MS
from lamella.stores.base import Abilities, Entry
from lamella.stores.held import Held
from lamella.stores.memory import MemoryStore
from lamella_kit.crash_store import CrashStore
from lamella_kit.fault_store import FaultStore


class LocklessStore(FaultStore):
    """As an object store: nobody is ever kept out. While `shown` is set, listings show those objects only."""

    def __init__(self, memory: MemoryStore) -> None:
        super().__init__(memory)
        self.memory = memory
        self.shown: dict[str, bytes] | None = None

    @property
    def abilities(self) -> Abilities:
        """Everything but the lock."""
        return replace(super().abilities, exclusive_lock=False)

    def lag(self) -> None:
        """From now on listings show what there is now."""
        self.shown = self.memory.objects()

    def list(self, prefix: str) -> Iterator[Entry]:
        """What there is, or was."""
        if self.shown is None:
            return super().list(prefix)
        return iter([Entry(name, len(held)) for name, held in self.shown.items() if name.startswith(prefix)])

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store; own writes are always listed."""
        super().put(name, content)
        if self.shown is not None:
            self.shown[name] = bytes(content)

    def delete(self, name: str) -> None:
        """Remove."""
        super().delete(name)
        if self.shown is not None:
            self.shown.pop(name, None)

    def lock(self, *, exclusive: bool, wait_seconds: float = 0.0) -> AbstractContextManager[Held | None]:
        """Nothing is held."""
        return nullcontext(None)


@dataclass
class Turned:
    """A clock."""

    now: int = 1_800_000_000_000

    def __call__(self) -> int:
        self.now += 1000
        return self.now

    def days(self, days: float) -> None:
        """Time passes."""
        self.now += int(days * DAY_MS)


class LocklessCrash(CrashStore):
    """A store without a lock whose machine loses power."""

    @property
    def abilities(self) -> Abilities:
        """Everything but the lock."""
        return replace(super().abilities, exclusive_lock=False)

    @contextmanager
    def lock(self, *, exclusive: bool, wait_seconds: float = 0.0) -> Iterator[None]:
        """Nothing is held."""
        yield
