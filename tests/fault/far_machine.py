"""A server on a machine whose power goes at a chosen store call; it may come back, having lost what was not synced."""

from __future__ import annotations

import random
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TypeVar

from lamella.base.errors import StoreUnavailable
from lamella.base.trust import Clear, Sealed
from lamella.stores.base import Entry
from lamella.stores.held import Held
from lamella.stores.memory import MemoryStore
from lamella.stores.pipe.client import PipeStore
from lamella.stores.pipe.frames import Hello
from lamella.stores.pipe.guarded import GuardedStore
from lamella.stores.pipe.link import Route
from lamella.stores.pipe.server import Server
from lamella.stores.wrap.wrapper import Wrapper
from lamella_kit.crash_store import CrashPoint, CrashStore, PowerCut

T = TypeVar("T")
RELAY = Path(__file__).with_name("relay.py")


class FarMachine:
    """Serves every connection to its socket, the real server over the store. A context manager.

    `survivors` says which of so many un-synced writes survive; `returns`: there is power again at once, else never.
    """

    def __init__(
        self, place: Path, point: CrashPoint | None, survivors: Callable[[int], frozenset[int]], *, returns: bool
    ) -> None:
        self._place = place
        self._survivors = survivors
        self._returns = returns
        self._mutex = threading.Lock()
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.store = CrashStore(point=point)
        self.cuts = 0
        self.on = True
        self._server = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> FarMachine:
        self._server.bind(str(self._place))
        self._server.listen(16)
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        self._server.close()

    def client(self) -> PipeStore:
        """A store that is connected to this machine."""
        route = Route((sys.executable, "-I", "-S", str(RELAY), str(self._place)), connect_seconds=20)
        return PipeStore("pipe:far", route, Hello("/far", True, False, True))

    def disk(self) -> MemoryStore:
        """What the machine holds; without power, what survived."""
        return self.store.after_crash(range(len(self.store.unsynced)))

    def cut(self, store: CrashStore) -> None:
        """The power goes, if it was on."""
        with self._mutex:
            if store is not self.store:
                return
            left = store.after_crash(self._survivors(len(store.unsynced)))
            self.store = CrashStore(left.objects())
            self.on = self._returns
            self.cuts += 1
            connections, self._connections = self._connections, []
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with self._mutex:
                if not self.on:
                    connection.close()
                    continue
                self._connections.append(connection)
                store = self.store
            self._start(lambda connection=connection, store=store: self._serve(connection, store))  # type: ignore[misc]

    def _serve(self, connection: socket.socket, store: CrashStore) -> None:
        with connection:
            fd = connection.fileno()
            Server(fd, fd, lambda hello: GuardedStore(_Powered(self, store))).run()


class _Powered(Wrapper):
    """The store as long as there is power."""

    def __init__(self, machine: FarMachine, store: CrashStore) -> None:
        super().__init__(store)
        self._machine = machine
        self._store = store

    def _through(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except PowerCut:
            self._machine.cut(self._store)
            raise StoreUnavailable("there is no power") from None

    def put(self, name: str, content: Sealed | Clear) -> None:
        self._through(lambda: self._store.put(name, content))

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._through(lambda: self._store.get(name, offset, length))

    def stat(self, name: str) -> int:
        return self._through(lambda: self._store.stat(name))

    def list(self, prefix: str) -> Iterator[Entry]:
        return self._through(lambda: self._store.list(prefix))

    def delete(self, name: str) -> None:
        self._through(lambda: self._store.delete(name))

    def sync(self) -> None:
        self._through(self._store.sync)

    def lock(self, *, exclusive: bool, wait_seconds: float = 0.0) -> AbstractContextManager[Held | None]:
        return self._through(lambda: self._store.lock(exclusive=exclusive, wait_seconds=wait_seconds))

    def close(self) -> None:
        """The machine's store outlives its connections."""


def none(count: int) -> frozenset[int]:
    return frozenset()


def every(count: int) -> frozenset[int]:
    return frozenset(range(count))


def some(seed: str) -> Callable[[int], frozenset[int]]:
    """Half of them, by chance."""
    chance = random.Random(seed)
    return lambda count: frozenset(number for number in range(count) if chance.random() < 0.5)
