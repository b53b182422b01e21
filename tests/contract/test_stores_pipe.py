"""The store behind a pipe obeys the store contract: with the agent that is sent along, and with `lamella serve`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lamella.base.trust import Clear
from lamella.stores.base import Store
from lamella.stores.pipe import bundle
from lamella.stores.pipe.client import PipeStore
from lamella.stores.pipe.frames import Hello
from lamella.stores.pipe.link import Route
from lamella.stores.wrap.retrying import RetryingStore
from lamella_kit.fault_store import FaultStore
from lamella_kit.quota_store import QuotaStore
from lamella_kit.store_contract import ReadOnlyStoreContract, StoreContract


class BehindPipe:
    """Makes stores in new directories, each behind a process of its own, and ends them all."""

    _numbers = itertools.count()

    @pytest.fixture(autouse=True)
    def _places(self, tmp_path: Path) -> Iterator[None]:
        self.below = tmp_path
        self.opened: list[PipeStore] = []
        yield
        for store in self.opened:
            store.close()

    def route(self, place: Path) -> Route:
        """A bare Python that is sent its program: no site packages, no path, no Lamella."""
        return Route((sys.executable, *bundle.ARGV[1:]), bundle.boot())

    def connect(self, place: Path, *, create: bool = False, read_only: bool = False) -> PipeStore:
        # The suite gives objects names that their bytes do not hash to.
        store = PipeStore(f"pipe:{place}", self.route(place), Hello(str(place), create, read_only, False))
        self.opened.append(store)
        return store

    def inner(self) -> PipeStore:
        return self.connect(self.below / f"store-{next(self._numbers)}", create=True)

    def locking(self, objects: Mapping[str, bytes]) -> Store:
        """A filled store even where the file system is not on the list: flock works on all we can run on."""
        return self.make_filled(objects)  # type: ignore[attr-defined,no-any-return]


class Plain(BehindPipe, StoreContract):
    def make_store(self) -> Store:
        return self.inner()


class TestAgent(Plain): ...


class TestServe(Plain):
    def route(self, place: Path) -> Route:
        return Route((sys.executable, "-m", "lamella", "serve", str(place)))


class TestEverythingAgent(Plain):
    def make_store(self) -> Store:
        return RetryingStore(QuotaStore(FaultStore(RetryingStore(self.inner())), limit_bytes=1 << 30))


class TestReadOnlyAgent(BehindPipe, ReadOnlyStoreContract):
    def make_filled(self, objects: Mapping[str, bytes]) -> Store:
        place = self.below / f"store-{next(self._numbers)}"
        store = self.connect(place, create=True)
        for name, content in objects.items():
            store.put(name, Clear(content))
        store.sync()
        return self.connect(place, read_only=True)


class TestServeReadOnly(TestReadOnlyAgent):
    """The server refuses, whatever the client asks for."""

    def make_filled(self, objects: Mapping[str, bytes]) -> Store:
        url = super().make_filled(objects).url
        place = url.partition(":")[2]
        argv = (sys.executable, "-m", "lamella", "serve", "--read-only", place)
        store = PipeStore(url, Route(argv), Hello(place, False, False, False))
        self.opened.append(store)
        return store
