"""Rules for all tests: how long properties are searched, and that no test touches the user's own Lamella."""

from __future__ import annotations

import compileall
import gc
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from lamella import rescue
from tests.guest import beside

# Shared and slow machines make single examples late; how long a test may take in all is the timeout's business.
settings.register_profile(
    "ci", max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "long", max_examples=5000, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Shells start what runs in the background with Ctrl-C ignored, nohup ignores the end of the terminal, and every program
# under test would inherit that. A handler is not inherited, so the tests themselves can go on without a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)

# The programs under test write no bytecode, nor does a guest: each would compile every module at every start.
if not sys.dont_write_bytecode:
    compileall.compile_dir(Path(__file__).parents[1] / "src", quiet=1)

_PLACES = {
    "HOME": "home",
    "XDG_CONFIG_HOME": "config-home",
    "XDG_STATE_HOME": "state-home",
    "XDG_CACHE_HOME": "cache-home",
    "LAMELLA_CONFIG": "config",
    "LAMELLA_STATE_DIR": "state",
    "LAMELLA_CACHE_DIR": "cache",
}
_numbers = itertools.count()
_LONG_FIRST = {name: place for place, name in enumerate(["system", "fault", "cli", "qubes", "property"])}
DESCRIPTORS = 900
"""So many the tests may have left open when they end; select() knows none above 1,023."""


_LEFT = pytest.StashKey[int]()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """Several processes share one guest."""
    beside.tell(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: WorkerController, ids: list[str]) -> None:
    """Start the guest as soon as it is known which tests there are."""
    beside.start_once(node.config, ids)


def pytest_configure(config: pytest.Config) -> None:
    """The guest runs longest: where several processes run tests beside it, it goes first."""
    if "guest" in getattr(config, "workerinput", {}):
        os.nice(10)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the guest that several processes shared."""
    beside.end(config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: WorkerController) -> None:
    """Learn how many descriptors a process of the tests left open."""
    left, stash = getattr(node, "workeroutput", {}).get("left", 0), node.config.stash
    stash[_LEFT] = max(left, stash.get(_LEFT, 0))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail if the tests leak descriptors: one day a test far from the leak would find none left."""
    gc.collect()
    left = sum(1 for _ in Path("/proc/self/fd").iterdir())
    if hasattr(session.config, "workeroutput"):  # one of several processes: the first one judges
        session.config.workeroutput["left"] = left
        return
    left = max(left, session.config.stash.get(_LEFT, 0))
    if left > DESCRIPTORS:
        print(f"\nthe tests left {left} descriptors open")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(tryfirst=True)  # before items are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first: at the end one process waits for the other, and the last file should be short."""
    slow = set(Path(__file__).with_name("slow.txt").read_text("utf-8").split())
    for item in items:
        if item.nodeid.partition("[")[0] in slow:
            item.add_marker(pytest.mark.slow)
    items.sort(key=_place_in_order)


def _place_in_order(item: pytest.Item) -> int:
    folder = item.path.parent.name  # the guest works beside all others, and is waited for in the end
    return len(_LONG_FIRST) + 1 if folder == "guest" else _LONG_FIRST.get(folder, len(_LONG_FIRST))


class _Together(LoadScopeScheduling):  # type: ignore[misc]
    """Several processes: the tests of a file stay in one, and so do those of the guest machine, which boots once."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return str(Path(file).parent) if file.startswith("tests/guest/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """Distribute the tests as `_Together` says, whatever `--dist` says."""
    return _Together(config, log)


@pytest.fixture(autouse=True)
def own_places(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the test, and every program it starts, places of its own and no Lamella variables from outside.

    Returns the directory that would hold them; nothing in it exists until something is written there.
    """
    for name in [name for name in os.environ if name.startswith("LAMELLA_") and name != "LAMELLA_REQUIRE"]:
        monkeypatch.delenv(name)
    places = tmp_path_factory.getbasetemp() / f"places-{next(_numbers)}"
    for name, below in _PLACES.items():
        monkeypatch.setenv(name, str(places / below))
    return places


def _threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("lamella"))


@pytest.fixture(autouse=True, scope="module")
def no_thread_left() -> Iterator[None]:
    """Fail the file that leaves threads of ours behind: the files that count them may come next in the process."""
    yield
    end = time.monotonic() + 10
    while (left := _threads()) and time.monotonic() < end:
        gc.collect()  # a pool that nobody holds any longer ends its threads
        time.sleep(0.05)
    assert not left, f"this file left threads running: {left}"


@pytest.fixture(autouse=True)
def closed_directories(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what the emergency reader opens and leaves to the end of the program: here the program goes on."""
    opened: list[tuple[int, os.stat_result]] = []
    init = rescue.Store.__init__

    def remembering(self: rescue.Store, path: str) -> None:
        init(self, path)
        opened.append((self._top, os.fstat(self._top)))

    monkeypatch.setattr(rescue.Store, "__init__", remembering)
    yield
    for descriptor, found in opened:
        with suppress(OSError):  # some tests close it themselves
            if os.path.samestat(os.fstat(descriptor), found):
                os.close(descriptor)
