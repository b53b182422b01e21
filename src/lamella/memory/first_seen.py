"""When this host first saw what a prune must wait for."""

from __future__ import annotations

from collections.abc import Collection

from lamella.base.clock import Clock
from lamella.memory.host import HostMemory, Table


class FirstSeen:
    """When this host first saw something: the only clock that nobody else can set. A `dry` one is never written."""

    def __init__(self, memory: HostMemory, clock: Clock, *, dry: bool = False) -> None:
        self._table = Table(memory, "first_seen.json", dict[str, dict[str, int]])
        self._dry = dry
        self.now_ms = clock()
        self.rows = self._table.read()
        """By kind and name in hexadecimal digits, the time in milliseconds."""

    def age_ms(self, kind: str, name: bytes) -> int:
        """Milliseconds since the first sight, which may be now. A clock that went back starts again."""
        rows = self.rows.setdefault(kind, {})
        first = rows.setdefault(name.hex(), self.now_ms)
        if first > self.now_ms:
            rows[name.hex()] = first = self.now_ms
        return self.now_ms - first

    def younger(self, kind: str, names: Collection[bytes], age_ms: int) -> set[bytes]:
        """The names first seen less than `age_ms` ago. Forgets those not among `names`. Raises RepositoryError."""
        young = {name for name in names if self.age_ms(kind, name) < age_ms}
        wanted = {name.hex() for name in names}
        self.rows[kind] = {name: when for name, when in self.rows.get(kind, {}).items() if name in wanted}
        if not self._dry:
            self._table.change(lambda stored: {**stored, kind: self.rows[kind]})
        return young
