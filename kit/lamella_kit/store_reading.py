"""The reading half of the store contract as a test suite, for pytest; lamella_kit.store_contract has the whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import pytest

from lamella.base.errors import Locked, ObjectNotFound, StoreError, StoreRefused
from lamella.stores.base import MAX_NAME, Entry, Store

T = TypeVar("T")

PACK = "p/ab/" + "ab" * 32
OTHER_PACK = "p/ac/" + "ac" * 32
COMMIT = "w/" + "0f" * 16 + "/" + "0" * 15 + "1-" + "cd" * 32
CONTENT = {
    "lamella": b"marker",
    "keys/0a1b2c3d": b"slot",
    PACK: bytes(range(256)) * 40,
    OTHER_PACK: b"",
    COMMIT: b"commit",
    "readme.txt": b"read me",
}
INVALID_NAMES = (
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    ".a",
    "a/.b",
    "a/../b",
    "a/..",
    "A",
    "a b",
    "a\n",
    "a\\b",
    "a:b",
    "a+b",
    "a\0",
    "\u00e4",
    "\u0661",
    "a" * (MAX_NAME + 1),
)
INVALID_PREFIXES = ("p", "/", "p//", "../", ".p/", "P/", "p/./")
THREADS = 8
WAIT_SECONDS = 60.0


def listed(store: Store, prefix: str = "") -> dict[str, int]:
    """Return names and sizes below `prefix`; fails on names that do not ascend."""
    entries = list(store.list(prefix))
    assert all(type(entry) is Entry for entry in entries)
    names = [entry.name for entry in entries]
    assert names == sorted(set(names)), "names are listed once and ascend"
    return {entry.name: entry.size for entry in entries}


def outcomes(calls: Iterable[Callable[[], T]]) -> list[T | Exception]:
    """Run the calls at once, each in a thread, and return what each returned or raised."""
    calls = list(calls)
    results: list[T | Exception] = [AssertionError("did not finish")] * len(calls)
    start = threading.Barrier(len(calls))

    def run(index: int, call: Callable[[], T]) -> None:
        start.wait(WAIT_SECONDS)
        try:
            results[index] = call()
        except Exception as error:  # noqa: BLE001 (the test judges it)
            results[index] = error

    # A suite that outsiders run cannot borrow the threads of lamella.run.pipeline, which stop at the first failure.
    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    return results


class StoreReading:
    """What holds for every store, asked of one that holds CONTENT."""

    def make_filled(self, objects: Mapping[str, bytes]) -> Store:
        """Return a new store that holds exactly these objects, durable."""
        raise NotImplementedError

    def test_says_where_it_is(self) -> None:
        store = self.make_filled(CONTENT)
        assert isinstance(store.url, str)
        assert store.url

    def test_get_returns_the_object(self) -> None:
        store = self.make_filled(CONTENT)
        for name, content in CONTENT.items():
            got = store.get(name)
            assert type(got) is bytes
            assert got == content

    def test_get_returns_exactly_the_range(self) -> None:
        store = self.make_filled(CONTENT)
        whole = CONTENT[PACK]
        size = len(whole)
        for offset, length in [(0, 1), (0, size), (1, size - 1), (size - 1, 1), (255, 513), (7, 0), (size, 0), (0, 0)]:
            assert store.get(PACK, offset, length) == whole[offset : offset + length]
        for offset in (0, 1, size - 1, size):
            assert store.get(PACK, offset) == whole[offset:]

    def test_a_range_past_the_end_is_an_error_never_fewer_bytes(self) -> None:
        store = self.make_filled(CONTENT)
        size = len(CONTENT[PACK])
        for offset, length in [(0, size + 1), (size, 1), (size - 1, 2), (size + 1, 0), (size + 1, None), (2 * size, 5)]:
            with pytest.raises(StoreError) as caught:
                store.get(PACK, offset, length)
            assert not isinstance(caught.value, ObjectNotFound)

    def test_a_negative_range_is_an_error(self) -> None:
        store = self.make_filled(CONTENT)
        for offset, length in [(-1, None), (-1, 1), (0, -1)]:
            with pytest.raises(StoreError):
                store.get(PACK, offset, length)

    def test_a_missing_object_is_not_found_and_never_empty(self) -> None:
        store = self.make_filled(CONTENT)
        for name in ("nothing", "p/ab/nothing", "nowhere/at/all", PACK + "0", PACK[:-1], "p", "p/ab", PACK + "/below"):
            with pytest.raises(ObjectNotFound) as caught:
                store.get(name)
            assert caught.value.obj == name
            with pytest.raises(ObjectNotFound):
                store.get(name, 0, 0)
            with pytest.raises(ObjectNotFound):
                store.stat(name)

    def test_stat_returns_the_size(self) -> None:
        store = self.make_filled(CONTENT)
        for name, content in CONTENT.items():
            assert store.stat(name) == len(content)

    def test_list_yields_every_object_with_its_size(self) -> None:
        assert listed(self.make_filled(CONTENT)) == {name: len(content) for name, content in CONTENT.items()}

    def test_list_keeps_to_its_prefix(self) -> None:
        store = self.make_filled(CONTENT)
        for prefix in ("p/", "p/ab/", "w/", "keys/", COMMIT.rpartition("/")[0] + "/"):
            assert listed(store, prefix) == {name: len(c) for name, c in CONTENT.items() if name.startswith(prefix)}

    def test_list_of_what_is_not_there_is_empty(self) -> None:
        store = self.make_filled(CONTENT)
        for prefix in ("q/", "p/ad/", "p/ab/x/y/", "lamella/", "ke/"):
            assert listed(store, prefix) == {}
        assert listed(self.make_filled({})) == {}

    def test_two_listings_at_once_do_not_disturb_each_other(self) -> None:
        store = self.make_filled(CONTENT)
        first, second = store.list(""), store.list("p/")
        next(first)
        assert {entry.name for entry in second} == {PACK, OTHER_PACK}
        assert len(list(first)) == len(CONTENT) - 1

    def test_a_listing_may_be_left_early(self) -> None:
        store = self.make_filled(CONTENT)
        for _ in range(50):
            next(iter(store.list("")))
        assert len(listed(store)) == len(CONTENT)

    def test_invalid_names_are_refused_when_reading(self) -> None:
        store = self.make_filled(CONTENT)
        for name in INVALID_NAMES:
            with pytest.raises(StoreRefused):
                store.get(name)
            with pytest.raises(StoreRefused):
                store.stat(name)
        for prefix in INVALID_PREFIXES:
            with pytest.raises(StoreRefused):
                list(store.list(prefix))

    def test_many_threads_may_read(self) -> None:
        store = self.make_filled(CONTENT)
        assert outcomes([lambda: store.get(PACK)] * THREADS) == [CONTENT[PACK]] * THREADS

    def test_sync_is_always_allowed(self) -> None:
        self.make_filled(CONTENT).sync()

    def test_shared_locks_go_together(self) -> None:
        store = self.locking(CONTENT)
        with store.lock(exclusive=False), store.lock(exclusive=False):
            assert store.get("lamella") == b"marker"

    def test_an_exclusive_lock_excludes_both_kinds(self) -> None:
        store = self.locking(CONTENT)
        with store.lock(exclusive=True):
            self.assert_locked(store, exclusive=True)
            self.assert_locked(store, exclusive=False)

    def test_a_shared_lock_excludes_the_exclusive_one(self) -> None:
        store = self.locking(CONTENT)
        with store.lock(exclusive=False), store.lock(exclusive=False):
            self.assert_locked(store, exclusive=True)
        with store.lock(exclusive=True):
            pass

    def test_a_refused_lock_leaves_nothing_behind(self) -> None:
        store = self.locking(CONTENT)
        with store.lock(exclusive=False):
            self.assert_locked(store, exclusive=True)
            with store.lock(exclusive=False):
                pass
        with store.lock(exclusive=True):
            pass

    def test_a_lock_ends_with_its_context_also_by_an_error(self) -> None:
        store = self.locking(CONTENT)
        for exclusive in (True, False):
            with pytest.raises(RuntimeError, match="inside"), store.lock(exclusive=exclusive):
                raise RuntimeError("inside")
            with store.lock(exclusive=True):
                pass

    def test_the_lock_before_there_is_a_marker(self) -> None:
        store = self.locking({})
        with store.lock(exclusive=False), store.lock(exclusive=False):
            self.assert_locked(store, exclusive=True)
        with store.lock(exclusive=True):
            self.assert_locked(store, exclusive=False)

    def test_a_waiting_lock_is_had_when_the_holder_lets_go(self) -> None:
        store = self.locking(CONTENT)
        held, refused = threading.Event(), threading.Event()

        def hold() -> str:
            with store.lock(exclusive=True):
                held.set()
                refused.wait(WAIT_SECONDS)
            return "released"

        def wait() -> str:
            held.wait(WAIT_SECONDS)
            self.assert_locked(store, exclusive=False)
            refused.set()
            with store.lock(exclusive=False, wait_seconds=WAIT_SECONDS):
                return "had"

        assert outcomes([hold, wait]) == ["released", "had"]

    def test_a_lock_not_had_in_time_is_locked(self) -> None:
        store = self.locking(CONTENT)
        with store.lock(exclusive=True):
            self.assert_locked(store, exclusive=True, wait_seconds=0.01)

    def test_a_closed_store_is_unusable(self) -> None:
        store = self.make_filled(CONTENT)
        store.close()
        with pytest.raises(StoreError):
            store.get(PACK)
        with pytest.raises(StoreError):
            list(store.list(""))

    def locking(self, objects: Mapping[str, bytes]) -> Store:
        """Return a filled store whose lock can be relied on, or skip the test."""
        store = self.make_filled(objects)
        if not store.abilities.exclusive_lock:
            pytest.skip("this store promises no lock")
        return store

    @staticmethod
    def assert_locked(store: Store, *, exclusive: bool, wait_seconds: float = 0.0) -> None:
        """Fail unless the lock is refused with Locked and a hint."""
        with pytest.raises(Locked) as caught, store.lock(exclusive=exclusive, wait_seconds=wait_seconds):
            pytest.fail("the lock was given twice")
        assert caught.value.hint
