"""What looking costs where there is much to see: `list` and `status` of 50 volumes with 500 snapshots each."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import lamella
from bench.measure import Series
from bench.programs import Lamella
from bench.report import Target
from lamella.base.clock import now_ms, utc_text
from lamella.base.ids import SnapId
from lamella.cli.places import this_host
from lamella.crypto.slots import key_file
from lamella.format.records import NO_REF, RawRecord, raw
from lamella.operations.backup.story import Request, plan_backup
from lamella.operations.writing.session import WritingSession
from lamella.repository.repository import Repository
from lamella.stores.url import open_store

VOLUMES, RUNS = 50, 500
_HOUR_MS = 3_600_000
_BOUND_SECONDS = 0.3


def measure(work: Path, repeats: int) -> dict[str, Series]:
    """Fill a repository, look at it once to warm the caches, then look again and again."""
    program = Lamella(work)
    program.init()
    print(f"  {VOLUMES} volumes of {RUNS} snapshots each", file=sys.stderr, flush=True)
    _fill(work, program)
    series = {f"{step}/lamella": Series() for step in ("list", "list of one", "status")}
    words = {"list": ["list"], "list of one": ["list", "volume-00"], "status": ["status"]}
    program.call("verify", "--level", "structure")  # else not everything is in order, and status ends with 3
    program.call("list")
    for _ in range(max(3, repeats)):
        for step, command in words.items():
            series[f"{step}/lamella"].samples.append(program.call(*command))
    return series


def targets(series: Mapping[str, Series]) -> Iterator[Target]:
    """Seconds by the clock."""
    for name in ("list", "status"):
        wall = series[f"{name}/lamella"].wall
        yield Target(f"{name} of {VOLUMES} x {RUNS} snapshots", f"{wall:.2f} s", "0.3 s", wall <= _BOUND_SECONDS)


def _fill(work: Path, program: Lamella) -> None:
    """One real backup of all volumes; the others are its records with new names and times."""
    host = this_host(program.env)
    paths = [work / f"volume-{number:02}.img" for number in range(VOLUMES)]
    for path in paths:
        path.write_bytes(os.urandom(4096))
    secret = key_file((work / program.folder / "key").read_bytes())
    began = now_ms() - RUNS * _HOUR_MS
    with Repository.open(open_store(str(program.repository)), secret, host, clock=lambda: began) as repo:
        plan_backup(repo, [Request(None, lamella.source(str(path), host=host)) for path in paths]).execute()
        repo.reload()
        rows = [snapshot.added for snapshot in repo.catalogue.snapshots]
        for number in range(1, RUNS):
            moment = began + number * _HOUR_MS
            name = f"{utc_text(moment)}-aaaa"
            added = [
                replace(row, snap_id=SnapId(os.urandom(16)), time_ms=moment, name=name, parent=NO_REF) for row in rows
            ]
            records: list[RawRecord] = [raw(one) for one in added]
            with WritingSession(repo) as session:
                session.publish(records, [one.snap_id for one in added])
