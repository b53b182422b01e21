"""The read limit: what a run reads waits its turn, whatever its threads and volumes; everything else passes through."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from lamella.operations.moments.freezing import Hooks, Moment, frozen_sources
from lamella.operations.moments.limited_volume import LimitedVolume
from lamella.stores.wrap.limited import TokenBucket
from lamella_kit.scripted_source import ScriptedSource

MIB = 1 << 20


def test_reads_wait_and_nothing_is_changed() -> None:
    slept: list[float] = []
    bucket = TokenBucket(MIB, clock=lambda: 0.0)
    content = bytes(range(256)) * (4 * MIB // 256)
    with ScriptedSource("disk", content).freeze() as inner:
        limited = LimitedVolume(inner, bucket, sleep=slept.append)
        got = bytearray(4 * MIB)
        for start in range(0, 4 * MIB, MIB):
            limited.read_into(start, memoryview(got)[start : start + MIB])
        assert bytes(got) == content
        assert slept == [1.0, 2.0, 3.0], "the first second's worth is free"
        assert (limited.size, list(limited.allocated())) == (inner.size, list(inner.allocated()))
        assert (limited.checkpoint, limited.consistency()) == (inner.checkpoint, inner.consistency())


def test_threads_share_one_limit() -> None:
    slept: list[float] = []
    mutex = threading.Lock()

    def sleep(seconds: float) -> None:
        with mutex:
            slept.append(seconds)

    bucket = TokenBucket(MIB, clock=lambda: 0.0)
    with ScriptedSource("disk", bytes(8 * MIB)).freeze() as inner, ThreadPoolExecutor(4) as threads:
        limited = LimitedVolume(inner, bucket, sleep=sleep)
        list(threads.map(lambda place: limited.read_into(place * MIB, memoryview(bytearray(MIB))), range(8)))
    assert sorted(slept) == [float(number) for number in range(1, 8)]


def test_all_sources_of_a_run_share_one_bucket() -> None:
    bucket = TokenBucket(MIB, clock=lambda: 0.0)
    sources = [ScriptedSource(name, bytes(MIB)) for name in ("a", "b")]
    with frozen_sources(sources, Hooks(), lambda: 7, lambda text: None, bucket=bucket) as moments:
        for moment in moments.values():
            assert isinstance(moment, Moment) and moment.time_ms == 7
            assert isinstance(moment.frozen, LimitedVolume)
        booked = [bucket.book(MIB), bucket.book(MIB)]
    assert booked == [0.0, 1.0]
