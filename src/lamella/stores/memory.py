"""A store in this process's memory, for tests, simulations and dry runs: the whole contract, until the process ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lamella.base.errors import Locked, ObjectNotFound, StoreError, StoreRefused
from lamella.base.trust import Clear, Sealed
from lamella.stores.base import Abilities, Entry, checked_name, checked_prefix, range_end


class ReadersWriterLock:
    """Many shared holders or one exclusive holder, between the threads of one process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shared = 0
        self._exclusive = False

    def _free_for(self, exclusive: bool) -> bool:
        return not self._exclusive and not (exclusive and self._shared)

    @contextmanager
    def held(self, *, exclusive: bool, wait_seconds: float) -> Iterator[None]:
        """Hold the lock while the context lasts. Raises Locked when not had within `wait_seconds`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._free_for(exclusive), timeout=max(0.0, wait_seconds)):
                raise Locked("the repository is locked by another operation", hint="wait until it has finished")
            if exclusive:
                self._exclusive = True
            else:
                self._shared += 1
        try:
            yield
        finally:
            with self._changed:
                if exclusive:
                    self._exclusive = False
                else:
                    self._shared -= 1
                self._changed.notify_all()


class NameLocks:
    """One lock for each name in use, so that two threads do not both find a name free."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Hold the lock of a name while the context lasts."""
        with self._mutex:
            lock, users = self._locks.get(name, (threading.Lock(), 0))
            self._locks[name] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._mutex:
                lock, users = self._locks.pop(name)
                if users > 1:
                    self._locks[name] = lock, users - 1


class MemoryStore:
    """Objects in a dictionary. `connect` gives other handles to the same objects and the same lock."""

    def __init__(self, objects: Mapping[str, bytes] | None = None) -> None:
        self._objects: dict[str, bytes] = {
            checked_name(name): bytes(content) for name, content in (objects or {}).items()
        }
        self._mutex = threading.Lock()
        self._lock = ReadersWriterLock()
        self._closed = False

    def connect(self) -> MemoryStore:
        """Return another handle to the same objects and lock, as a second process would have."""
        other = MemoryStore()
        other._objects, other._mutex, other._lock = self._objects, self._mutex, self._lock
        return other

    def objects(self) -> dict[str, bytes]:
        """Return a copy of everything stored, by name."""
        with self._mutex:
            return dict(self._objects)

    @property
    def url(self) -> str:
        """Where this store is; not a place that can be opened again."""
        return "memory:"

    @property
    def abilities(self) -> Abilities:
        """Everything: holders of the lock live and die with the process."""
        return Abilities(exclusive_lock=True, delete=True, write=True)

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store an object. Raises StoreRefused when the name holds other bytes."""
        self._checked(name)
        copy = bytes(content)
        with self._mutex:
            if self._objects.setdefault(name, copy) != copy:
                raise StoreRefused("the store holds other bytes under this name", obj=name)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes asked for. Raises ObjectNotFound; StoreError when the object ends before."""
        content = self._content(name)
        return content[offset : range_end(name, len(content), offset, length)]

    def stat(self, name: str) -> int:
        """Return the object's size in bytes. Raises ObjectNotFound."""
        return len(self._content(name))

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`, as they are at the call."""
        self._checked_open()
        checked_prefix(prefix)
        with self._mutex:
            entries = [Entry(name, len(content)) for name, content in self._objects.items() if name.startswith(prefix)]
        return iter(sorted(entries))

    def delete(self, name: str) -> None:
        """Remove an object; no error if there is none."""
        self._checked(name)
        with self._mutex:
            self._objects.pop(name, None)

    def sync(self) -> None:
        """Nothing to wait for."""
        self._checked_open()

    @contextmanager
    def lock(self, *, exclusive: bool, wait_seconds: float = 0.0) -> Iterator[None]:
        """Hold the lock shared by all handles. Raises Locked when not had within `wait_seconds`."""
        self._checked_open()
        with self._lock.held(exclusive=exclusive, wait_seconds=wait_seconds):
            yield

    def close(self) -> None:
        """Refuse further calls on this handle; the objects stay for the others."""
        self._closed = True

    def _content(self, name: str) -> bytes:
        self._checked(name)
        with self._mutex:
            content = self._objects.get(name)
        if content is None:
            raise ObjectNotFound("no such object", obj=name)
        return content

    def _checked(self, name: str) -> str:
        self._checked_open()
        return checked_name(name)

    def _checked_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed", obj=self.url)
