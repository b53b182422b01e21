"""Ctrl-C in the middle of the standard library's locks: none stays taken, nothing is called a fault, all waits end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.program import SECONDS, environment

# Every step of a condition at which an exception tears it, with a signal that comes exactly there.
TORN = """
import signal, sys, threading
from lamella.cli import signals
from lamella.run.pipeline import Outbox, ordered_map

text = '''
def __enter__(self):
    taken = self._lock.__enter__()
    step()
    return taken
def _release_save(self):
    state = self._lock._release_save() if hasattr(self._lock, "_release_save") else self._lock.release()
    step()
    return state
'''
steps = count = 0
main = threading.get_ident()
def step():
    global count
    if threading.get_ident() == main:
        count += 1
        if count == steps:
            signal.raise_signal(signal.SIGINT)
threading.step = step
exec(text, threading.__dict__)
threading.Condition.__enter__ = threading.__dict__["__enter__"]
threading.Condition._release_save = threading.__dict__["_release_save"]

signals.take()
finished = interrupted = 0
while not finished:
    steps, count = steps + 1, 0
    try:
        with Outbox() as outbox:
            for _ in ordered_map(lambda item: outbox.submit(lambda: None), range(8), workers=3):
                pass
            outbox.drain()
            count = 1 << 30
        signal.sigtimedwait([], 0.05)  # it may come as late as this
        finished = 1
    except KeyboardInterrupt:
        interrupted += 1
print(steps, interrupted)
"""


def test_an_interruption_tears_no_lock() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TORN], env=environment({}), capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    steps, interrupted = map(int, done.stdout.split())
    assert interrupted == steps - 1 > 10


BLOCKED = """
import sys, threading
from lamella.cli import signals
from lamella.run.beside import Beside

signals.take()
stuck = Beside(threading.Event().wait, "stuck")
print("waiting", flush=True)
try:
    %s
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize(
    "wait", ["stuck.join(600)", "threading.Event().wait()", "lock = threading.Lock(); lock.acquire(); lock.acquire()"]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_main_thread_that_is_blocked_is_interrupted(wait: str, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BLOCKED % wait], env=environment({}), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
            time.sleep(0.05)
            process.send_signal(number)
            assert process.communicate(timeout=SECONDS)[0] == "interrupted\n"
        finally:
            process.kill()


LATE = """
import signal, sys, time
from lamella.cli import signals
from lamella.run.spawn import run_unbroken

signals.take()
signal.setitimer(signal.ITIMER_REAL, 0.05)  # an interruption that was put off
try:
    run_unbroken(["sh", "-c", f"sleep 0.3; echo done > {sys.argv[1]}"], timeout_seconds=60)
except KeyboardInterrupt:
    print(open(sys.argv[1]).read())
"""


def test_an_interruption_that_was_put_off_waits_for_an_unbroken_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE, str(tmp_path / "made")],
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr


ENDED = """
import signal, time
from lamella.cli import signals

signals.take()
signal.setitimer(signal.ITIMER_REAL, 0.05)
signals.leave()
time.sleep(0.2)
"""


def test_what_was_put_off_does_not_come_after_the_end() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDED], env=environment({}), capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr


# As the script `lamella` does it, with a stop at the import of one module.
EARLY = """
import sys, time
at = sys.argv.pop()
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == at:
            print("here", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Stop())
from lamella.cli.main import entry
sys.argv[1:] = ["list", "-r", "/nowhere"]
entry()
"""


@pytest.mark.parametrize(
    "module",
    ["lamella.cli.signals", "lamella.base.errors", "argparse", "lamella.cli.output", "lamella.repository.repository"],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_early_interruption_shows_no_traceback(module: str, number: signal.Signals) -> None:
    started = subprocess.Popen(
        [sys.executable, "-c", EARLY, module],
        env=environment({}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with started as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=SECONDS)
    by_default = number == signal.SIGTERM and module == "lamella.cli.signals"  # nothing has taken the signal yet
    assert process.returncode == (-number if by_default else 130)
    assert "Traceback" not in said
