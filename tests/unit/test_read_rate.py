"""The read limit: what a run reads waits its turn, whatever its threads and volumes, and is read unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lamella.operations.backup.story import Request, plan_backup
from lamella.operations.restore.restore import plan_restore
from lamella.operations.shared.ranges import RANGE
from lamella.operations.shared.selection import select
from lamella.operations.writing import chunks
from lamella.stores.wrap import limited
from lamella.stores.wrap.limited import TokenBucket
from lamella_kit.scripted_source import ScriptedSource
from tests.unit.small_repository import OPTIONS, Small

LIMITED = replace(OPTIONS, read_rate=RANGE, workers=1)
"""One range a second, and the first second's worth at once."""


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small.make(tmp_path)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each read waited; the clock stands still."""
    waits: list[float] = []
    monkeypatch.setattr(chunks, "sleep", waits.append)
    monkeypatch.setattr(limited, "TokenBucket", lambda rate: TokenBucket(rate, clock=lambda: 0.0))
    return waits


def test_reads_wait_and_nothing_is_changed(small: Small, slept: list[float]) -> None:
    content = bytes(range(256)) * (4 * RANGE // 256)
    with small.opened() as repo:
        result = plan_backup(repo, [Request(None, ScriptedSource("disk", content))], LIMITED).execute()
        assert result.complete and result.volumes[0].read_bytes == len(content)
        plan_restore(repo, select(repo, [])[0], small.place / "out.img").execute()
    assert slept == [1.0, 2.0, 3.0], "the first second's worth is free"
    assert (small.place / "out.img").read_bytes() == content


def test_threads_share_one_limit(small: Small, slept: list[float]) -> None:
    source = ScriptedSource("disk", bytes(8 * RANGE))
    with small.opened() as repo:
        plan_backup(repo, [Request(None, source)], replace(LIMITED, workers=4)).execute()
    assert sorted(slept) == [float(number) for number in range(1, 8)]


def test_all_sources_of_a_run_share_one_limit(small: Small, slept: list[float]) -> None:
    sources = [ScriptedSource(name, bytes(RANGE)) for name in ("a", "b")]
    with small.opened() as repo:
        plan_backup(repo, [Request(None, source) for source in sources], LIMITED).execute()
    assert slept == [1.0]


def test_without_a_limit_nothing_waits(small: Small, slept: list[float]) -> None:
    with small.opened() as repo:
        plan_backup(repo, [Request(None, ScriptedSource("disk", bytes(4 * RANGE)))], OPTIONS).execute()
    assert slept == []
