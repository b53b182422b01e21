"""The crash suite over SFTP: the power goes at the far side at a request, and what was not synced there is lost.

Either the machine stays dark, and the next run finds what is left; or it comes back at once, and the client that was in
the middle goes on with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError
from lamella.stores.local.store import LocalStore
from lamella.stores.memory import MemoryStore
from lamella.stores.wrap.patience import Backoff
from lamella.stores.wrap.retrying import RetryingStore
from lamella_kit.store_reading import listed
from tests.fault.far_machine import every, none, some
from tests.fault.sftp_machine import SftpMachine
from tests.fault.test_crash import Story, next_run_works
from tests.fault.world import fresh_host, short_rescue

STEP = 4
"""Every fourth request is met by one kind of loss, the next one by another, and so on."""


def lived(machine: SftpMachine, story: Story) -> str:
    """How the life ended: its error, or nothing."""
    try:
        with closing(RetryingStore(machine.client(), Backoff(attempts=4, first_seconds=0))) as store:
            story.live(store)
    except LamellaError as error:
        return str(error)
    return ""


def requests_of_a_life(place: Path) -> int:
    with SftpMachine(place) as machine:
        assert lived(machine, Story(place / "host")) == ""
        assert machine.connections == 1
        return machine.asked


def left_at(root: Path) -> Mapping[str, bytes]:
    if not root.is_dir():
        return {}
    with closing(LocalStore.open(root, read_only=True)) as store:
        return {name: store.get(name) for name in listed(store)}


@pytest.mark.slow
@pytest.mark.parametrize("returns", [False, True], ids=["stays dark", "comes back"])
def test_power_cut_at_requests_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returns: bool) -> None:
    ends: Counter[str] = Counter()
    with short_rescue(monkeypatch):
        requests = requests_of_a_life(tmp_path / "whole")
        for point in range(1 + int(returns), requests + 1, STEP):
            place = tmp_path / str(point)
            story = Story(place / "host")
            losses = (none, every, some(str(point)))[point // STEP % 3]
            with SftpMachine(
                place, point=point, after=bool(point // STEP % 2), survivors=losses, returns=returns
            ) as far:
                said = lived(far, story)
            ends["cut" if far.cuts else "not met"] += 1
            ends["failed" if said else "finished"] += 1
            assert returns or said or not far.cuts, point
            disk = left_at(far.root)
            next_run_works(MemoryStore(disk), story.host, story, place)
            next_run_works(MemoryStore(disk), fresh_host(place / "new", "one"), story, place)
    assert ends["cut"] > 12, ends
    if returns:
        # Where only what can be repeated was lost, the client repeats it and the command succeeds.
        assert ends["finished"] > ends["failed"] // 4, ends
