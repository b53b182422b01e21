"""Qubes saved from dom0 into another qube and brought back, over the data path of qrexec and the shipped service."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamella_kit.fake_qubesd import FakeQubesd
from tests.cli.program import Lamella
from tests.qubes.system import content, essence
from tests.system.qrexec import qrexec


def test_dom0_to_a_storage_qube_and_back(system: FakeQubesd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    env = {
        "LAMELLA_REPO": "qubes://vault/main", "LAMELLA_QUBESD_SOCKET": str(system.place),
        "LAMELLA_STATE_DIR": str(tmp_path / "state"), "LAMELLA_CACHE_DIR": str(tmp_path / "cache"),
    }  # fmt: skip
    lamella = Lamella(env, ["--keyfile", str(key)])
    with qrexec(monkeypatch, dom0=True) as bench:
        vault = bench.qube("vault")
        vault.install_service()
        vault.map("main", vault.home / "store", "--append-only")
        lamella.ok("init", "-q")
        system.start("work")
        system.write("work", b"alive")
        lamella.ok("qubes", "backup", "work", "own", "disp1")
        assert system.qubes["vault"].state == "Halted"  # it was started for this, and only for this
        assert [call for call in system.calls if call.startswith(("admin.vm.Start ", "admin.vm.Shutdown "))]
        system.write("work", b"later", offset=70_000)
        done = lamella.json("qubes", "backup", "work")
        assert done["result"] == "complete"

        system.stop("work")
        before, bytes_before = essence(system.qubes["work"]), content(system, "work")
        system.remove("work")
        lamella.ok("qubes", "restore", "work")
        assert essence(system.qubes["work"]) == before
        assert content(system, "work") == bytes_before
        assert set(bench.calls) == {"vault lamella.Repo"}

        # The storage qube turns bad: one byte of each pack is another one.
        for pack in (vault.home / "store/p").glob("*/*"):
            pack.chmod(0o600)
            damaged = bytearray(pack.read_bytes())
            damaged[len(damaged) // 2] ^= 1
            pack.write_bytes(damaged)
        system.write("work", b"newer")
        refused = lamella.run("qubes", "restore", "work", "--overwrite", "-y")
        assert refused.code in (3, 20), refused
        assert content(system, "work")[:5] == b"newer"
