"""The memory of first sights: what is new at a look, what is not, and a memory that was lost or damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lamella.base.ids import RepoId, SnapId, WriterId
from lamella.format.commit import Head
from lamella.format.records import AddSnap, raw
from lamella.memory.host import Host, HostMemory
from lamella.memory.pins import Sight, Sightings
from lamella.operations.backup.story import BackupOptions, Request, plan_backup
from lamella.operations.prune.removal import removals
from lamella.operations.prune.retaining import Policy, plan_retention
from lamella.operations.prune.retention import HOUR_MS, Retention
from lamella.repository.repository import Repository
from lamella_kit.scripted_source import ScriptedSource
from tests.unit.small_repository import CHUNK, WRITER, Small

ONE, TWO = WriterId(b"1" * 16), WriterId(b"2" * 16)


@pytest.fixture
def memory(tmp_path: Path) -> HostMemory:
    return Host("m" * 16, "host", tmp_path / "state", tmp_path / "cache").memory(RepoId(bytes(16)))


def head(writer: WriterId, seq: int) -> Head:
    return Head(writer, seq, bytes(32))


def test_what_is_new_at_a_look_has_its_moment(memory: HostMemory) -> None:
    sightings = Sightings(memory)
    sightings.look([head(ONE, 5)], 100)
    assert sightings.of(ONE, 5) is None  # it was there when the memory began
    sightings.look([head(ONE, 7), head(TWO, 2)], 200)
    sightings.look([head(ONE, 7), head(TWO, 2)], 300)  # nothing new
    sightings.look([head(ONE, 8)], 400)
    for again in (sightings, Sightings(memory)):
        assert [again.of(ONE, seq) for seq in (5, 6, 7, 8, 9)] == [
            None,
            Sight(200, 100),
            Sight(200, 100),
            Sight(400, 200),
            None,
        ]
        assert (again.of(TWO, 1), again.of(TWO, 3)) == (Sight(200, 100), None)


def test_an_older_state_of_the_repository_forgets_nothing(memory: HostMemory) -> None:
    sightings = Sightings(memory)
    sightings.look([head(ONE, 1)], 100)
    sightings.look([head(ONE, 9)], 200)
    sightings.look([head(ONE, 3)], 300)
    sightings.look([head(ONE, 9)], 400)
    assert sightings.of(ONE, 9) == Sight(200, 100)


def test_two_processes_add_up(memory: HostMemory) -> None:
    one, two = Sightings(memory), Sightings(memory)
    one.look([head(ONE, 1)], 100)
    two.look([head(ONE, 2)], 200)
    one.look([head(ONE, 2), head(TWO, 1)], 300)
    assert (one.of(ONE, 2), one.of(TWO, 1)) == (Sight(200, 100), Sight(300, 200))


DAMAGED = [[], {"rows": 7}, {"rows": [[1], ["zz", 1, 2, 3, 4], None]}, {"known": [1]}, {"looked_ms": "x"}]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_memory_is_a_lost_one(memory: HostMemory, content: Any) -> None:  # noqa: ANN401
    memory.replace(memory.directory / "looks.json", json.dumps(content).encode())
    sightings = Sightings(memory)
    sightings.look([head(ONE, 1)], 100)
    sightings.look([head(ONE, 2)], 200)
    assert sightings.of(ONE, 2) == Sight(200, 100)


def test_the_memory_is_bounded(memory: HostMemory) -> None:
    sightings = Sightings(memory)
    sightings.look([head(ONE, 1)], 1)
    rows = [[ONE.hex(), seq, seq, seq, 0] for seq in range(2, 5001)]
    content = {"looked_ms": 1, "known": {ONE.hex(): 5000}, "rows": rows}
    memory.replace(memory.directory / "looks.json", json.dumps(content).encode())
    sightings.look([head(ONE, 5001)], 6000)
    assert len(json.loads((memory.directory / "looks.json").read_text())["rows"]) == 4096
    assert sightings.of(ONE, 2) is None
    assert sightings.of(ONE, 5001) is not None


# -- what retention makes of it ----------------------------------------------------------------------------------------


def published(repo: Repository, made: AddSnap, number: int, time_ms: int) -> None:
    """The moment of a whole snapshot again, under another name and time."""
    snap_id = SnapId(number.to_bytes(16, "big"))
    repo.publish([raw(replace(made, snap_id=snap_id, time_ms=time_ms, name=f"snap-{number:04}"))])


@pytest.mark.parametrize(
    ("rules", "left"),
    [(Retention(last=4), 3), (Retention(last=3), 3), (Retention(daily=3), 3), (Retention(daily=4), 3)],
)
def test_a_flood_of_another_writer_pushes_none_out(tmp_path: Path, rules: Retention, left: int) -> None:
    """Dates of its own choosing, published in one go: the collector looked before, and knows better."""
    small = Small.make(tmp_path)
    day = 24 * HOUR_MS
    with small.opened() as admin:
        start = admin.clock() // day * day
        source = ScriptedSource("disk", b"a" * CHUNK)
        plan_backup(admin, [Request("disk", source)], BackupOptions(chunk_log2=16, workers=1)).execute()
        admin.reload()
        (made,) = (snapshot for snapshot in admin.catalogue.snapshots)
        for number in range(1, 4):
            now = start + number * day
            admin.clock = lambda now=now: now  # type: ignore[misc]
            admin.reload()
            published(admin, made.added, number, now)
            admin.reload()
        now = start + 4 * day
        admin.clock = lambda: now
        with small.opened("two", WRITER) as two:
            for number in range(10, 40):
                published(two, made.added, number, start + (number - 10) * HOUR_MS)
        admin.reload()
        admin.publish(removals([made.ref]))
        admin.reload()
        plan = plan_retention(admin, Policy(rules))
        own = [row.selected.snapshot.name for row in plan.kept if row.selected.snapshot.ref.writer == admin.own_writer]
        assert sorted(own) == ["snap-0003", "snap-0002", "snap-0001"][:left][::-1]
        assert {row.verdict.reasons for row in plan.strange} == {("its time cannot be true",)}
        assert len(plan.strange) == 29
