"""The store contract as a test suite, for pytest: what every store and every wrapper must do (lamella.stores.base).

Subclass `StoreContract` for a store that writes and give it `make_store`; subclass `ReadOnlyStoreContract` for one that
only reads and give it `make_filled`. Each test method asks for stores of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest

from lamella.base.errors import ObjectNotFound, StoreRefused
from lamella.base.trust import Clear, Sealed
from lamella.stores.base import MAX_NAME, Store
from lamella_kit.store_reading import (
    CONTENT,
    INVALID_NAMES,
    OTHER_PACK,
    PACK,
    THREADS,
    StoreReading,
    listed,
    outcomes,
)

VALID_NAMES = (
    "a",
    "0",
    "-",
    "_x",
    "a.b",
    "a..",
    "a/b",
    "x/y/z-1_2.3",
    "a" * MAX_NAME,
    "/".join("d" * 64) + "/" + "e" * 64,
)


class ReadOnlyStoreContract(StoreReading):
    """The contract of a store that only reads; give it `make_filled`."""

    def test_says_that_it_does_not_write(self) -> None:
        abilities = self.make_filled({}).abilities
        assert not abilities.write
        assert not abilities.delete

    def test_writing_is_refused_and_changes_nothing(self) -> None:
        store = self.make_filled(CONTENT)
        for name, content in [("new", b"x"), (PACK, CONTENT[PACK]), (PACK, b"other"), ("A", b"invalid")]:
            with pytest.raises(StoreRefused):
                store.put(name, Sealed(content))
        for name in (PACK, "nothing", "../a"):
            with pytest.raises(StoreRefused):
                store.delete(name)
        assert listed(store) == {name: len(content) for name, content in CONTENT.items()}
        assert store.get(PACK) == CONTENT[PACK]


class StoreContract(StoreReading):
    """The whole contract; give it `make_store`."""

    def make_store(self) -> Store:
        """Return a new, empty store that may be written."""
        raise NotImplementedError

    def make_filled(self, objects: Mapping[str, bytes]) -> Store:
        """Fill a new store through its own `put`."""
        store = self.make_store()
        for name, content in objects.items():
            store.put(name, Clear(content))
        store.sync()
        return store

    def test_says_that_it_writes(self) -> None:
        abilities = self.make_store().abilities
        assert abilities.write
        assert abilities.delete

    def test_every_valid_name_holds_an_object(self) -> None:
        for name in VALID_NAMES:
            store = self.make_store()
            store.put(name, Sealed(name.encode()))
            store.sync()
            assert store.get(name) == name.encode()
            assert store.stat(name) == len(name)
            assert listed(store) == {name: len(name)}
            store.delete(name)
            assert listed(store) == {}

    def test_invalid_names_are_refused_when_writing(self) -> None:
        store = self.make_store()
        for name in INVALID_NAMES:
            with pytest.raises(StoreRefused):
                store.put(name, Sealed(b"x"))
            with pytest.raises(StoreRefused):
                store.delete(name)
        assert listed(store) == {}

    def test_equal_bytes_under_a_taken_name_are_success(self) -> None:
        store = self.make_filled(CONTENT)
        for name, content in CONTENT.items():
            store.put(name, Sealed(bytes(bytearray(content))))
            assert store.get(name) == content

    def test_other_bytes_under_a_taken_name_are_refused(self) -> None:
        store = self.make_filled(CONTENT)
        whole = CONTENT[PACK]
        for other in (b"", whole[:-1], whole + b"x", b"x" + whole[1:], whole[:-1] + b"x"):
            with pytest.raises(StoreRefused) as caught:
                store.put(PACK, Sealed(other))
            assert caught.value.obj == PACK
            assert not caught.value.retryable
            assert store.get(PACK) == whole
        with pytest.raises(StoreRefused):
            store.put(OTHER_PACK, Sealed(b"no longer empty"))
        assert store.stat(OTHER_PACK) == 0

    def test_own_synced_writes_are_listed_and_removals_are_not(self) -> None:
        store = self.make_filled(CONTENT)
        store.delete(PACK)
        store.put("new/one", Sealed(b"12345"))
        store.sync()
        expected = {name: len(content) for name, content in CONTENT.items() if name != PACK} | {"new/one": 5}
        assert listed(store) == expected

    def test_delete_removes_one_object(self) -> None:
        store = self.make_filled(CONTENT)
        store.delete(PACK)
        with pytest.raises(ObjectNotFound):
            store.get(PACK)
        with pytest.raises(ObjectNotFound):
            store.stat(PACK)
        assert store.get(OTHER_PACK) == b""

    def test_delete_of_what_is_not_there_is_no_error(self) -> None:
        store = self.make_filled(CONTENT)
        for name in ("nothing", "p/ab/nothing", "no/such/place", PACK):
            store.delete(name)
            store.delete(name)
        assert set(listed(store)) == set(CONTENT) - {PACK}

    def test_a_deleted_name_is_free_for_other_bytes(self) -> None:
        store = self.make_filled(CONTENT)
        store.delete(PACK)
        store.put(PACK, Sealed(b"other"))
        store.sync()
        assert store.get(PACK) == b"other"

    def test_sync_may_be_called_at_any_time_and_often(self) -> None:
        store = self.make_store()
        store.sync()
        store.put("a/b", Sealed(b"x"))
        store.sync()
        store.sync()
        store.delete("a/b")
        store.sync()
        assert listed(store) == {}

    def test_a_large_object_comes_back_whole(self) -> None:
        content = b"".join(number.to_bytes(4, "big") for number in range(3 << 18)) + b"end"
        store = self.make_store()
        store.put("p/large", Sealed(content))
        assert store.get("p/large") == content
        store.put("p/large", Sealed(content))
        with pytest.raises(StoreRefused):
            store.put("p/large", Sealed(content[:-1] + b"!"))
        assert store.get("p/large", 1 << 21, 1 << 20) == content[1 << 21 : 3 << 20]

    def test_a_name_put_by_many_threads_with_equal_bytes(self) -> None:
        store = self.make_store()
        content = Sealed(b"same" * 50_000)
        assert outcomes([lambda: store.put(PACK, content)] * THREADS) == [None] * THREADS
        assert store.get(PACK) == content
        assert listed(store) == {PACK: len(content)}

    def test_a_name_put_by_many_threads_with_different_bytes_goes_to_one(self) -> None:
        store = self.make_store()
        contents = [Sealed(bytes([number]) * 100_000) for number in range(THREADS)]
        results = outcomes([lambda content=content: store.put(PACK, content) for content in contents])  # type: ignore[misc]
        winners = [content for content, result in zip(contents, results, strict=True) if result is None]
        assert len(winners) == 1
        assert store.get(PACK) == winners[0]
        assert [type(result) for result in results if result is not None] == [StoreRefused] * (THREADS - 1)

    def test_threads_write_side_by_side(self) -> None:
        store = self.make_store()

        def write(thread: int) -> int:
            for number in range(10):
                name = f"p/{number:02x}/{thread:02x}"
                store.put(name, Sealed(name.encode()))
                store.sync()
                if number % 2:
                    store.delete(name)
            return thread

        assert outcomes([lambda t=t: write(t) for t in range(THREADS)]) == list(range(THREADS))  # type: ignore[misc]
        names = {f"p/{number:02x}/{thread:02x}" for number in range(0, 10, 2) for thread in range(THREADS)}
        assert set(listed(store)) == names
        assert all(store.get(name) == name.encode() for name in names)

    def test_a_reader_sees_all_of_an_object_or_nothing(self) -> None:
        store = self.make_store()
        content = Sealed(b"0123456789abcdef" * (1 << 16))
        stop = threading.Event()

        def read() -> set[int]:
            seen: set[int] = set()
            while not stop.is_set():
                try:
                    seen.add(len(store.get(PACK)))
                except ObjectNotFound:
                    continue
                seen.update(size for size in listed(store, "p/").values())
            return seen

        def write() -> set[int]:
            try:
                for _ in range(20):
                    store.put(PACK, content)
                    store.delete(PACK)
            finally:
                stop.set()
            return set()

        seen, _ = outcomes([read, write])
        assert isinstance(seen, set), seen
        assert seen <= {len(content)}
