"""Every store and every wrapper obeys the store contract."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lamella.base.errors import StoreUnavailable
from lamella.base.trust import Clear, Sealed
from lamella.stores.base import Store
from lamella.stores.local.root import Root
from lamella.stores.local.store import LocalStore
from lamella.stores.memory import MemoryStore
from lamella.stores.url import open_store
from lamella.stores.wrap.limited import LimitedStore, TokenBucket
from lamella.stores.wrap.patience import Backoff
from lamella.stores.wrap.retrying import RetryingStore
from lamella_kit.crash_store import CrashStore
from lamella_kit.fault_store import FaultStore, Method
from lamella_kit.quota_store import QuotaStore
from lamella_kit.store_contract import ReadOnlyStoreContract, StoreContract
from lamella_kit.store_reading import THREADS, WAIT_SECONDS, outcomes


class InMemory:
    """Makes stores in memory."""

    def inner(self) -> Store:
        return MemoryStore()


class InDirectory:
    """Makes stores in new directories, and asks more of their locks than they promise on every file system."""

    _numbers = itertools.count()

    @pytest.fixture(autouse=True)
    def _below(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Stores are made below a directory of the test, and closed when it ends."""
        self.place = tmp_path
        opened: list[Root] = []
        init = Root.__init__

        def remembering(root: Root, path: Path, descriptor: int) -> None:
            init(root, path, descriptor)
            opened.append(root)

        monkeypatch.setattr(Root, "__init__", remembering)
        yield
        for root in opened:
            root.close()

    def inner(self) -> Store:
        return LocalStore.open(self.place / f"store-{next(self._numbers)}", create=True)

    def locking(self, objects: Mapping[str, bytes]) -> Store:
        """Return a filled store even where the file system is not on the list: flock works on all we can run on."""
        return self.make_filled(objects)  # type: ignore[attr-defined,no-any-return]


class Plain(StoreContract):
    def inner(self) -> Store:
        raise NotImplementedError

    def make_store(self) -> Store:
        return self.inner()


class Retrying(Plain):
    def make_store(self) -> Store:
        return RetryingStore(self.inner(), sleep=_must_not_sleep)


class Flaky(Plain):
    """Every call to the store inside fails at first, or succeeds and loses its reply; the retrying store hides it."""

    def make_store(self) -> Store:
        faults = FaultStore(self.inner())
        methods: tuple[Method, ...] = ("put", "get", "stat", "delete", "sync")
        for method in methods:
            for number in range(400):
                error = StoreUnavailable("once")
                after = min(number, 1)
                if method in {"put", "delete", "sync"} and number % 2:
                    faults.lose_reply(method, error, after=after)
                else:
                    faults.fail(method, error, after=after)
        for number in range(400):
            faults.break_listing(StoreUnavailable("once"), listed=number % 3, after=min(number, 1))
        return RetryingStore(faults, Backoff(attempts=100, first_seconds=0), sleep=_no_sleep)


class Faultless(Plain):
    def make_store(self) -> Store:
        return FaultStore(self.inner())


class Roomy(Plain):
    def make_store(self) -> Store:
        return QuotaStore(self.inner(), limit_bytes=1 << 30)


class Limited(Plain):
    """Limited so far that nearly every call waits, on a clock that the waiting moves."""

    def make_store(self) -> Store:
        return limited(self.inner())


def limited(inner: Store) -> Store:
    """A limited store that never really waits."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        assert seconds > 0
        now[0] += seconds

    return LimitedStore(inner, TokenBucket(1000, lambda: now[0]), sleep=sleep)


class Everything(Plain):
    """All wrappers around each other."""

    def make_store(self) -> Store:
        return RetryingStore(QuotaStore(FaultStore(limited(RetryingStore(self.inner()))), limit_bytes=1 << 30))


def _filled(store: Store, objects: Mapping[str, bytes]) -> Store:
    for name, content in objects.items():
        store.put(name, Clear(content))
    store.sync()
    return store


def _must_not_sleep(seconds: float) -> None:
    raise AssertionError(f"slept {seconds} seconds without a fault")


def _no_sleep(seconds: float) -> None:
    assert seconds >= 0


class TestMemory(InMemory, Plain): ...


class TestLimitedMemory(InMemory, Limited): ...


class TestLimitedLocal(InDirectory, Limited): ...


class TestRetryingMemory(InMemory, Retrying): ...


class TestFlakyMemory(InMemory, Flaky): ...


class TestFaultMemory(InMemory, Faultless): ...


class TestQuotaMemory(InMemory, Roomy): ...


class TestEverythingMemory(InMemory, Everything): ...


class TestCrash(StoreContract):
    def make_store(self) -> Store:
        return CrashStore()


class TestConnectedMemory(StoreContract):
    """A second handle is as good as the first."""

    def make_store(self) -> Store:
        return MemoryStore().connect()


class TestLocal(InDirectory, Plain): ...


class TestRetryingLocal(InDirectory, Retrying): ...


class TestFlakyLocal(InDirectory, Flaky): ...


class TestFaultLocal(InDirectory, Faultless): ...


class TestQuotaLocal(InDirectory, Roomy): ...


class TestEverythingLocal(InDirectory, Everything): ...


class TestLocalByUrl(InDirectory, Plain):
    def make_store(self) -> Store:
        return open_store(f"file:{self.place / f'store-{next(self._numbers)}'}", create=True)


class TestLocalOpenedReadOnly(InDirectory, ReadOnlyStoreContract):
    def make_filled(self, objects: Mapping[str, bytes]) -> Store:
        store = _filled(self.inner(), objects)
        return LocalStore.open(store.url, read_only=True)


class TestLocalWithoutHardLinks(InDirectory, Plain):
    """As on FAT: only `link` is replaced, all else is the real file system."""

    @pytest.fixture(autouse=True)
    def _no_hard_links(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def link(*_: Any, **__: Any) -> None:  # noqa: ANN401 (any call of os.link)
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", link)

    def test_threads_that_rename_at_once_do_not_replace_each_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        store = self.make_store()
        gate = threading.Barrier(THREADS)

        def link(*_: Any, **__: Any) -> None:  # noqa: ANN401 (any call of os.link)
            gate.wait(WAIT_SECONDS)
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", link)
        for name in (f"p/{number}" for number in range(50)):
            results = outcomes([partial(store.put, name, Sealed(bytes([thread]))) for thread in range(THREADS)])
            winners = [thread for thread, result in enumerate(results) if result is None]
            assert len(winners) == 1
            assert store.get(name) == bytes(winners)
