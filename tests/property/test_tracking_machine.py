"""Any life of a tracked volume: changed, resized, monitored, backed up to two repositories, killed and stopped anywhere
and gone on with, with the host's memory lost, copied, edited and rolled back.

Every snapshot must restore to the bytes of its moment. What the host remembers may cost a comparison, never bytes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lamella.base.durable import write_durably
from lamella.memory import writing as writing_module
from lamella.operations.backup.story import BackupOptions, BackupResult, Pace, Request, plan_backup
from lamella.operations.moments.monitor import monitor
from lamella.operations.shared import reading
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.stores.base import Store
from lamella.stores.memory import MemoryStore
from lamella_kit.crash_store import ALL_CALLS, CrashPoint, CrashStore, PowerCut
from lamella_kit.tracked_source import Killed, TrackedDisk
from tests.fault.world import CHUNK, SECRET, host_at, init, restored

LOG2 = (16, 17)
"""The second repository has coarser chunks: intervals must serve both."""
MOST = 9 * CHUNK
MONITOR = None
which = st.sampled_from((0, 1))
runs = st.sampled_from((0, 1, MONITOR))
sizes = st.one_of(st.sampled_from([0, 1, CHUNK, CHUNK + 1, 2 * CHUNK, 7 * CHUNK, MOST]), st.integers(0, MOST))
edits = st.tuples(st.sampled_from(["write", "zero", "resize"]), sizes, st.sampled_from([1, CHUNK, 3 * CHUNK]))
Edit = tuple[str, int, int]
Life = list[tuple[list[Edit], int | None]]
lives = st.lists(
    st.tuples(st.lists(edits, max_size=3), st.sampled_from((0, 1, MONITOR, MONITOR))), min_size=1, max_size=6
)
COPY = "copy of the other"
PACE = Pace(bytes=CHUNK, seconds=1e9, least_bytes=1)
"""A point to go on from after every range that is read."""
FIELDS: dict[str, Callable[[Any], Any]] = {
    "seq": lambda value: value + 1,
    "root": lambda value: value[::-1] if value[::-1] != value else "00" * 24,
    "size": lambda value: value + 1,
    "chunk_log2": lambda value: 33 - value,
    "checkpoint": lambda value: value + "0",
    "snap_id": lambda value: "00" * 16,
    "driver": lambda value: "other",
}

# A moment of other bytes is what a ledger must be kept from naming.
fields = st.sampled_from([*sorted(FIELDS), COPY, "checkpoint", "checkpoint", "checkpoint"])


@contextmanager
def stopped_at(disk: TrackedDisk, read: int) -> Iterator[None]:
    """Ctrl-C while the disk is read for the n-th time."""
    last, real = disk.log["read_into"] + read, TrackedDisk.counted

    def counted(self: TrackedDisk, method: str) -> AbstractContextManager[None]:
        if method == "read_into" and self.log[method] + 1 >= last:
            raise KeyboardInterrupt
        return real(self, method)

    with patch.object(TrackedDisk, "counted", counted):
        yield


class StateKill:
    """Kills the process before or after the n-th durable write of what the host remembers."""

    def __init__(self, at: int, after: bool) -> None:
        self.at, self.after, self.count = at, after, 0
        self._write = write_durably

    def __call__(self, path: Path, content: bytes) -> None:
        self.count += 1
        if self.count == self.at and not self.after:
            raise Killed("killed before a write of the state")
        self._write(path, content)
        if self.count == self.at:
            raise Killed("killed after a write of the state")

    @contextmanager
    def armed(self) -> Iterator[None]:
        with patch.object(writing_module, "write_durably", self):
            yield


class Tracking(RuleBasedStateMachine):
    """The rules. `sure[n]` is whether the next backup to repository n must be incremental; False: it must compare."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="lamella-tracking-"))
        self.host = host_at(self.place)
        self.stores = [MemoryStore(), MemoryStore()]
        self.disk = TrackedDisk("disk", bytearray())
        self.patches = ExitStack()
        self.patches.enter_context(patch.object(reading, "RANGE", 2 * CHUNK))
        self.truth: dict[tuple[int, str], bytes] = {}
        self.sure: list[bool | None] = [False, False]
        self.monitored = [False, False]
        self.writes = 0
        for store in self.stores:
            init(store, self.host)

    def teardown(self) -> None:
        try:
            for number in (0, 1):
                self.check(number)
        finally:
            self.patches.close()
            shutil.rmtree(self.place)

    # -- the volume ------------------------------------------------------------------------------------------------

    @initialize(size=sizes)
    def begin(self, size: int) -> None:
        self.disk.content[:] = b"a" * size

    def change(self, edits: list[Edit]) -> None:
        content = self.disk.content
        for kind, place, length in edits:
            self.writes += 1
            start = min(place, len(content))
            end = min(start + length, len(content))
            if kind == "resize":
                content[:] = bytes(content[:place]).ljust(place, b"\0")
            else:
                # Few contents, so that old bytes come back.
                content[start:end] = (b"\0" if kind == "zero" else b"%d" % (self.writes % 3)) * (end - start)

    # -- runs ------------------------------------------------------------------------------------------------------

    def run(self, number: int, store: Store | None = None) -> BackupResult:
        with Repository.open(store or self.stores[number], SECRET, self.host) as repo:
            # A host that lost its state is another writer, which an admin lets act for the one of before.
            options = BackupOptions(chunk_log2=LOG2[number], workers=1, pace=PACE, adopt=True)
            result = plan_backup(repo, [Request("disk", self.disk.source())], options).execute()
        told = [text for text in result.warnings if "the source shrank" not in text]
        assert (result.complete, told) == (True, []), result
        return result

    @rule(life=lives)
    def live(self, life: Life) -> None:
        """Changes and runs, undisturbed."""
        for edits, number in life:
            self.change(edits)
            if number is None:
                self.monitor()
            else:
                self.backup(number)

    def backup(self, number: int) -> None:
        known = any(repository == number for repository, _ in self.truth)
        result = self.run(number)
        row = result.volumes[0]
        event(f"{row.mode}{' over intervals' if self.monitored[number] else ''}, {self.sure[number]}")
        event(f"{row.mode}, {'gone on with' if row.resumed_bytes else 'from the start'}")
        if known and self.sure[number] is not None:
            assert row.mode == ("incremental" if self.sure[number] else "compare"), row
        if row.mode != "incremental":
            assert row.reason
        self.truth[number, result.snapshot] = bytes(self.disk.content)
        self.check(number, result.snapshot)
        self.sure[number], self.monitored[number] = True, False
        self.nothing_left_over()

    def monitor(self) -> None:
        result = monitor(self.host, self.disk.source())
        self.monitored = [self.monitored[n] or self.sure[n] is not False for n in (0, 1)]
        assert result.intervals <= 2
        self.nothing_left_over()

    @rule(
        edits=st.lists(edits, max_size=3),
        where=st.sampled_from(["source", "source", "state", "store", "stop", "stop"]),
        number=runs,
        call=st.integers(1, 40),
        after=st.booleans(),
    )
    def kill(self, edits: list[Edit], where: str, number: int | None, call: int, after: bool) -> None:
        """A run that is killed before or after some call to the source, to the store, or some durable write."""
        self.break_off(edits, where, number, call, after)

    def break_off(self, edits: list[Edit], where: str, number: int | None, call: int, after: bool) -> None:
        self.change(edits)
        if where == "state":
            with StateKill(call % 6 + 1, after).armed():
                self.attempt(number, None)
        elif where == "store" and number is not None:
            point = CrashPoint(call, after)
            self.attempt(number, CrashStore(self.stores[number].objects(), point, counted=ALL_CALLS))
        elif where == "stop":
            with stopped_at(self.disk, call % 8 + 1):
                self.attempt(number, None)
        else:
            self.disk.revive()
            self.disk.faults.kill_at, self.disk.faults.kill_after = call % 16 + 1, after
            self.attempt(number, None)

    @rule(
        number=which,
        breaks=st.lists(
            st.tuples(st.lists(edits, max_size=3), st.sampled_from(["stop", "source", "store"]), st.integers(1, 40)),
            min_size=1,
            max_size=3,
        ),
        monitored=st.booleans(),
    )
    def break_off_and_go_on(self, number: int, breaks: list[tuple[list[Edit], str, int]], monitored: bool) -> None:
        """Broken off again and again, with changes in between, until it comes to its end."""
        self.change([("resize", MOST, 0), ("write", 0, MOST)])
        for edits, where, call in breaks:
            self.break_off(edits, where, number, call, False)
            if monitored:
                monitor(self.host, self.disk.source())
        self.monitored[number] = self.monitored[number] or monitored
        self.change(breaks[0][0])
        self.backup(number)

    def attempt(self, number: int | None, store: CrashStore | None) -> None:
        """A run that may be killed: nothing is certain afterwards but the snapshots."""
        try:
            if number is None:
                monitor(self.host, self.disk.source())
            else:
                self.run(number, store)
        except (Killed, PowerCut):
            event("killed")
        except KeyboardInterrupt:
            event("stopped")
        self.disk.revive()
        if number is None:
            self.sure = [None if one else one for one in self.sure]
            self.monitored = [True, True]
            return
        if store is not None:
            survivors = [index for index in range(len(store.unsynced)) if index % 2]
            self.stores[number] = store.after_crash(survivors)
        self.sure[number] = None
        self.learn(number)

    def learn(self, number: int) -> None:
        """A killed run may have committed; then its snapshot must be of this moment."""
        with Repository.open(self.stores[number], SECRET, self.host) as repo:
            for one in select(repo, []) if repo.catalogue.snapshots else []:
                self.truth.setdefault((number, one.snapshot.name), bytes(self.disk.content))

    # -- the host's memory -----------------------------------------------------------------------------------------

    def ledger(self, number: int) -> Path:
        with Repository.open(self.stores[number], SECRET, self.host) as repo:
            return repo.memory.directory / "ledger.json"

    def links(self) -> list[Path]:
        return sorted((self.host.state_dir / "intervals").glob("*/*.json"))

    @rule(what=st.sampled_from(["cache", "state", "ledger 0", "ledger 1", "a moment", "the cache again"]))
    def lose(self, what: str) -> None:
        if what == "state":
            shutil.rmtree(self.host.state_dir, ignore_errors=True)
            self.sure, self.monitored = [False, False], [False, False]
        elif what == "a moment":
            if self.disk.moments:
                del self.disk.moments[min(self.disk.moments)]
                self.sure = [None if one else one for one in self.sure]
        elif what.startswith("ledger"):
            number = int(what[-1])
            self.ledger(number).unlink(missing_ok=True)
            self.sure[number] = False
        else:
            shutil.rmtree(self.host.cache_dir, ignore_errors=True)

    @rule(first=edits, second=edits, number=which, field=fields, then=st.booleans())
    def spoil_the_ledger(self, first: Edit, second: Edit, number: int, field: str, then: bool) -> None:
        self.live([([first], 1 - number), ([second], number)])
        if field == COPY:
            self.copy_the_ledger_of_the_other(number)
        else:
            self.edit_the_ledger(number, field)
        if then:
            self.backup(number)

    def edit_the_ledger(self, number: int, field: str) -> None:
        path = self.ledger(number)
        if not path.exists():
            return
        content = json.loads(path.read_text())
        for row in content["volumes"].values():
            old = row["entry"][field]
            # Another moment that exists is the worst that a ledger can name.
            others = sorted(set(self.disk.moments) - {old})
            row["entry"][field] = others[-1] if field == "checkpoint" and others else FIELDS[field](old)
        path.write_text(json.dumps(content))
        self.sure[number] = False

    def copy_the_ledger_of_the_other(self, number: int) -> None:
        source, target = self.ledger(1 - number), self.ledger(number)
        if source.exists() and target.exists():
            rows = list(json.loads(source.read_text())["volumes"].values())
            content = json.loads(target.read_text())
            content["volumes"] = dict.fromkeys(content["volumes"], rows[0] if rows else None)
            target.write_text(json.dumps(content))
            self.sure[number] = False

    @rule(
        life=lives,
        number=which,
        edits=st.tuples(edits, edits),
        how=st.sampled_from(["lose", "edit", "edit", "exchange"]),
        then=st.sampled_from((0, 1, MONITOR, "nothing")),
    )
    def spoil_the_intervals(
        self, life: Life, number: int, edits: tuple[Edit, Edit], how: str, then: int | str | None
    ) -> None:
        self.live([*life, ([], number), ([edits[0]], MONITOR), ([edits[1]], MONITOR)][-5:])
        self.spoil_links(how)
        if not isinstance(then, str):
            self.live([([], then)])

    def spoil_links(self, how: str) -> None:
        links = self.links()
        contents = [link.read_bytes() for link in links]
        for position, link in enumerate(links):
            if how == "lose":
                link.unlink()
            elif how == "edit":
                content = json.loads(contents[position])
                interval = content["interval"]
                interval["changed"] = [] if interval["changed"] else [[0, 1]]
                link.write_text(json.dumps(content))
            elif len(links) > 1:
                link.write_bytes(contents[position - 1])
        if how != "exchange" or len(links) > 1:
            # Whose base leads on by a link has lost its moment long ago.
            self.sure = [
                False if through and one else one for one, through in zip(self.sure, self.monitored, strict=True)
            ]

    @rule(what=st.sampled_from(["state", "cache", "intervals"]), back=st.booleans())
    def travel_in_time(self, what: str, back: bool) -> None:
        """Copy a directory, or go back to the copy."""
        place, copy = self.directory(what), self.place / f"saved-{what}"
        source, target = (copy, place) if back else (place, copy)
        if source.exists():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
            if back and what != "cache":
                self.sure, self.monitored = [None, None], [True, True]

    def directory(self, what: str) -> Path:
        return {
            "state": self.host.state_dir,
            "cache": self.host.cache_dir,
            "intervals": self.host.state_dir / "intervals",
        }[what]

    # -- the law ---------------------------------------------------------------------------------------------------

    def check(self, number: int, only: str = "") -> None:
        with Repository.open(self.stores[number], SECRET, self.host) as repo:
            there = {one.snapshot.name: one for one in select(repo, [])} if repo.catalogue.snapshots else {}
            expected = {name: content for (repository, name), content in self.truth.items() if repository == number}
            assert set(there) == set(expected)
            for name in [only] if only else expected:
                got = restored(repo, there[name], self.place / "out.img")
                assert got == expected[name], f"{name} restores to other bytes than there were"

    def nothing_left_over(self) -> None:
        """Every moment that is left is the base of a ledger, or what an interval leads to."""
        repositories = self.host.state_dir / "repo"
        memory = [*repositories.glob("*/ledger.json"), *repositories.glob("*/unfinished.json"), *self.links()]
        named = {word for path in memory for word in _texts(json.loads(path.read_text()))}
        assert set(self.disk.moments) <= named, (self.disk.moments.keys(), named)
        # One for each repository, and what a broken run to the other one had read and was reading.
        assert len(self.disk.moments) <= 4

    @invariant()
    def the_process_is_alive(self) -> None:
        assert not self.disk.dead


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, one in value.items():
            if key in ("checkpoint", "end"):
                yield str(one)
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


TestTracking = Tracking.TestCase
TestTracking.settings = settings(
    max_examples=max(10, settings().max_examples // 5),
    stateful_step_count=9 if settings().max_examples <= 100 else 60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
