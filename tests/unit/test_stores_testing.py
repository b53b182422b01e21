"""The stores that lose power, fail and fill up do exactly what they say: all fault tests rest on them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.errors import Locked, ObjectNotFound, StoreFull, StoreRefused, StoreUnavailable
from lamella.base.trust import Sealed
from lamella.stores.base import Store
from lamella.stores.memory import MemoryStore
from lamella_kit.crash_store import (
    ALL_CALLS,
    Change,
    CrashPoint,
    CrashStore,
    PowerCut,
    crash_points,
    surviving_subsets,
)
from lamella_kit.fault_store import FaultStore
from lamella_kit.quota_store import QuotaStore
from lamella_kit.store_reading import listed

AWAY = StoreUnavailable("away")


# --- crash -----------------------------------------------------------------------------------------------------------


def small_run(store: Store) -> None:
    store.put("p/1", Sealed(b"one"))
    store.put("p/2", Sealed(b"two"))
    store.sync()
    store.put("w/1", Sealed(b"commit"))
    store.delete("p/old")
    store.sync()


def crashed(run: Callable[[Store], None], point: CrashPoint) -> CrashStore:
    store = CrashStore({"p/old": b"old"}, point)
    with pytest.raises(PowerCut):
        run(store)
    return store


def test_a_power_cut_passes_every_except_exception() -> None:
    assert not issubclass(PowerCut, Exception)


def test_without_a_point_calls_are_counted_and_nothing_happens() -> None:
    store = CrashStore({"p/old": b"old"})
    small_run(store)
    assert store.calls == 6
    assert [method for method, _ in store.log] == ["put", "put", "sync", "put", "delete", "sync"]
    assert store.log[3] == ("put", "w/1")
    assert store.unsynced == ()
    assert store.after_crash(()).objects() == {"p/1": b"one", "p/2": b"two", "w/1": b"commit"}


def test_every_point_is_met_and_what_was_synced_survives_every_choice() -> None:
    points = list(crash_points(6))
    assert len(set(points)) == 12
    for point in points:
        store = crashed(small_run, point)
        assert store.calls == point.call
        for surviving in surviving_subsets(len(store.unsynced)):
            objects = store.after_crash(surviving).objects()
            effects = point.call if point.after_effect else point.call - 1
            if effects >= 3:
                assert objects["p/1"] == b"one"
                assert objects["p/2"] == b"two"
            if effects == 6:
                assert objects == {"p/1": b"one", "p/2": b"two", "w/1": b"commit"}
            if effects < 5:
                assert objects["p/old"] == b"old"
            assert ("w/1" in objects) <= (effects >= 4)


def test_before_and_after_the_effect_differ_by_the_effect() -> None:
    assert crashed(small_run, CrashPoint(2, after_effect=False)).unsynced == (Change("p/1", b"one"),)
    assert crashed(small_run, CrashPoint(2, after_effect=True)).unsynced == (
        Change("p/1", b"one"),
        Change("p/2", b"two"),
    )
    assert len(crashed(small_run, CrashPoint(3, after_effect=False)).unsynced) == 2
    assert crashed(small_run, CrashPoint(3, after_effect=True)).unsynced == ()
    assert crashed(small_run, CrashPoint(5, after_effect=True)).unsynced == (
        Change("w/1", b"commit"),
        Change("p/old", None),
    )


def test_exactly_the_chosen_writes_survive() -> None:
    store = crashed(small_run, CrashPoint(5, after_effect=True))
    base = {"p/1": b"one", "p/2": b"two"}
    assert store.after_crash(()).objects() == base | {"p/old": b"old"}
    assert store.after_crash({0}).objects() == base | {"p/old": b"old", "w/1": b"commit"}
    assert store.after_crash({1}).objects() == base
    assert store.after_crash({0, 1}).objects() == base | {"w/1": b"commit"}


def test_writes_that_change_nothing_are_not_open() -> None:
    store = CrashStore({"a": b"x"})
    store.put("a", Sealed(b"x"))
    store.delete("nothing")
    with pytest.raises(StoreRefused):
        store.put("a", Sealed(b"y"))
    assert store.calls == 3
    assert store.unsynced == ()


def test_after_the_cut_every_call_fails_and_locks_are_gone() -> None:
    store = CrashStore({"a": b"x"}, CrashPoint(1, after_effect=False))
    with pytest.raises(PowerCut), store.lock(exclusive=True):
        store.put("b", Sealed(b"y"))
    for call in (
        lambda: store.put("c", Sealed(b"")),
        lambda: store.get("a"),
        lambda: store.stat("a"),
        lambda: store.list(""),
        lambda: store.delete("a"),
        store.sync,
    ):
        with pytest.raises(PowerCut):
            call()
    with pytest.raises(PowerCut), store.lock(exclusive=False):
        pytest.fail("locked without power")
    store.close()
    with store.after_crash(()).lock(exclusive=True):
        pass


def test_reading_calls_count_when_asked() -> None:
    store = CrashStore({"a": b"x"}, CrashPoint(3, after_effect=False), counted=ALL_CALLS)
    assert store.get("a") == b"x"
    assert store.stat("a") == 1
    with pytest.raises(PowerCut):
        store.list("")


@given(count=st.integers(0, 40), seed=st.integers(0, 3))
def test_surviving_subsets_are_sound_and_repeatable(count: int, seed: int) -> None:
    subsets = list(surviving_subsets(count, seed=seed))
    assert len(subsets) == len(set(subsets))
    assert all(subset <= set(range(count)) for subset in subsets)
    assert {frozenset[int](), frozenset(range(count))} <= set(subsets)
    assert subsets == list(surviving_subsets(count, seed=seed))
    if count <= 6:
        every = chain.from_iterable(combinations(range(count), size) for size in range(count + 1))
        assert set(subsets) == set(map(frozenset, every))
    else:
        assert frozenset({count - 1}) in subsets


# --- faults ----------------------------------------------------------------------------------------------------------


def test_a_fault_strikes_after_and_as_often_as_asked() -> None:
    store = FaultStore(MemoryStore({"a": b"x"}))
    store.fail("get", AWAY, after=2, times=2)
    results: list[str] = []
    for _ in range(6):
        try:
            results.append(store.get("a").decode())
        except StoreUnavailable:
            results.append("away")
    assert results == ["x", "x", "away", "away", "x", "x"]
    store.assert_all_fired()


def test_faults_queue_and_methods_do_not_mix() -> None:
    store = FaultStore(MemoryStore({"a": b"x"}))
    store.fail("stat", StoreRefused("first"))
    store.fail("stat", AWAY, after=1)
    assert store.get("a") == b"x"
    with pytest.raises(StoreRefused):
        store.stat("a")
    assert store.stat("a") == 1
    with pytest.raises(AssertionError, match=r"stat.*away"):
        store.assert_all_fired()
    with pytest.raises(StoreUnavailable):
        store.stat("a")
    store.assert_all_fired()


def test_a_fault_that_fired_too_seldom_is_named() -> None:
    store = FaultStore(MemoryStore({"a": b"x"}))
    store.flip_byte(times=2)
    store.get("a")
    with pytest.raises(AssertionError, match=r"get.*flipped.*1 times"):
        store.assert_all_fired()
    with pytest.raises(ValueError, match="cannot happen"):
        store.fail("get", AWAY, times=0)


def test_an_error_comes_before_or_after_the_effect() -> None:
    memory = MemoryStore()
    store = FaultStore(memory)
    store.fail("put", AWAY)
    with pytest.raises(StoreUnavailable):
        store.put("a", Sealed(b"x"))
    assert memory.objects() == {}
    store.lose_reply("put", AWAY)
    with pytest.raises(StoreUnavailable):
        store.put("a", Sealed(b"x"))
    assert memory.objects() == {"a": b"x"}
    with pytest.raises(ValueError, match="no reply"):
        store.lose_reply("list", AWAY)


def test_wrong_and_missing_bytes() -> None:
    store = FaultStore(MemoryStore({"a": b"\x00\x01\x02"}))
    store.flip_byte(1)
    store.flip_byte(-1)
    store.cut_short(2)
    assert store.get("a") == b"\x00\xfe\x02"
    assert store.get("a", 0, 2) == b"\x00\xfe"
    assert store.get("a") == b"\x00\x01"
    assert store.get("a") == b"\x00\x01\x02"
    store.assert_all_fired()


def test_listings_that_lie_and_break() -> None:
    store = FaultStore(MemoryStore({"a": b"", "b": b"", "c": b""}))
    store.hide_listing()
    store.hide_listing(listed=2)
    store.break_listing(AWAY, listed=1)
    store.fail("list", AWAY)
    assert listed(store) == {}
    assert len(listed(store)) == 2
    listing = store.list("")
    next(listing)
    with pytest.raises(StoreUnavailable):
        next(listing)
    with pytest.raises(StoreUnavailable):
        listed(store)
    assert len(listed(store)) == 3
    store.assert_all_fired()


def test_a_lock_can_fail() -> None:
    store = FaultStore(MemoryStore())
    store.fail("lock", Locked("taken"))
    with pytest.raises(Locked), store.lock(exclusive=False):
        pytest.fail("locked")
    with store.lock(exclusive=False):
        pass


# --- quota -----------------------------------------------------------------------------------------------------------


def test_the_quota_is_reached_to_the_byte_and_freed_by_removal() -> None:
    memory = MemoryStore({"old": b"12345"})
    store = QuotaStore(memory, limit_bytes=10)
    store.put("a", Sealed(b"12345"))
    assert store.used_bytes() == 10
    with pytest.raises(StoreFull) as caught:
        store.put("b", Sealed(b"1"))
    assert caught.value.obj == "b"
    store.put("a", Sealed(b"12345"))
    store.put("empty", Sealed(b""))
    with pytest.raises(StoreRefused):
        store.put("a", Sealed(b"other bytes"))
    store.delete("old")
    with pytest.raises(ObjectNotFound):
        store.get("old")
    store.put("b", Sealed(b"1"))
    assert store.used_bytes() == 6
    store.delete("b")
    assert store.used_bytes() == 5
    store.limit_bytes = 5
    with pytest.raises(StoreFull):
        store.put("c", Sealed(b"1"))
    assert set(memory.objects()) == {"a", "empty"}


# --- memory ----------------------------------------------------------------------------------------------------------


def test_handles_share_objects_and_lock_but_not_their_end() -> None:
    first = MemoryStore({"a": b"x"})
    second = first.connect()
    second.put("b", Sealed(b"y"))
    assert first.get("b") == b"y"
    with first.lock(exclusive=True), pytest.raises(Locked), second.lock(exclusive=False):
        pytest.fail("two locks")
    first.close()
    assert second.get("a") == b"x"
    assert first.connect().get("a") == b"x"
    copy = second.objects()
    copy.clear()
    assert second.get("a") == b"x"
