"""The main job against the real qubesd, where its source is: its API, its storage drivers, its import; no Xen.

LAMELLA_QUBESD names the folders for PYTHONPATH (the tree of qubes-core-admin with `python setup.py egg_info` run in it,
its `test-packages`, and the tree of qubes-core-qrexec), LAMELLA_QUBESD_PYTHON a Python that has what these import.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.qubes.admin import Admin
from lamella.stores.pipe.bundle import ARGV_WITH_LIBRARIES
from tests.cli.program import Lamella
from tests.features import require
from tests.system import loop_fs

SOURCES = os.environ.get("LAMELLA_QUBESD", "")
PYTHON = os.environ.get("LAMELLA_QUBESD_PYTHON", sys.executable)
PROGRAM = Path(__file__).with_name("real_qubesd.py")
NAMES = ("tpl", "sys-net", "work", "vault", "own", "dvm", "disp1")
INTERNAL = {"uuid", "qid", "dispid", "backup_timestamp", "start_time"}


@pytest.fixture
def pool() -> Iterator[Path]:
    require("qubesd", bool(SOURCES), "LAMELLA_QUBESD does not say where the source of qubesd is")
    with loop_fs.make("btrfs", size=3 << 30) as mount:
        yield mount


@pytest.fixture
def admin(tmp_path: Path, pool: Path) -> Iterator[Admin]:
    command = [PYTHON, str(PROGRAM), str(tmp_path), str(pool)]
    env = {**os.environ, "PYTHONPATH": SOURCES}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            made = Admin(tmp_path / "qubesd.sock", tmp_path / "qubesd.internal.sock", seconds=60)
            populate(made)
            yield made
        finally:
            server.terminate()


def populate(admin: Admin) -> None:
    admin.call("admin.label.Create", arg="mine", payload=b"0x123456")
    for klass, name, template, label in (
        ("TemplateVM", "tpl", "", "black"),
        ("AppVM", "sys-net", "tpl", "red"),
        ("AppVM", "work", "tpl", "mine"),
        ("AppVM", "vault", "tpl", "green"),
        ("StandaloneVM", "own", "", "green"),
        ("AppVM", "dvm", "tpl", "gray"),
    ):
        admin.call(f"admin.vm.Create.{klass}", arg=template, payload=f"name={name} label={label}".encode())
    for name, prop, value in (
        ("sys-net", "provides_network", b"True"),
        ("work", "netvm", b"sys-net"),
        ("work", "maxmem", b"2000"),
        ("work", "memory", b"500"),
        ("vault", "netvm", b""),
        ("dvm", "template_for_dispvms", b"True"),
        ("work", "default_dispvm", b"dvm"),
    ):
        admin.call("admin.vm.property.Set", name, prop, value)
    admin.call("admin.vm.Create.DispVM", arg="dvm", payload=b"name=disp1 label=red")
    admin.call("admin.vm.tag.Set", "work", "keep")
    admin.call("admin.vm.feature.Set", "work", "service.cups", b"")
    rules = b"action=accept dsthost=192.0.2.1/32 proto=tcp dstports=443-443 comment=c\naction=drop\n"
    admin.call("admin.vm.firewall.Set", "work", payload=rules)


def seen(admin: Admin, name: str) -> list[str]:
    """What qubesd says of a qube, numbers of its own apart."""
    properties = admin.lines("admin.vm.property.GetAll", name)
    chosen = [line for line in properties if line.split()[0] not in INTERNAL and "default=True" not in line]
    rest = (admin.lines(f"admin.vm.{what}", name) for what in ("tag.List", "firewall.Get"))
    return [*chosen, *(line for lines in rest for line in lines)]


def beginning(path: Path) -> bytes:
    """What the test wrote into an image of many GiB."""
    with path.open("rb") as file:
        return file.read(5 << 20)


def dom0(tmp_path: Path) -> Lamella:
    """The command as dom0 runs it, and an empty repository."""
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    env = {
        "LAMELLA_QUBESD_SOCKET": str(tmp_path / "qubesd.sock"), "LAMELLA_REPO": str(tmp_path / "repository"),
        "LAMELLA_STATE_DIR": str(tmp_path / "state"), "LAMELLA_CACHE_DIR": str(tmp_path / "cache"),
    }  # fmt: skip
    lamella = Lamella(env, ["--keyfile", str(key)])
    lamella.ok("init", "-q")
    return lamella


def test_five_kinds_of_qubes_lost_and_restored(admin: Admin, pool: Path, tmp_path: Path) -> None:
    lamella = dom0(tmp_path)
    root = pool / "vm-templates/tpl/root.img"
    with root.open("r+b") as file:
        file.write(os.urandom(5 << 20))
    template = beginning(root)
    admin.call("admin.vm.Start", "work")
    live = pool / "appvms/work/private-dirty.img"
    with live.open("r+b") as file:
        os.pwrite(file.fileno(), b"written by a running qube", 4096)
    lamella.ok("qubes", "backup", *NAMES)
    with live.open("r+b") as file:
        os.pwrite(file.fileno(), b"and later", 1 << 20)
    done = lamella.json("qubes", "backup", *NAMES)
    rows = {row["volume"]: row for row in done["volumes"]}
    assert (rows["work:private"]["mode"], rows["work:private"]["changed_chunks"]) == ("incremental", 1)

    admin.call("admin.vm.Kill", "work")
    before = {name: seen(admin, name) for name in NAMES}
    admin.call("admin.vm.property.Reset", "work", "default_dispvm")  # qubesd keeps what others name
    for name in reversed(NAMES):
        admin.call("admin.vm.Remove", name)
    lamella.ok("qubes", "restore", *NAMES)
    assert {name: seen(admin, name) for name in NAMES} == before
    assert beginning(root) == template
    with (pool / "appvms/work/private.img").open("rb") as file:
        assert os.pread(file.fileno(), 25, 4096) == b"written by a running qube"
        assert os.pread(file.fileno(), 9, 1 << 20) == b"and later"
    admin.call("admin.vm.Start", "work")
    assert lamella.run("qubes", "restore", "work", "--overwrite", "-y").code == 2
    admin.call("admin.vm.Kill", "work")
    lamella.ok("qubes", "restore", "work", "--overwrite", "-y")
    assert admin.lines("admin.vm.volume.ListSnapshots", "work", "private")
    again = lamella.json("qubes", "backup", "work")
    assert {row["new_chunks"] for row in again["volumes"]} == {0}


def test_a_volume_without_snapshots_is_never_called_committed(admin: Admin, pool: Path, tmp_path: Path) -> None:
    """`revisions_to_keep` = -1 (from 4.3 on): the running qube gets the volume itself."""
    lamella = dom0(tmp_path)
    admin.call("admin.vm.volume.Set.revisions_to_keep", "vault", "private", b"-1")
    admin.call("admin.vm.Start", "vault")
    assert not (pool / "appvms/vault/private.img").exists()
    rows = {row["volume"]: row for row in lamella.json("qubes", "backup", "vault")["volumes"]}
    assert rows["vault:private"]["consistency"] == "live"
    refused = lamella.run("qubes", "backup", "vault", "--committed")
    assert refused.code == 3 and "revisions_to_keep is -1" in refused.err, refused
    admin.call("admin.vm.Kill", "vault")
    rows = {row["volume"]: row for row in lamella.json("qubes", "backup", "vault", "--committed")["volumes"]}
    assert rows["vault:private"]["consistency"] == "halted"
    (pool / "appvms/vault/private.img").unlink()
    failed = lamella.json("qubes", "backup", "vault", "work", code=3)["volumes"]
    assert [row["volume"] for row in failed if row["result"] == "failed"] == ["vault:private"]


def test_a_restore_through_disposables_of_the_real_qubesd(
    admin: Admin, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are made, started, killed and gone; what runs in one is a process beside."""
    client = tmp_path / "bin" / "qrexec-client"
    client.write_text(f"#!{sys.executable}\nimport os\nos.execv({sys.executable!r}, {list(ARGV_WITH_LIBRARIES)!r})\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{client.parent}:{os.environ['PATH']}")
    lamella = dom0(tmp_path)
    private = pool / "appvms/work/private.img"
    with private.open("r+b") as file:
        file.write(os.urandom(3 << 20))
    saved = beginning(private)
    lamella.ok("qubes", "backup", "work", "vault")
    with private.open("r+b") as file:
        file.write(os.urandom(1 << 20))
    before = set(admin.lines("admin.vm.List"))
    done = lamella.json("qubes", "restore", "work", "vault", "--overwrite", "-y", "--in", "dvm")
    assert [row["result"] for row in done["qubes"]] == ["restored"] * 2, done
    assert beginning(private) == saved
    assert set(admin.lines("admin.vm.List")) == before
    assert not list((pool / "appvms").glob("disp-lamella-*"))
