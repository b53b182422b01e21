"""Ctrl-C while any one call to the store is under way: the run ends, and the next one goes on.

The signal is a real one and finds the main thread wherever it is at that moment: waiting for a worker, for an upload,
or in the middle of saying how far it came.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from lamella.base.chunkset import ChunkSet
from lamella.base.ids import ChunkId, DomainId
from lamella.base.trust import Clear, Sealed
from lamella.format.container import Kind
from lamella.operations.backup import sampling
from lamella.operations.backup.sampling import Sample
from lamella.operations.backup.story import BackupOptions, Pace
from lamella.operations.writing.session import WritingSession
from lamella.packs.building import raw_body
from lamella.packs.packer import Packer
from lamella.run.pipeline import Outbox
from lamella.stores.base import Store
from lamella.stores.wrap.wrapper import Wrapper
from tests.fault.resuming import PACK, RANGE, World, small_steps
from tests.unit.small_repository import Small

CHUNKS = 40
SECONDS = 120
PILE_UP_SECONDS = 0.05
"""Meanwhile the workers come to wait behind the call, and the main thread behind them."""
PACE = Pace(bytes=RANGE, seconds=1e9, least_bytes=1)


class InterruptingStore(Wrapper):
    """Sends this process SIGINT in its put or sync number `call`, and holds that call until the signal was taken."""

    def __init__(self, inner: Store, call: int, taken: threading.Event, *, after: bool) -> None:
        super().__init__(inner)
        self.calls = 0
        self._call = call
        self._taken = taken
        self._after = after

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store an object."""
        here = self._here()
        if here and not self._after:
            self._interrupt()
        self._inner.put(name, content)
        if here and self._after:
            self._interrupt()

    def sync(self) -> None:
        """Make everything durable."""
        if self._here():
            self._interrupt()
        self._inner.sync()

    def _here(self) -> bool:
        self.calls += 1
        return self.calls == self._call

    def _interrupt(self) -> None:
        time.sleep(PILE_UP_SECONDS)
        os.kill(os.getpid(), signal.SIGINT)
        if threading.current_thread() is not threading.main_thread():
            assert self._taken.wait(SECONDS)


@contextmanager
def ctrl_c() -> Iterator[threading.Event]:
    """Ctrl-C raises KeyboardInterrupt in the main thread, as always, and sets the event."""
    taken = threading.Event()

    def take(number: int, frame: FrameType | None) -> None:
        taken.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, take)
    try:
        yield taken
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sampling, "choose", lambda *rest: Sample(ChunkSet(), 0))
    with small_steps():
        yield


def test_while_a_flush_waits_for_a_pack_of_a_worker(tmp_path: Path) -> None:
    """The next flush does not wait for what nobody will put, and what was stored in between is not lost."""
    let_go = threading.Event()

    class Holding(Wrapper):
        def put(self, name: str, content: Sealed | Clear) -> None:
            assert let_go.wait(SECONDS)
            super().put(name, content)

    small = Small.make(tmp_path)
    with ctrl_c(), small.opened() as repo, Outbox() as outbox, ThreadPoolExecutor(1) as threads:
        packer = Packer(repo.keys, DomainId(b"d" * 16), Holding(repo.store), repo.blobs, outbox)
        contents = [os.urandom(PACK) for _ in range(2)] + [b"in the open pack"]

        def store(content: bytes) -> ChunkId:
            id_ = packer.identify(Kind.CHUNK)(content)
            packer.store_blob(Kind.CHUNK, id_, len(content), lambda: raw_body(content))
            return id_

        ids = [store(contents[0])]
        waiting = threads.submit(store, contents[1])  # the outbox holds one pack
        while not any(pack.closed for pack in packer._held.copy()):
            time.sleep(0.001)
        ids.append(store(contents[2]))
        stopping = threading.Timer(PILE_UP_SECONDS, os.kill, (os.getpid(), signal.SIGINT))
        stopping.start()
        with pytest.raises(KeyboardInterrupt):
            packer.finish()
        stopping.join()
        let_go.set()
        ids.append(waiting.result(SECONDS))
        packer.finish()
        outbox.drain()
        assert all(repo.blobs.has(Kind.CHUNK, id_) for id_ in ids)
        assert len(packer.arrived) == 3 and not packer._held


def test_while_it_is_said_how_far_the_run_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit before that one counts: what was in the main thread's hands is torn, so nothing more is said."""
    world = World.make(tmp_path / "world", CHUNKS)
    flush = WritingSession.flush
    said: list[set[str]] = []

    def interrupted(session: WritingSession) -> None:
        said.append({name for name in world.memory.objects() if name.startswith("w/")})
        if len(said) == 3:
            raise KeyboardInterrupt
        flush(session)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(WritingSession, "flush", interrupted)
        world.run(options=BackupOptions(chunk_log2=16, workers=1, pace=PACE))
    assert said[-1] == {name for name in world.memory.objects() if name.startswith("w/")}
    world.disk.revive()
    (session,) = world.sessions()
    assert world.row().resumed_bytes == session.partial_roots[0].done << 16 > 0
    world.check()
    world.check_nothing_left()


# With three workers the main thread waits for packs of theirs, with one it puts packs itself and waits for room.
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("after", [False, True])
def test_at_any_call_to_the_store(tmp_path: Path, after: bool, workers: int) -> None:
    options = BackupOptions(chunk_log2=16, workers=workers, pace=PACE)
    fresh = World.make(tmp_path / "fresh", CHUNKS)
    call = points = 0
    while True:
        call += 1
        world = fresh.copied(tmp_path / "world")
        with ctrl_c() as taken:
            store = InterruptingStore(world.memory.connect(), call, taken, after=after)
            try:
                world.run(store, options=options)
            except KeyboardInterrupt:
                assert taken.is_set()
            else:
                break
        world.disk.revive()
        sessions = world.sessions()
        done = max((root.done for session in sessions for root in session.partial_roots), default=0)
        points += done > 0
        published = world.check(only_known=False)
        row = world.row()
        assert published or row.resumed_bytes >= done * 65536 * (done < CHUNKS), (call, done, row)
        world.check(only_known=False)
        world.check_nothing_left()
    assert call > 15 and points > 10, (call, points)
