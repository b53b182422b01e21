"""The storage qube: what it gets, when it runs, and what it may be."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lamella.base.errors import NothingMatched, UsageError
from lamella.base.events import Event, Warned, silent
from lamella.qubes.admin import Admin
from lamella.qubes.inventory import Inventory
from lamella.qubes.storage import kept_running
from lamella.qubes.storage_qube import SERVICE, check_storage, install, storage_files
from lamella_kit.fake_qubesd import FakeQubesd


def test_it_runs_as_long_as_it_is_needed_and_no_longer(admin: Admin, system: FakeQubesd) -> None:
    heard: list[Event] = []

    def hear(event: Event) -> None:
        heard.append(event)

    with kept_running(admin, "qubes://vault/main", hear):
        assert system.qubes["vault"].state == "Running"
    assert system.qubes["vault"].state == "Halted"
    system.start("vault")
    for place in ("qubes://vault//home/user/x", "qubes-ssh://vault:host/x", "/a/path", "qubes://nobody/main"):
        with kept_running(admin, place, hear):
            assert system.qubes["vault"].state == "Running"
    assert system.qubes["vault"].state == "Running"
    assert heard == []


def test_a_failure_shuts_it_down_as_well(admin: Admin, system: FakeQubesd) -> None:
    with pytest.raises(ZeroDivisionError), kept_running(admin, "qubes-ssh://vault:host/x", silent):
        raise ZeroDivisionError
    assert system.qubes["vault"].state == "Halted"


def test_what_shuts_down_by_itself_is_warned_of(admin: Admin, system: FakeQubesd) -> None:
    system.qubes["vault"].features["service.shutdown-idle"] = "1"
    heard: list[Event] = []

    def hear(event: Event) -> None:
        heard.append(event)

    assert check_storage(admin, Inventory(admin), "vault", hear).name == "vault"
    assert [type(event) for event in heard] == [Warned]


@pytest.mark.parametrize(
    ("name", "error"), [("dom0", UsageError), ("disp1", UsageError), ("tpl", UsageError), ("x", NothingMatched)]
)
def test_what_cannot_store(admin: Admin, name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_storage(admin, Inventory(admin), name, silent)


@pytest.mark.parametrize(
    ("name", "place"), [("a/b", "/x"), ("", "/x"), ("main", ""), ("main", "-x"), ("main", "/x\n--y")]
)
def test_names_and_places_that_could_be_misread(name: str, place: str) -> None:
    with pytest.raises(UsageError):
        storage_files(name, place, [])


def test_the_files_arrive_as_they_are(
    admin: Admin, system: FakeQubesd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`qvm-run` runs the command in the qube: here in a folder that stands for its root."""
    root = tmp_path / "vault"
    tool = tmp_path / "bin/qvm-run"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nfor last; do :; done\nexec sh -c "$(printf %s "$last" | sed "s#\\"/#\\"{root}/#g")"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    files = storage_files("main", "/home/user/lamella", ["--append-only", "--quota=5G"])
    install(Inventory(admin).qube("vault"), files)
    for file in files:
        written = root / file.path[1:]
        assert (written.read_text(), f"{written.stat().st_mode & 0o7777:04o}") == (file.content, file.mode)
    assert subprocess.run(["sh", "-n", str(root / SERVICE[1:])], check=False).returncode == 0
