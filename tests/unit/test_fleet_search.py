"""A search of the fleet's catalogue finds the same snapshots, whichever tables its query begins with."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from lamella.cli.fleet.catalogue import DAY_MS, FleetCatalogue, Wanted

_NOW = datetime(2026, 11, 30, tzinfo=UTC)
_NOW_MS = int(_NOW.timestamp() * 1000)
_DAYS = 9


def _answer(host: int) -> str:
    """A look at a host of three volumes, saved on every day but some."""
    rows = []
    for number in range(3):
        days = [day for day in range(_DAYS, 0, -1) if (day + number + host) % 4]
        history = [
            {"snapshot": f"s{host}{day}", "time": f"{_NOW - timedelta(day):%Y-%m-%dT%H:%M:%S.000Z}",
             "stored_bytes": day, "good": True, "consistency": "live", "tags": []}
            for day in days
        ]  # fmt: skip
        rows.append(
            {"name": f"vm{number}{'' if host % 2 else ':root'}", "consistency": "live", "size": 1,
             "snapshots": len(days), "trouble": "", "verdict": "ok", "level": "sample", "verified_ms": 0,
             "drill": "", "drilled_ms": 0, "history": history, "failed": []}
        )  # fmt: skip
    return json.dumps({"keys": True, "never": {}, "problems": [], "packs": 1, "stored_bytes": 1, "volumes": rows})


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetCatalogue]:
    with FleetCatalogue.open(tmp_path_factory.mktemp("fleet") / "catalogue.sqlite") as found:
        for host in range(7):
            found.take_in(f"host{host}", _NOW_MS, json.loads(_answer(host)))
        yield found


def test_both_ways_find_the_same(catalogue: FleetCatalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, volumes = ("*", "host3", "host[0-2]", "nobody"), ("*", "vm1", "vm[12]*", "*:root", "none")
    times = ((0, _NOW_MS), (_NOW_MS - 3 * DAY_MS, _NOW_MS - 2 * DAY_MS), (_NOW_MS, _NOW_MS + 1))
    chosen, found = set(), 0
    for host, volume, (since, before), most in itertools.product(hosts, volumes, times, (5, 1000)):
        wanted = Wanted(host, volume, since, before, most)
        chosen.add(catalogue._begins_with_volumes(wanted))
        answers = []
        for way in (True, False):
            monkeypatch.setattr(FleetCatalogue, "_begins_with_volumes", lambda _self, _wanted, way=way: way)
            rows, more = catalogue.search(wanted)
            monkeypatch.undo()
            times_found = [row["time_ms"] for row in rows]
            assert times_found == sorted(times_found, reverse=True) and len(rows) <= most
            # Of snapshots of one moment any may be left out where there are too many.
            answers.append((times_found, more, None if more else sorted(map(str, rows))))
        assert answers[0] == answers[1], wanted
        found += len(answers[0][0])
    assert chosen == {True, False} and found > 300


def test_a_narrow_time_begins_with_runs_and_one_volume_with_volumes(catalogue: FleetCatalogue) -> None:
    day = (_NOW_MS - 3 * DAY_MS, _NOW_MS - 2 * DAY_MS)
    assert not catalogue._begins_with_volumes(Wanted("*", "vm[12]*", *day))
    assert catalogue._begins_with_volumes(Wanted(volume="vm1", most=1000))
