"""A far side that lies, floods, stalls or goes away: an error in bounded time and memory, never a wrong byte."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError, ObjectNotFound, StoreError, StoreUnavailable
from lamella.base.trust import Sealed
from lamella.stores import base
from lamella.stores.pipe import frames, link
from lamella.stores.pipe.client import PipeStore
from lamella.stores.pipe.frames import Hello
from lamella.stores.pipe.link import Route
from lamella.stores.wrap.retrying import RetryingStore
from lamella_kit.store_reading import listed, outcomes

PEER = Path(__file__).with_name("pipe_peer.py")
OBJECT = "p/ab/x"
Connect = Callable[[str], PipeStore]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """A function that connects to the peer that tells the lie named."""
    opened: list[PipeStore] = []

    def connected(lie: str) -> PipeStore:
        route = Route((sys.executable, "-I", "-S", str(PEER), lie), b"", connect_seconds=20)
        opened.append(PipeStore("pipe:peer", route, Hello("/x", False, False, True)))
        return opened[-1]

    yield connected
    for store in opened:
        store.close()


def _read(store: PipeStore) -> object:
    return store.get(OBJECT)


def _look(store: PipeStore) -> object:
    return store.stat(OBJECT)


def _list(store: PipeStore) -> object:
    return listed(store, "p/")


def test_an_honest_peer_is_understood(connect: Connect) -> None:
    """The peer is written from the description alone: what it says is what the description means."""
    store = connect("none")
    assert store.get(OBJECT) == b"0123456789" * 1000
    assert store.get(OBJECT, 3, 4) == b"3456"
    assert store.stat(OBJECT) == 10_000
    assert listed(store) == {"lamella": 6, OBJECT: 10_000}
    content = bytes(range(256)) * 4000
    store.put("p/new", Sealed(content))
    store.sync()
    assert store.get("p/new") == content
    with pytest.raises(ObjectNotFound):
        store.stat("nothing")
    store.delete(OBJECT)
    with store.lock(exclusive=True):
        assert store.get("lamella") == b"marker"


LIES = [
    ("short-answer", _look, False),
    ("wrong-kind", _look, True),
    ("odd-error", _look, True),
    ("huge-frame", _read, True),
    ("large-frame", _read, True),
    ("unknown-kind", _read, True),
    ("other-request", _read, True),
    ("never-ending-data", _read, True),
    ("empty-pieces", _read, True),
    ("cut", _read, True),
    ("short", lambda store: store.get(OBJECT, 0, 10_000), False),
    ("empty-pages", _list, True),
    ("torn-page", _list, True),
    ("unasked-pages", _list, True),
    ("repeated-pages", _list, True),
    ("falling-names", _list, True),
    ("bad-name", _list, False),
    ("other-names", _list, False),
]


@pytest.mark.parametrize(("lie", "ask", "ends"), LIES, ids=[row[0] for row in LIES])
def test_a_lie_is_an_error_and_never_an_answer(
    connect: Connect, lie: str, ask: Callable[[PipeStore], object], ends: bool
) -> None:
    store = connect(lie)
    with pytest.raises(StoreError) as caught:
        ask(store)
    assert not isinstance(caught.value, ObjectNotFound)
    assert store._link.failed == ends


@pytest.mark.parametrize("lie", ["two-answers", "late"])
def test_what_comes_after_an_answer_ends_the_connection(connect: Connect, lie: str) -> None:
    store = connect(lie)
    first = store._link
    if lie == "late":
        assert store.get(OBJECT) == b"0123456789" * 1000
    else:
        assert store.stat(OBJECT) == 1
    assert first._reader.join(20)
    assert first.failed
    with pytest.raises(StoreError, match="nobody asked for"):
        raise first._reason()


def test_an_error_is_printable_and_bounded(connect: Connect) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        connect("escape").stat(OBJECT)
    assert caught.value.message.startswith("?[31mred?")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) <= 700


def test_a_shell_that_talks_is_quoted_and_refused(connect: Connect) -> None:
    with pytest.raises(StoreError, match=r"Welcome to .*host") as caught:
        connect("shell")
    assert "\x1b" not in caught.value.message
    assert not caught.value.retryable


def test_another_version_is_refused(connect: Connect) -> None:
    with pytest.raises(StoreError, match="version 9"):
        connect("version")


def test_an_endless_listing_takes_no_memory_and_ends(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MOST_PACKS", 300_000)
    store = RetryingStore(connect("endless-list"))
    with pytest.raises(StoreError, match="more than"):
        for _ in store.list("p/"):
            pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    again = RetryingStore(connect("endless-list"))
    with pytest.raises(StoreError, match="more than"):
        for _ in again.list("p/"):
            pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 << 10  # KiB


@pytest.mark.parametrize("lie", ["silent", "ticking"])
def test_no_answer_ends_the_wait_for_every_thread(connect: Connect, lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(link, "STALLED_SECONDS", 2.0)
    monkeypatch.setattr(link, "_POLL_SECONDS", 0.1)
    store = connect(lie)
    results = outcomes([lambda: store.get(OBJECT)] * 3)
    assert [type(one) for one in results] == [StoreUnavailable] * 3
    assert store._link.failed


@pytest.mark.parametrize("lie", ["holding", "trickling"])
def test_a_server_that_holds_a_request_is_left(connect: Connect, lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that it is alive, and answers nothing, or so little that the answer never ends."""
    monkeypatch.setattr(link, "IDLE_SECONDS", 1.0)
    monkeypatch.setattr(link, "STALLED_SECONDS", 5.0 if lie == "trickling" else 600.0)
    monkeypatch.setattr(frames, "TICK_SECONDS", 0.2)
    monkeypatch.setattr(link, "_POLL_SECONDS", 0.1)
    for ask in (_read,) if lie == "trickling" else (_read, _look, _list):
        store = connect(lie)
        with pytest.raises(StoreUnavailable, match="did not"):
            ask(store)
        assert store._link.failed


def test_a_slow_answer_that_goes_on_is_waited_for(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "IDLE_SECONDS", 2.0)
    assert connect("slow").get(OBJECT) == b"0123456789" * 1000


def test_a_silent_peer_is_noticed_while_nobody_asks(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is held would be lost at the far side: this side must know first."""
    monkeypatch.setattr(frames, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(frames, "TICK_SECONDS", 0.2)
    monkeypatch.setattr(link, "_POLL_SECONDS", 0.1)
    store = connect("deaf")
    assert store._link._reader.join(20)
    assert store._link.failed


def test_a_program_that_cannot_start_or_ends_at_once_says_so() -> None:
    hello = Hello("/x", False, False, True)
    with pytest.raises(StoreUnavailable, match="cannot run /nowhere/at-all"):
        PipeStore("pipe:x", Route(("/nowhere/at-all",)), hello)
    argv = (sys.executable, "-c", "import sys; sys.exit('\\x1b[2Jno such host')")
    with pytest.raises(StoreUnavailable, match=r"ended with status 1: .\[2Jno such host"):
        PipeStore("pipe:x", Route(argv), hello)
    with pytest.raises(LamellaError):
        PipeStore("pipe:x", Route(("/bin/true",)), hello)
