"""`lamella qubes backup --scrub`: a disposable removes files from clones of the qubes' volumes.

What the user fears: a disposable that was taken over by the file system it mounts gets at dom0 or spoils the backup; a
disposable that cannot be had costs the backup; caches are saved in silence. A real kernel at work in the disposable's
place is in tests/guest/test_files_inside.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.qubes.paranoid.disposable import NAME
from lamella_kit.fake_qubesd import FakeQubesd
from tests.cli.program import Lamella
from tests.qubes import stories
from tests.qubes.conftest import populate
from tests.qubes.disposables import disposables
from tests.qubes.system import content
from tests.qubes.test_files_inside import LIAR
from tests.system import loop_fs

SCRUB = ("--scrub", "@caches")


@pytest.fixture
def system(tmp_path: Path) -> Iterator[FakeQubesd]:
    with (
        loop_fs.make("xfs") as pool,
        FakeQubesd(tmp_path / "run", {"varlibqubes": pool}, volume_size=1 << 20) as fake,
    ):
        populate(fake)
        fake.write("work", os.urandom(200_000))
        yield fake


@pytest.fixture
def dom0(tmp_path: Path, system: FakeQubesd) -> Lamella:
    return stories.command(system, tmp_path)


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("dies", "ended before it was done"),
        ("garbage", "sent an invalid answer"),
        ("garbage to the disk", "sent an invalid answer"),
        (
            "no module",
            "the disposable has no kernel module nbd (add it to the template of disposables, or name another one",
        ),
    ],
)
def test_a_disposable_that_fails_costs_nothing(
    how: str, word: str, dom0: Lamella, system: FakeQubesd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(system, "work")
    system.start("work")
    with disposables(monkeypatch, system, f"{sys.executable} {LIAR} '{how}'"):
        done = dom0.json("qubes", "backup", "work", *SCRUB)
    assert done["result"] == "complete"
    (warning,) = done["warnings"]
    assert "work:private: nothing could be left out, so everything is saved" in warning and word in warning, warning
    assert not any(name.startswith(NAME) for name in system.qubes), "it is gone"
    assert content(system, "work") == before
    assert dom0.json("info", "work:private")["scrubbed"] is None
    dom0.ok("restore", "work:private", "--to", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == before


def test_only_volumes_of_qubes_have_files_to_leave_out(
    dom0: Lamella, system: FakeQubesd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings, and dom0's own files, are saved as always, and nobody is warned of them."""
    with disposables(monkeypatch, system, f"{sys.executable} {LIAR} dies") as bench:
        done = dom0.json("qubes", "backup", "dom0", "vault", *SCRUB)
        assert bench.calls
    assert [text.partition(":")[0] for text in done["warnings"]] == ["vault"], done["warnings"]


def test_a_dry_run_starts_no_disposable(dom0: Lamella, system: FakeQubesd) -> None:
    assert dom0.run("qubes", "backup", "work", *SCRUB, "-n").code == 0
    assert not [call for call in system.calls if call.startswith("admin.vm.Start ")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scrub", "../etc"], "not a pattern of files in a volume"),
        (["-n", "--scrub", "../etc"], "not a pattern of files in a volume"),
        (["--in", "vault"], "it needs --scrub"),
        ([*SCRUB, "--in", "vault"], "nothing could be left out"),
        ([*SCRUB, "--in", "no such"], "not a name for a qube"),
    ],
)
def test_what_is_asked_wrongly(words: list[str], said: str, dom0: Lamella, system: FakeQubesd) -> None:
    done = dom0.run("qubes", "backup", "work", *words)
    assert said in done.err, done
