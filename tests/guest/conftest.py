"""The tests of this directory run in a guest machine, all in one boot; outside, their results are played back.

Outside, the guest is started when the tests have been collected and works beside the other tests, which come first.
Inside (LAMELLA_GUEST is set), every report is written to the shared directory as pytest serialises it. So each test
counts, fails and is skipped outside exactly as it did inside.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.features import require
from tests.guest import machine
from tests.guest.beside import new_place, start
from tests.guest.machine import Guest, SeenGuest

if TYPE_CHECKING:
    from tests.guest.lvm import Pool

pytest.register_assert_rewrite("lamella_kit.source_contract", "lamella_kit.source_reading", "tests.guest.lvm")
pytest.register_assert_rewrite("tests.qubes.stories")

HERE = Path(__file__).parent
INSIDE = "LAMELLA_GUEST" in os.environ
SECONDS = float(os.environ.get("LAMELLA_GUEST_SECONDS", "4200"))
SHORT = {
    "test_the_guest_has_device_mapper_a_disk_and_this_tree",
    "test_several_volumes_are_frozen_before_any_is_read",
    "test_a_pool_above_a_limit_is_refused_and_left_as_it_is",
    "test_any_range_can_be_read",
    "test_two_moments_at_once",
    "test_nothing_outside_a_delta_changed[one byte]",
}
"""What `make test` runs in the guest: where the processor is a program, a test that starts Lamella takes a minute."""
_playback = pytest.StashKey["Playback"]()
_figures = pytest.StashKey[list[str]]()


class Playback:
    """The guest, and what it reported so far."""

    def __init__(self, config: pytest.Config, guest: Guest | SeenGuest) -> None:
        self._config = config
        self._guest = guest
        self._deadline = time.monotonic() + SECONDS
        self._read = 0
        self._rest = b""
        self._reports: dict[str, list[pytest.TestReport]] = {}

    def reports(self, nodeid: str) -> list[pytest.TestReport]:
        """All reports of a test, when it has ended; those that there are if the guest ended before."""
        while not self._complete(nodeid):
            gone = self._guest.ended(0.2)
            self._take()
            if gone or time.monotonic() > self._deadline:
                break
        return self._reports.get(nodeid, [])

    def complete(self, nodeid: str) -> bool:
        """Whether the test ran to its end."""
        return self._complete(nodeid)

    def last_words(self) -> str:
        """Why the guest did not get that far."""
        late = "" if self._guest.ended(0) else f"the guest did not end within {SECONDS:g} s\n"
        return f"{late}the guest ended before this test did\n{self._guest.last_words()}"

    def close(self) -> None:
        """End the guest; its disk goes with it."""
        self._guest.close()
        self._guest.out.with_name("disk").unlink(missing_ok=True)

    def _complete(self, nodeid: str) -> bool:
        return any(report.when == "teardown" for report in self._reports.get(nodeid, []))

    def _take(self) -> None:
        path = self._guest.out / "reports"
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read)
            content = file.read()
        self._read += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=json.loads(line))
            if isinstance(report.longrepr, list):  # where a test was skipped: a tuple, which JSON has not
                report.longrepr = tuple(report.longrepr)
            self._reports.setdefault(report.nodeid, []).append(report)


def _of_guest(item: pytest.Item) -> bool:
    return HERE in item.path.parents


@pytest.hookimpl(tryfirst=True)  # before items are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Outside, tests of the guest come last: it works while the others run. All but the SHORT ones are slow."""
    if INSIDE:
        return
    items.sort(key=_of_guest)
    for item in filter(_of_guest, items):
        item.add_marker(pytest.mark.timeout(0))
        if item.name not in SHORT:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the guest if anything is wanted of it."""
    items = [item for item in session.items if _of_guest(item)]
    if INSIDE or not items or session.config.option.collectonly or machine.missing():
        return
    shared = getattr(session.config, "workerinput", {}).get("guest")
    # One of several processes: the guest is there for all of them (tests/conftest.py).
    guest = SeenGuest(Path(shared)) if shared else start(new_place(session.config), [item.nodeid for item in items])
    session.config.stash[_playback] = Playback(session.config, guest)


def pytest_unconfigure(config: pytest.Config) -> None:
    """The guest does not outlive the tests."""
    playback = config.stash.get(_playback, None)
    if playback is not None and not hasattr(config, "workerinput"):
        playback.close()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Play back what the guest reported of a test."""
    playback = item.config.stash.get(_playback, None)
    if playback is None or not _of_guest(item):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in playback.reports(item.nodeid):
        _show(item.config, report)
        item.ihook.pytest_runtest_logreport(report=report)
    if not playback.complete(item.nodeid):
        lost = pytest.TestReport(
            item.nodeid, item.location, {}, "failed", playback.last_words(), "call", duration=0, start=0, stop=0
        )
        item.ihook.pytest_runtest_logreport(report=lost)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _show(config: pytest.Config, report: pytest.TestReport) -> None:
    if report.when == "call":
        lines = config.stash.setdefault(_figures, [])
        lines += [f"{report.nodeid.rpartition('::')[2]}: {name} {value}" for name, value in report.user_properties]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show the figures that tests recorded."""
    lines = config.stash.get(_figures, [])
    if lines:
        terminalreporter.section("figures from the guest")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Inside: hand the report out."""
    if INSIDE and _config is not None:
        data = _config.hook.pytest_report_to_serializable(config=_config, report=report)
        with (machine.SHARED / "reports").open("a") as file:
            file.write(json.dumps(data, default=str) + "\n")


_config: pytest.Config | None = None


def pytest_configure(config: pytest.Config) -> None:
    """Remember the configuration: reports are serialised with it."""
    global _config
    _config = config


@pytest.fixture(autouse=True)
def guest(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests run in a guest or not at all."""
    require("lvm-guest", INSIDE, machine.missing() or "the guest was not started")
    # The guest's processor is a program.
    monkeypatch.setattr("tests.cli.program.SECONDS", 280)


@pytest.fixture(scope="session")
def shared_pool() -> Iterator[Pool]:
    """The pool of the guest; it is made once."""
    require("lvm-guest", INSIDE, machine.missing() or "the guest was not started")
    from tests.guest.lvm import pool_on_the_disk

    with pool_on_the_disk() as found:
        yield found


@pytest.fixture
def pool(shared_pool: Pool) -> Iterator[Pool]:
    """The pool, empty before and after."""
    yield shared_pool
    shared_pool.clean()
