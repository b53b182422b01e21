"""When the retrying store tries again, how long it waits, and that no listing loses or repeats a name."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import count, cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.errors import Locked, ObjectNotFound, StoreError, StoreFull, StoreRefused, StoreUnavailable
from lamella.base.trust import Sealed
from lamella.stores.base import Entry, most_names
from lamella.stores.memory import MemoryStore
from lamella.stores.wrap.patience import Backoff
from lamella.stores.wrap.retrying import RetryingStore
from lamella_kit.fault_store import FaultStore, Method

AWAY = StoreUnavailable("away")


class Trial:
    """A retrying store around faults around memory, and the pauses it made."""

    def __init__(self, backoff: Backoff | None = None, *, jitter: float = 0.999999) -> None:
        self.memory = MemoryStore({"a": b"0123"})
        self.faults = FaultStore(self.memory)
        self.pauses: list[float] = []
        self.store = RetryingStore(self.faults, backoff, sleep=self.pauses.append, jitter=lambda: jitter)

    def call(self, method: Method) -> object:
        calls = {
            "put": lambda: self.store.put("b", Sealed(b"x")),
            "get": lambda: self.store.get("a"),
            "stat": lambda: self.store.stat("a"),
            "list": lambda: list(self.store.list("")),
            "delete": lambda: self.store.delete("a"),
            "sync": self.store.sync,
        }
        return calls[method]()


METHODS: list[Method] = ["put", "get", "stat", "list", "delete", "sync"]


@pytest.mark.parametrize("method", METHODS)
def test_a_retryable_error_is_tried_again_up_to_the_limit(method: Method) -> None:
    trial = Trial(Backoff(attempts=3))
    trial.faults.fail(method, AWAY, times=2)
    trial.call(method)
    trial.faults.assert_all_fired()
    assert len(trial.pauses) == 2
    trial.faults.fail(method, AWAY, times=3)
    with pytest.raises(StoreUnavailable):
        trial.call(method)
    trial.faults.assert_all_fired()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [StoreRefused("no"), StoreFull("full"), ObjectNotFound("none"), StoreError("bad")])
def test_any_other_error_is_final(method: Method, error: StoreError) -> None:
    trial = Trial()
    trial.faults.fail(method, error)
    with pytest.raises(type(error)):
        trial.call(method)
    trial.faults.assert_all_fired()
    assert trial.pauses == []


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_tried_again_after_the_end(method: Method) -> None:
    """A thread that reads ahead when a command ends must neither wait nor tell of trouble that is none."""
    told: list[str] = []
    inner = MemoryStore({"a": b"0123"})
    inner.close = lambda: None  # type: ignore[method-assign]  # the end of the connection is still to come
    faults = FaultStore(inner)
    trial = Trial()
    trial.store = RetryingStore(faults, tell=told.append, sleep=trial.pauses.append)
    trial.store.close()
    faults.fail(method, AWAY)
    with pytest.raises(StoreUnavailable):
        trial.call(method)
    assert trial.pauses == [] and told == []


@pytest.mark.parametrize("method", ["put", "delete", "sync"])
def test_a_lost_reply_does_no_harm(method: Method) -> None:
    trial = Trial()
    trial.faults.lose_reply(method, AWAY)
    trial.call(method)
    trial.faults.assert_all_fired()
    expected = {"put": {"a": b"0123", "b": b"x"}, "delete": {}, "sync": {"a": b"0123"}}
    assert trial.memory.objects() == expected[method]


def test_a_lock_is_tried_once() -> None:
    trial = Trial()
    for error in (Locked("taken"), AWAY):
        trial.faults.fail("lock", error)
        with pytest.raises(type(error)), trial.store.lock(exclusive=True):
            pytest.fail("locked")
    trial.faults.assert_all_fired()
    assert trial.pauses == []


def test_pauses_double_up_to_the_longest() -> None:
    for jitter, factor in ((0.0, 0.5), (0.5, 0.75), (0.999999, 1.0)):
        trial = Trial(Backoff(attempts=6, first_seconds=1, longest_seconds=5, budget_seconds=100), jitter=jitter)
        trial.faults.fail("get", AWAY, times=5)
        trial.call("get")
        assert trial.pauses == pytest.approx([factor * seconds for seconds in (1, 2, 4, 5, 5)], rel=1e-5)


@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999999])
def test_by_default_it_is_the_time_that_ends_the_tries(jitter: float) -> None:
    trial = Trial(jitter=jitter)
    trial.call("get")
    trial.faults.fail("stat", StoreUnavailable("the link is down"), times=100)
    with pytest.raises(StoreUnavailable):
        trial.store.stat("p/x")
    assert 90 < sum(trial.pauses) <= 120


def test_calls_are_given_up_sooner_before_any_answer_and_after_a_call_in_vain() -> None:
    """A disk with bad places: the first costs all the patience, each further one a few seconds, until one is read."""
    trial = Trial()

    def fails(times: int) -> float:
        """Pauses, in seconds, of a call that fails so many times and is given up."""
        trial.pauses.clear()
        trial.faults.fail("get", AWAY, times=times)
        with pytest.raises(StoreUnavailable):
            trial.call("get")
        trial.faults.assert_all_fired()
        return sum(trial.pauses)

    assert fails(5) < 8
    trial.call("get")
    assert 90 < fails(9) <= 120
    assert fails(5) < 8
    trial.call("get")  # works at once, which says nothing about bad places
    assert fails(5) < 8
    trial.faults.fail("get", AWAY, times=2)
    trial.call("get")
    assert 90 < fails(9) <= 120


def test_the_budget_ends_the_trying() -> None:
    trial = Trial(Backoff(attempts=100, first_seconds=1, longest_seconds=4, budget_seconds=10))
    trial.faults.fail("get", AWAY, times=4)
    with pytest.raises(StoreUnavailable):
        trial.call("get")
    assert sum(trial.pauses) <= 10
    assert len(trial.pauses) == 3
    trial.faults.fail("get", AWAY, times=3)
    trial.call("get")  # each call has the whole budget


def test_one_attempt_means_no_second() -> None:
    trial = Trial(Backoff(attempts=1))
    trial.faults.fail("get", AWAY)
    with pytest.raises(StoreUnavailable):
        trial.call("get")
    assert trial.pauses == []


class Bent(MemoryStore):
    """Lists as a hostile far side may; and counts what was taken of it."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        super().__init__()
        self.entries, self.taken = entries, 0

    def list(self, prefix: str) -> Iterator[Entry]:
        for entry in self.entries:
            self.taken += 1
            yield entry


def endless() -> Iterator[Entry]:
    return (Entry(f"w/{number:032x}/{number:016x}-{number:064x}", 1) for number in count())


BENT: dict[str, Iterable[Entry]] = {
    "repeated": [Entry("w/a", 1), Entry("w/a", 1)],
    "backwards": [Entry("w/b", 1), Entry("w/a", 1)],
    "round in circles": cycle([Entry("w/a", 1), Entry("w/b", 1)]),
    "not asked for": [Entry("p/ab/x", 1)],
    "the folder itself": [Entry("w/", 1)],
}


@pytest.mark.parametrize("name", BENT)
def test_a_listing_that_is_none_is_refused_at_once(name: str) -> None:
    bent = Bent(BENT[name])
    with pytest.raises(StoreError, match="in their order"):
        list(RetryingStore(bent).list("w/"))
    assert bent.taken <= 3


def test_an_endless_listing_ends_and_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [most_names(prefix) for prefix in ("p/", "p/ab/", "w/", "keys/")] == [1 << 24, 1 << 24, 1 << 20, 1 << 20]
    monkeypatch.setattr("lamella.stores.base.MOST_OTHERS", 50_000)
    bent = Bent(endless())
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match="more than a repository has"):
            for _ in RetryingStore(bent).list("w/"):
                pass
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()
    assert bent.taken == 50_001


@given(number=st.integers(0, 20), breaks=st.lists(st.integers(0, 20), max_size=6))
def test_a_broken_listing_yields_every_name_once_and_in_order(number: int, breaks: list[int]) -> None:
    names = {f"p/{at:02}" for at in range(number)}
    faults = FaultStore(MemoryStore(dict.fromkeys(names, b"")))
    for listed in breaks:
        faults.break_listing(AWAY, listed=listed)
    store = RetryingStore(faults, Backoff(attempts=len(breaks) + 1), sleep=lambda seconds: None)
    found = [entry.name for entry in store.list("p/")]
    assert found == sorted(names)
    faults.assert_all_fired()


def test_a_listing_that_stays_broken_ends_with_the_error_not_early() -> None:
    trial = Trial(Backoff(attempts=3))
    trial.faults.break_listing(AWAY, listed=1, times=3)
    listing = trial.store.list("")
    assert next(listing).name == "a"
    with pytest.raises(StoreUnavailable):
        next(listing)
    trial.faults.assert_all_fired()


def test_a_silence_is_not_waited_for_often() -> None:
    """A service that takes requests and never answers costs its deadline once, or twice if it has answered before."""
    silence = StoreUnavailable("no answer")
    silence.silent = True
    trial = Trial()
    for tries in (1, 2, 1):
        trial.faults.fail("get", silence, times=tries)
        with pytest.raises(StoreUnavailable, match="no answer"):
            trial.call("get")
        trial.faults.assert_all_fired()
        if tries == 1:
            trial.faults.fail("get", AWAY, times=1)
            trial.call("get")  # answers, after a failure: all is forgotten
    trial.faults.fail("get", silence, times=1)
    trial.call("get")
