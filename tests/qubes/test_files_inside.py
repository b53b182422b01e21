"""`lamella files` in dom0: the disposable that mounts a snapshot may be taken over by what it mounts.

What the user fears: looking for one file in the backup of a hostile qube gives that qube dom0. The disposable's own
kernel at work is in tests/guest/test_files_inside.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lamella.qubes.paranoid.disposable import NAME
from lamella_kit.fake_qubesd import FakeQubesd
from tests.cli.program import Lamella
from tests.qubes import stories
from tests.qubes.disposables import disposables

LIAR = Path(__file__).with_name("files_liar.py")


@pytest.fixture
def dom0(tmp_path: Path, system: FakeQubesd) -> Lamella:
    lamella = stories.command(system, tmp_path)
    system.write("work", os.urandom(200_000))
    lamella.ok("qubes", "backup", "work")
    return lamella


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("dies", "ended before it was done"),
        ("silent", "did not finish in time"),
        ("garbage", "sent an invalid answer"),
        ("garbage to the disk", ""),
        ("hostile archive", ""),
    ],
)
def test_a_disposable_that_was_taken_over(
    how: str, word: str, dom0: Lamella, system: FakeQubesd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "deep" / "er" / "target"
    target.mkdir(parents=True)
    with disposables(monkeypatch, system, f"{sys.executable} {LIAR} '{how}'") as bench:
        seconds = "3" if how == "silent" else "600"
        done = dom0.run("files", "get", "work:private", ".", "--to", target, "--seconds", seconds)
        assert bench.calls and {call.split()[1] for call in bench.calls} == {"qubes.VMExec"}
    started = [call.split()[-1] for call in system.calls if call.startswith("admin.vm.Start ")]
    assert len(started) == 1 and started[0].startswith(NAME)
    assert not any(name.startswith(NAME) for name in system.qubes), "it is gone"
    assert "Traceback" not in done.err
    if word:
        assert done.code == 1 and word in done.err, done
        assert not list(target.iterdir())
        return
    assert done.code == 3, done
    inside = {str(path.relative_to(target)) for path in target.rglob("*")}
    assert inside <= {"good", "absolute", "out", "out/through"} and (target / "good").read_bytes() == b"evil", inside
    assert not (target / "out").is_symlink()
    elsewhere = {path.name for path in tmp_path.rglob("*") if target not in path.parents}
    assert not {"escaped", "through", "device"} & elsewhere and not Path("/absolute").exists()


def test_what_the_disposable_lacks_is_said(dom0: Lamella, system: FakeQubesd, monkeypatch: pytest.MonkeyPatch) -> None:
    with disposables(monkeypatch, system, f"{sys.executable} {LIAR} 'no module'"):
        done = dom0.run("files", "list", "work:private", "--in", "dvm")
    assert done.code == 1 and "the disposable has no kernel module nbd" in done.err, done
    assert "name another one with --in" in done.err
    assert not any(name.startswith(NAME) for name in system.qubes)


def test_the_template_is_the_one_that_is_named(dom0: Lamella, system: FakeQubesd) -> None:
    done = dom0.run("files", "list", "work:private", "--in", "vault")
    assert done.code != 0 and "template_for_dispvms" in done.err, done
