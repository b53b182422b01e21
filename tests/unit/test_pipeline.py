"""Work over threads: order, bounds, errors and what is left running afterwards."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.base.errors import StoreFull
from lamella.run.pipeline import Outbox, default_workers, ordered_map

SECONDS = 30
"""How long a test waits for another thread before it fails."""


def threads_of(prefix: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(prefix)]


class Taken:
    """Numbers handed out one by one, counting."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.size):
            self.count += 1
            yield number


def test_as_many_workers_as_processors() -> None:
    assert default_workers() == len(os.sched_getaffinity(0))


@given(st.lists(st.integers(), max_size=40), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=40)
def test_results_are_those_of_map_in_order(items: list[int], workers: int, ahead: int) -> None:
    assert list(ordered_map(lambda item: item * 3, items, workers=workers, ahead=ahead)) == [item * 3 for item in items]


def test_a_slow_first_item_does_not_lose_its_place() -> None:
    others_done = threading.Semaphore(0)

    def work(item: int) -> int:
        if item == 0:
            for _ in range(3):
                assert others_done.acquire(timeout=SECONDS)
        else:
            others_done.release()
        return item

    assert list(ordered_map(work, range(4), workers=2, ahead=2)) == [0, 1, 2, 3]


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (1, 2), (3, 1), (2, 4)])
def test_never_takes_more_than_its_bound_ahead(workers: int, ahead: int) -> None:
    items = Taken(100)
    results = ordered_map(lambda item: item, items, workers=workers, ahead=ahead)
    assert items.count == 0
    for consumed, result in enumerate(results):
        assert result == consumed
        assert items.count == min(100, consumed + workers * ahead)


def test_the_first_error_in_order_ends_it_and_nothing_runs_on() -> None:
    late_failed = threading.Event()
    started: set[int] = set()

    def work(item: int) -> int:
        started.add(item)
        if item == 3:
            late_failed.set()
            raise KeyError("the later one")
        if item == 2:
            assert late_failed.wait(SECONDS)
            raise ValueError("the earlier one")
        return item

    items = Taken(1000)
    results = ordered_map(work, items, workers=2, ahead=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="the earlier one"):
        next(results)
    assert threads_of("lamella") == []
    before = set(started)
    assert items.count <= 2 + 4
    with pytest.raises(StopIteration):
        next(results)
    assert started == before


def test_an_error_of_the_items_is_raised_after_the_threads_ended() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(ordered_map(lambda item: item, items(), workers=2))
    assert threads_of("lamella") == []


def test_closing_the_iterator_ends_the_threads() -> None:
    results = ordered_map(lambda item: item, Taken(1000), workers=3)
    assert next(results) == 0
    assert threads_of("lamella") != []
    results.close()
    assert threads_of("lamella") == []


# -- Outbox ------------------------------------------------------------------------------------------------------------


class Uploads:
    """Uploads that end when they are told to."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.done: list[int] = []
        self.mutex = threading.Lock()
        self.gates = [threading.Event() for _ in range(10)]

    def upload(self, number: int) -> Callable[[], None]:
        def run() -> None:
            with self.mutex:
                self.running += 1
                self.most = max(self.most, self.running)
            assert self.gates[number].wait(SECONDS)
            with self.mutex:
                self.running -= 1
                self.done.append(number)

        return run


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_full_outbox_makes_the_sender_wait(depth: int) -> None:
    uploads = Uploads()
    submitted: list[int] = []
    filled, more = threading.Semaphore(0), depth + 2
    with Outbox(depth) as outbox:

        def send() -> None:
            for number in range(more):
                outbox.submit(uploads.upload(number))
                submitted.append(number)
                filled.release()

        sender = threading.Thread(target=send)
        sender.start()
        for _ in range(depth):
            assert filled.acquire(timeout=SECONDS)
        for passed in range(more - depth):
            # Nothing was let through yet beyond `passed`: the sender stands at the next one.
            assert len(submitted) <= depth + passed
            uploads.gates[passed].set()
            assert filled.acquire(timeout=SECONDS)
        for gate in uploads.gates:
            gate.set()
        sender.join(SECONDS)
        assert not sender.is_alive()
        outbox.drain()
        assert sorted(uploads.done) == list(range(more))
    assert uploads.most <= depth
    assert threads_of("lamella-put") == []


def failing() -> None:
    raise StoreFull("no space left")


def test_a_failed_upload_is_raised_by_the_next_submit_and_every_later_call() -> None:
    ran: list[int] = []
    with Outbox(2) as outbox:
        outbox.submit(failing)
        with pytest.raises(StoreFull):
            outbox.drain()
        for _ in range(2):
            with pytest.raises(StoreFull):
                outbox.submit(lambda: ran.append(1))
            with pytest.raises(StoreFull):
                outbox.drain()
    assert ran == []


def test_a_failure_that_is_known_is_raised_before_the_outbox_is_full() -> None:
    with Outbox(1000) as outbox:
        outbox.submit(failing)
        with pytest.raises(StoreFull):
            for _ in range(500):  # never full; each of these ends before the next begins
                done = threading.Event()
                outbox.submit(done.set)
                assert done.wait(SECONDS)


def test_the_first_of_several_errors_is_the_one_raised() -> None:
    second_failed = threading.Event()

    def first() -> None:
        assert second_failed.wait(SECONDS)
        raise StoreFull("first")

    def second() -> None:
        second_failed.set()
        raise KeyError("second")

    with Outbox(2) as outbox:
        outbox.submit(first)
        outbox.submit(second)
        with pytest.raises(StoreFull, match="first"):
            outbox.drain()


def test_leaving_with_an_error_cancels_what_has_not_begun() -> None:
    uploads = Uploads()
    with pytest.raises(ZeroDivisionError), Outbox(1) as outbox:
        outbox.submit(uploads.upload(1))
        uploads.gates[1].set()
        raise ZeroDivisionError
    assert uploads.done in ([], [1])
    assert threads_of("lamella-put") == []
