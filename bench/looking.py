"""What looking costs where there is much to see: `list` and `status` of 50 volumes with 500 snapshots each.

And the report of 20 volumes with a snapshot on each day of a year."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import lamella
from bench.measure import Sample, Series
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
REPORTED, DAYS = 20, 365
_HOUR_MS = 3_600_000
_BOUND_SECONDS = 0.3
_REPORT_SECONDS = 1.0
_PAGE_SECONDS = 0.1


def measure(work: Path, repeats: int) -> dict[str, Series]:
    """Fill a repository, look at it once to warm the caches, then look again and again."""
    program = Lamella(work)
    program.init()
    print(f"  {VOLUMES} volumes of {RUNS} snapshots each", file=sys.stderr, flush=True)
    _fill(work, program, VOLUMES, RUNS, _HOUR_MS)
    series = {f"{step}/lamella": Series() for step in ("list", "list of one", "status")}
    words = {"list": ["list"], "list of one": ["list", "volume-00"], "status": ["status"]}
    program.call("verify", "--level", "structure")  # else not everything is in order, and status ends with 3
    program.call("list")
    for _ in range(max(3, repeats)):
        for step, command in words.items():
            series[f"{step}/lamella"].samples.append(program.call(*command))
    return series | _report(work / "year", repeats)


def _report(work: Path, repeats: int) -> dict[str, Series]:
    """The report of a year, from the second one on."""
    work.mkdir()
    program, series = Lamella(work), Series()
    program.init()
    print(f"  {REPORTED} volumes of {DAYS} snapshots each", file=sys.stderr, flush=True)
    _fill(work, program, REPORTED, DAYS, 24 * _HOUR_MS)
    words = ("report", "--html", str(work / "report.html"))
    program.call(*words)
    series.samples += [program.call(*words) for _ in range(max(3, repeats))]
    return {"report/lamella": series, "page/lamella": _pages(program, repeats)}


def _pages(program: Lamella, repeats: int) -> Series:
    """The pages of `lamella ui` about the same year, several times each; `cpu` is the server's, in the middle."""
    series = Series()
    server = subprocess.Popen(program.words("ui"), env=program.env, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = urlsplit(server.stdout.readline().strip())
        cookie = ""
        for place in [f"/?{url.query}", *["/", "/volumes", "/r/0/volume-00", "/jobs"] * max(3, repeats)]:
            began = time.perf_counter()
            connection = http.client.HTTPConnection(url.netloc, timeout=60)
            connection.request("GET", place, headers={"Cookie": cookie})
            answer = connection.getresponse()
            answer.read()
            connection.close()
            cookie = cookie or answer.headers["Set-Cookie"].partition(";")[0]
            if answer.status == 200:
                series.samples.append(Sample(wall=time.perf_counter() - began, cpu=0.0, memory=0))
        cpu = _cpu_seconds(server.pid) / max(1, len(series.samples))
    finally:
        server.terminate()
        server.wait()
    return Series([replace(sample, cpu=cpu) for sample in series.samples])


def _cpu_seconds(pid: int) -> float:
    """What a process and all its threads have used, its start included (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def targets(series: Mapping[str, Series]) -> Iterator[Target]:
    """Seconds by the clock."""
    for name in ("list", "status"):
        wall = series[f"{name}/lamella"].wall
        yield Target(f"{name} of {VOLUMES} x {RUNS} snapshots", f"{wall:.2f} s", "0.3 s", wall <= _BOUND_SECONDS)
    wall = series["report/lamella"].wall
    page = series["page/lamella"].wall
    yield Target("pages of lamella ui", f"{1000 * page:.0f} ms", "100 ms", page <= _PAGE_SECONDS)
    yield Target(f"report of {REPORTED} x {DAYS} snapshots", f"{wall:.2f} s", "1 s", wall <= _REPORT_SECONDS)


def _fill(work: Path, program: Lamella, volumes: int, runs: int, every_ms: int) -> None:
    """One real backup of all volumes; the others are its records with new names and times."""
    host = this_host(program.env)
    paths = [work / f"volume-{number:02}.img" for number in range(volumes)]
    for path in paths:
        path.write_bytes(os.urandom(4096))
    secret = key_file((work / program.folder / "key").read_bytes())
    began = now_ms() - runs * every_ms
    with Repository.open(open_store(str(program.repository)), secret, host, clock=lambda: began) as repo:
        plan_backup(repo, [Request(None, lamella.source(str(path), host=host)) for path in paths]).execute()
        repo.reload()
        rows = [snapshot.added for snapshot in repo.catalogue.snapshots]
        for number in range(1, runs):
            moment = began + number * every_ms
            name = f"{utc_text(moment)}-aaaa"
            added = [
                replace(row, snap_id=SnapId(os.urandom(16)), time_ms=moment, name=name, parent=NO_REF) for row in rows
            ]
            records: list[RawRecord] = [raw(one) for one in added]
            with WritingSession(repo) as session:
                session.publish(records, [one.snap_id for one in added])
