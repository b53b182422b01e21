"""The crash suite over a pipe: the power goes at the far side, at every call there, and any un-synced write is lost.

Either it stays dark, and the next run finds what is left; or it comes back at once, and the client that was in the
middle goes on with it: what it had put and not synced may be gone, and so are the locks.
"""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError
from lamella.stores.memory import MemoryStore
from lamella.stores.wrap.patience import Backoff
from lamella.stores.wrap.retrying import RetryingStore
from lamella_kit.crash_store import crash_points
from tests.fault.far_machine import FarMachine, every, none, some
from tests.fault.test_crash import Story, next_run_works
from tests.fault.world import fresh_host, host_at, short_rescue


def lived(machine: FarMachine, story: Story) -> str:
    """How the life ended: its error, or nothing."""
    patience = Backoff(attempts=4, first_seconds=0)
    try:
        with closing(RetryingStore(machine.client(), patience)) as store:
            story.live(store)
    except LamellaError as error:
        return str(error)
    return ""


def calls_of_a_life(tmp_path: Path) -> int:
    with FarMachine(tmp_path / "whole.sock", None, none, returns=True) as machine:
        assert lived(machine, Story(tmp_path / "whole")) == ""
        return machine.store.calls


@pytest.mark.slow
@pytest.mark.parametrize("returns", [False, True], ids=["stays dark", "comes back"])
def test_power_cut_at_every_call_of_the_far_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returns: bool
) -> None:
    ends: Counter[str] = Counter()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    # What is lost at this machine is not still being stored: nobody needs to look for it for seconds.
    monkeypatch.setattr("lamella.stores.pipe.client._STILL_STORING_SECONDS", (0.0,))
    with short_rescue(monkeypatch):
        for point in crash_points(calls_of_a_life(tmp_path)):
            for survivors in (none, every, some(str(point))):
                place = tmp_path / "life"
                shutil.rmtree(place, ignore_errors=True)
                story = Story(place)
                socket = tmp_path / "far.sock"
                with FarMachine(socket, point, survivors, returns=returns) as machine:
                    said = lived(machine, story)
                    disk = machine.disk().objects()
                socket.unlink()
                ends["cut" if machine.cuts else "not met"] += 1
                ends["failed" if said else "finished"] += 1
                assert returns or said or not machine.cuts, point
                next_run_works(MemoryStore(disk), host_at(place), story, scratch)
                next_run_works(MemoryStore(disk), fresh_host(scratch / "new", "one"), story, scratch)
    assert ends["cut"] > 60, ends
    if returns:
        # Where only what can be repeated was lost, the client repeats it and the command succeeds.
        assert ends["finished"] > ends["failed"] // 4, ends
