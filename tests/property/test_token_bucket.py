"""The rate limit: whatever is asked for and whenever, no stretch of time lets more through than its share."""

from __future__ import annotations

import argparse
import threading
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.errors import ObjectNotFound, StoreError
from lamella.base.trust import Sealed
from lamella.cli.rates import Rates, read_rates
from lamella.stores.memory import MemoryStore
from lamella.stores.wrap.limited import BURST_SECONDS, PIECE, LimitedStore, TokenBucket
from lamella_kit.store_reading import outcomes
from tests.counting_store import CountingStore

RATE = 1000


class FakeClock:
    """Time that passes only when somebody sleeps or says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept = 0.0
        self._mutex = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._mutex:
            self.now += seconds
            self.slept += seconds


steps = st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 10)), min_size=1, max_size=30)


@given(steps)
def test_no_stretch_of_time_lets_through_more_than_its_share(steps: list[tuple[int, float]]) -> None:
    clock = FakeClock()
    bucket = TokenBucket(RATE, clock)
    sent: list[tuple[float, int]] = []
    for count, idle in steps:
        clock.sleep(idle)
        clock.sleep(bucket.book(count))
        sent.append((clock.now, count))
    for first in range(len(sent)):
        for last in range(first, len(sent)):
            # What goes at `first` was paid for before; from then on the rate holds, but for one second's worth.
            through = sum(count for _, count in sent[first + 1 : last + 1])
            assert through <= RATE * (sent[last][0] - sent[first][0] + BURST_SECONDS) + 1e-3


@given(steps)
def test_nobody_waits_longer_than_the_bytes_before_and_the_own_take(steps: list[tuple[int, float]]) -> None:
    clock = FakeClock()
    bucket = TokenBucket(RATE, clock)
    owed = 0.0
    for count, idle in steps:
        clock.sleep(idle)
        owed = max(0.0, owed - idle * RATE) + count
        assert bucket.book(count) <= owed / RATE + 1e-6


@given(steps)
def test_what_stays_below_the_rate_never_waits(steps: list[tuple[int, float]]) -> None:
    clock = FakeClock()
    bucket = TokenBucket(RATE, clock)
    for size, _ in steps:
        count = size % (int(RATE * BURST_SECONDS) + 1)
        clock.sleep(count / RATE)
        assert bucket.book(count) <= 1e-9


def test_the_rate_of_the_moment_holds_and_a_moment_without_one_waits_for_nothing() -> None:
    """A night without a limit must not be spent waiting for what the day booked, nor may a day repay a night."""
    clock, rate = FakeClock(), [RATE]
    bucket = TokenBucket(lambda: rate[0] or None, clock)
    bucket.book(RATE)
    assert bucket.book(10 * RATE) == pytest.approx(10)
    clock.sleep(10)
    rate[0] = 0
    assert bucket.book(1 << 40) == 0
    rate[0] = 2 * RATE
    assert bucket.book(4 * RATE) == pytest.approx(2)


@pytest.mark.parametrize(
    ("text", "now", "limit"),
    [
        ("1M@08:00-18:00,20M", "08:00", 1 << 20),
        ("1M@08:00-18:00,20M", "17:59", 1 << 20),
        ("1M@08:00-18:00,20M", "18:00", 20 << 20),
        ("1M@08:00-18:00", "07:59", None),
        ("2M@22:00-06:00,1M@05:00-07:00", "23:30", 2 << 20),
        ("2M@22:00-06:00,1M@05:00-07:00", "05:30", 2 << 20),
        ("2M@22:00-06:00,1M@05:00-07:00", "06:30", 1 << 20),
    ],
)
def test_windows_of_the_day(text: str, now: str, limit: int | None) -> None:
    rates = read_rates(text)
    assert isinstance(rates, Rates) and rates.now(lambda: datetime.fromisoformat(f"2026-11-29T{now}")) == limit


@pytest.mark.parametrize(
    "text", ["1M@8-18", "1M@08:00-08:00", "@08:00-09:00", "1M@08:00-25:00", "1M,", "5@08:00-09:00"]
)
def test_wrong_windows_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        read_rates(text)


def test_threads_share_one_rate() -> None:
    clock = FakeClock()
    bucket = TokenBucket(RATE, clock)
    waits = outcomes([lambda: bucket.book(500)] * 8)
    assert sorted(waits) == pytest.approx([0, 0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0])  # type: ignore[type-var]


def limited(rate: int) -> tuple[LimitedStore, CountingStore, FakeClock]:
    clock = FakeClock()
    counting = CountingStore(MemoryStore())
    return LimitedStore(counting, TokenBucket(rate, clock), sleep=clock.sleep), counting, clock


def test_bytes_in_both_directions_count() -> None:
    store, _, clock = limited(RATE)
    store.put("a", Sealed(bytes(3000)))
    assert clock.slept == pytest.approx(2.0)
    assert len(store.get("a")) == 3000
    assert clock.slept == pytest.approx(5.0)
    store.get("a", 100, 500)
    assert clock.slept == pytest.approx(5.5)


def test_a_listing_counts_and_asking_for_sizes_does_not() -> None:
    store, _, clock = limited(RATE)
    for number in range(20):
        store.put(f"p/{number}", Sealed(b""))
    store.stat("p/1")
    store.delete("p/1")
    assert clock.slept == 0
    list(store.list("p/"))
    assert clock.slept == pytest.approx(1.85)


def test_a_large_object_is_read_piece_by_piece() -> None:
    store, counting, clock = limited(PIECE)
    content = bytes(range(256)) * (3 * PIECE // 256) + b"end"
    counting.put("a", Sealed(content))
    for offset, length in [(0, len(content)), (7, 2 * PIECE), (5, PIECE + 1), (5, PIECE)]:
        before, slept = counting.count("get"), clock.slept
        assert store.get("a", offset, length) == content[offset : offset + length]
        assert counting.count("get") - before == -(-length // PIECE)
        assert clock.slept - slept == pytest.approx(length / PIECE, abs=BURST_SECONDS)


def test_a_whole_object_is_read_with_one_request() -> None:
    store, counting, clock = limited(PIECE)
    counting.put("a", Sealed(bytes(3 * PIECE)))
    counting.calls.clear()
    assert store.get("a", 5) == bytes(3 * PIECE - 5)
    assert counting.calls == [("get", "a")]
    assert clock.slept == pytest.approx(2.0, abs=1e-3)


def test_errors_are_those_of_the_store_inside() -> None:
    store, _, _ = limited(1 << 30)
    with pytest.raises(ObjectNotFound):
        store.get("nothing")
    store.put("a", Sealed(b"x"))
    for offset, length in [(0, 3 * PIECE), (2, None), (-1, 3 * PIECE)]:
        with pytest.raises(StoreError):
            store.get("a", offset, length)


def test_a_rate_of_nothing_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="rate"):
        TokenBucket(0)
