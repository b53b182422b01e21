"""Snapshots by date: the newest at or before, in local time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from lamella.base.errors import NothingMatched
from lamella.operations.shared.dates import moment_ms
from lamella.operations.shared.selection import select
from tests.unit.small_repository import Small, image

ZONES = ("UTC", "Europe/Berlin", "America/St_Johns")


@pytest.fixture(params=ZONES)
def zone(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield str(request.param)
    time.tzset()


def shown(text: str, now: str = "2026-03-29T12:00:00") -> str | None:
    moment = moment_ms(text, datetime.fromisoformat(now).astimezone())
    return None if moment is None else datetime.fromtimestamp(moment / 1000).isoformat(timespec="milliseconds")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-28", "2026-03-28T23:59:59.999"),
        ("2026-03-29", "2026-03-29T23:59:59.999"),  # the day of the change to summer time in Berlin
        ("2026-10-25", "2026-10-25T23:59:59.999"),
        ("today", "2026-03-29T23:59:59.999"),
        ("yesterday", "2026-03-28T23:59:59.999"),
        ("2026-03-28T18:30", "2026-03-28T18:30:59.999"),
        ("2026-03-28 18:30:05", "2026-03-28T18:30:05.999"),
        ("30min", "2026-03-29T11:30:00.000"),
        ("2h", "2026-03-29T10:00:00.000"),
        ("2026-02-30", None),
        ("2026-3-28", None),
        ("20260328", None),
        ("h", None),
        ("-2h", None),
        ("2026-03-28T25:00", None),
    ],
)
def test_what_a_date_means(zone: str, text: str, moment: str | None) -> None:
    assert shown(text) == moment


def test_the_newest_at_or_before_a_date(small: Small, tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", "a")
    names = [small.backup(disk).snapshot for _ in range(3)]
    with small.opened() as repo:
        rows = select(repo, [])
        times = [datetime.fromtimestamp(row.snapshot.added.time_ms / 1000) for row in rows]
        for name, when in zip(names, times, strict=True):
            assert select(repo, [f"disk@{when:%Y-%m-%dT%H:%M:%S}"])[0].snapshot.name == name
        assert select(repo, ["disk@2400-01-01"])[0].snapshot.name == names[-1]
        with pytest.raises(NothingMatched, match=f"the oldest is {names[0]}"):
            select(repo, ["disk@1980-01-01"])
        with pytest.raises(NothingMatched, match="has no snapshot nonsense"):
            select(repo, ["disk@nonsense"])
        assert select(repo, [f"disk@{names[1][:20]}"])[0].snapshot.name == names[1]  # a name comes first


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small.make(tmp_path)
