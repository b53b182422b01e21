"""Qubes saved from dom0 into another qube and brought back, over the data path of qrexec and the shipped service."""

from __future__ import annotations

import dataclasses
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


def test_the_service_takes_admitted_hosts_only(
    system: FakeQubesd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the lines that `setup-storage --admitted` writes: a thief of a writer's secret stores no snapshot."""
    env = {"LAMELLA_REPO": "qubes://vault/main", "LAMELLA_QUBESD_SOCKET": str(system.place)}
    hosts = {}
    for host, secret in (("dom0", "admin"), ("other", "writer")):
        key = tmp_path / secret
        key.write_bytes(os.urandom(32))
        key.chmod(0o600)
        places = {f"LAMELLA_{word}_DIR": str(tmp_path / host / word) for word in ("STATE", "CACHE")}
        hosts[host] = Lamella({**env, **places}, ["--keyfile", str(key)])
    dom0, other = hosts["dom0"], hosts["other"]
    image = tmp_path / "disk.img"
    image.write_bytes(b"d" * 100_000)
    with qrexec(monkeypatch, dom0=True) as bench:
        vault = bench.qube("vault")
        vault.install_service()
        files = dom0.json("qubes", "setup-storage", "vault", "--append-only", "--admitted", "--quota", "1G")["files"]
        options = next(file["content"] for file in files if file["path"].endswith("/repos/main")).splitlines()[1:]
        assert options == ["--append-only", "--admitted", "--quota=1G"]
        vault.map("main", vault.home / "store", "--append-only")
        dom0.ok("init", "-q")
        # A slot can be added where the qube's owner allows that, and only there.
        admin = dataclasses.replace(dom0, env={**dom0.env, "LAMELLA_REPO": str(vault.home / "store")})
        admin.ok("key", "add", "--role", "writer", "--new-keyfile", str(tmp_path / "writer"))
        vault.map("main", vault.home / "store", *options)
        dom0.ok("backup", str(image))
        refused = other.run("backup", str(image))
        assert refused.code != 0 and "lamella check --admit KEY" in refused.err, refused
        assert len(other.json("list")["snapshots"]) == 1
        dom0.ok("check", "--admit", other.json("info")["key"], "-y")
        other.ok("backup", str(image))
        assert len(dom0.json("list")["snapshots"]) == 2
