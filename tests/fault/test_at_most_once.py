"""One key and nonce never seal two bodies: under one salt, a (kind, id) is sealed at most once (FORMAT 4)."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lamella.base.ids import ChunkId, DomainId
from lamella.base.trust import Sealed
from lamella.crypto.seal import PackSealer
from lamella.format.container import Kind
from lamella.format.encoder import Encoder
from lamella.operations.backup.story import BackupOptions
from lamella.operations.shared.ranges import RANGE
from lamella.packs.packer import Packer
from lamella.repository.repository import Repository
from lamella.run.pipeline import Outbox
from lamella.stores.memory import MemoryStore
from lamella_kit.scripted_source import ScriptedSource
from tests.fault.world import CHUNK, SECRET, Truth, backup, check_rescue, check_sound, host_at, init


@dataclass
class Seals:
    """Everything that was sealed while the test ran."""

    made: Counter[tuple[bytes, int, bytes]] = field(default_factory=Counter)
    bodies: dict[ChunkId, set[bytes]] = field(default_factory=dict)
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        assert self.made
        twice = [key for key, count in self.made.items() if count > 1]
        assert not twice, f"{len(twice)} sealed twice under one salt"


@pytest.fixture
def seals(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seals]:
    seen = Seals()
    real = PackSealer.seal

    def seal(self: PackSealer, kind: Kind, id_: ChunkId, body: bytes) -> Sealed:
        with seen.mutex:
            seen.made[self.salt, kind, id_] += 1
            seen.bodies.setdefault(id_, set()).add(body)
        return real(self, kind, id_, body)

    monkeypatch.setattr(PackSealer, "seal", seal)
    yield seen
    seen.check()


def test_the_same_chunk_met_by_two_workers_that_choose_different_codecs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seals: Seals
) -> None:
    """Both workers hold the chunk at once: both asked whether it is taken before either took it."""
    store, host, truth = MemoryStore(), host_at(tmp_path / "host"), Truth()
    init(store, host)
    chunk = b"the same" * (CHUNK // 8)
    content = chunk * (2 * RANGE // CHUNK)
    together = threading.Barrier(2, timeout=30)
    met = threading.local()
    real = Packer.pending
    meetings = []

    def pending(self: Packer, id_: ChunkId) -> bool:
        answer = real(self, id_)
        if not getattr(met, "done", False) and threading.current_thread() is not threading.main_thread():
            met.done = True
            together.wait()
            meetings.append(answer)
        return answer

    real_encode = Encoder.encode
    workers = itertools.count()

    def encode(self: Encoder, part: memoryview) -> bytes:
        if not hasattr(met, "raw"):
            met.raw = next(workers) % 2 == 1
        return real_encode(Encoder("off") if met.raw else self, part)

    monkeypatch.setattr(Packer, "pending", pending)
    monkeypatch.setattr(Encoder, "encode", encode)
    options = BackupOptions(chunk_log2=16, workers=2)
    result = backup(store, host, ScriptedSource("disk", content), options=options)
    assert meetings == [False, False], "the race did not happen"
    assert next(workers) >= 1
    truth.learn(result, {"disk": content})
    check_sound(store, host, truth, tmp_path)


DOMAIN = DomainId(b"d" * 16)
CONTENTS = [bytes([number]) * (200 + number) for number in range(60)]


def hammer(packer: Packer, repo: Repository, seed: int, start: threading.Barrier) -> int:
    """Store contents at random, some of them failing half-way; returns how many failed."""
    chance, failed = random.Random(seed), 0
    identify = packer.identify(Kind.CHUNK)
    start.wait()
    for content in chance.choices(CONTENTS, k=400):

        def body(content: bytes = content) -> bytes:
            if chance.random() < 0.1:
                raise OSError("no")
            return Encoder("off" if seed % 2 else "auto").encode(content)

        id_ = identify(content)
        if packer.pending(id_) or (packer.may_be_stored(id_) and repo.blobs.has(Kind.CHUNK, id_)):
            continue
        try:
            packer.store_blob(Kind.CHUNK, id_, len(content), body)
        except OSError:
            failed += 1
    return failed


def test_a_packer_under_many_threads_with_few_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seals: Seals
) -> None:
    """Threads store the same ids with different bodies, some of them failing half-way, packs closing all the time."""
    monkeypatch.setattr("lamella.packs.packer.INCREMENTAL_TARGET", 3000)
    monkeypatch.setattr("lamella.packs.packer.BULK_TARGET", 5000)
    store, host = MemoryStore(), host_at(tmp_path / "host")
    init(store, host)
    with Repository.open(store, SECRET, host) as repo, Outbox() as outbox:
        packer = Packer(repo.keys, DOMAIN, store, repo.blobs, outbox)
        start = threading.Barrier(8)
        with ThreadPoolExecutor(8) as threads:
            failed = list(threads.map(lambda seed: hammer(packer, repo, seed, start), range(8)))
        packer.finish()
        outbox.drain()
        assert sum(failed) > 3 and len(packer.packs) > 5
        identify = packer.identify(Kind.CHUNK)
        for content in CONTENTS:
            if repo.blobs.has(Kind.CHUNK, identify(content)):
                assert repo.contents.get(DOMAIN, Kind.CHUNK, identify(content), len(content)) == content


def test_whole_runs_with_many_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seals: Seals) -> None:
    """Repeated contents, several volumes in one domain, small packs: nothing is ever sealed twice under one salt."""
    monkeypatch.setattr("lamella.packs.packer.INCREMENTAL_TARGET", 40_000)
    store, host, truth = MemoryStore(), host_at(tmp_path / "host"), Truth()
    init(store, host)
    chance = random.Random(7)
    kinds = [chance.randbytes(CHUNK), b"text " * (CHUNK // 5) + b"....."[: CHUNK % 5], chance.randbytes(CHUNK)]
    options = BackupOptions(chunk_log2=16, workers=8, domain="shared", documents={"same": b"text"})
    for _ in range(3):
        contents = {name: b"".join(chance.choices([*kinds, bytes(CHUNK)], k=300)) for name in ("a", "b", "c")}
        sources = [ScriptedSource(name, content) for name, content in contents.items()]
        truth.learn(backup(store, host, *sources, options=options), contents)
        kinds.append(chance.randbytes(CHUNK))
    check_sound(store, host, truth, tmp_path)
    check_rescue(store.objects(), truth, tmp_path)
