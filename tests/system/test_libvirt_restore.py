"""`restore --to libvirt:NAME` through the command, against a real libvirtd: what is defined, and what never is."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.cli.program import Lamella
from tests.system.libvirt_daemon import LibvirtDaemon, domain_xml, libvirt_daemon
from tests.system.test_libvirt_source import contents, defined, ours, program

MIB = 1 << 20


@pytest.fixture(scope="module")
def daemon() -> Iterator[LibvirtDaemon]:
    with TemporaryDirectory(prefix="lv") as folder, libvirt_daemon(Path(folder)) as found:
        yield found


@pytest.fixture
def place() -> Iterator[Path]:
    with TemporaryDirectory(prefix="lv") as folder:
        (Path(folder) / "pool").mkdir()
        yield Path(folder)


def names(daemon: LibvirtDaemon) -> set[str]:
    return {domain.name() for domain in daemon.virt.listAllDomains()}


def tree(domain: Any) -> ElementTree.Element:  # noqa: ANN401
    return ElementTree.fromstring(domain.XMLDesc(0))


def files(domain: Any) -> list[Path]:  # noqa: ANN401
    return [Path(one.get("file", "")) for one in tree(domain).findall("./devices/disk[@device='disk']/source")]


def pool(place: Path) -> tuple[str, str]:
    return "--pool", f"{place}/pool"


def saved(daemon: LibvirtDaemon, place: Path, name: str, more: str = "") -> tuple[Lamella, Any]:
    """A domain with two disks that was backed up while it ran, and is shut off."""
    lamella = program(daemon, place)
    domain = defined(daemon, place, name, ("qcow2", "raw"))
    if more:
        disks = {"vda": place / "a.qcow2", "vdb": place / "b.raw"}
        domain = daemon.virt.defineXML(
            domain_xml(name, disks, more).replace("<name>", f"<uuid>{domain.UUIDString()}</uuid><name>")
        )
    domain.create()
    daemon.guest(domain, 0, "write -P 1 0 4M")
    daemon.guest(domain, 1, "write -P 2 1M 1M")
    lamella.ok("backup", f"libvirt:{name}")
    domain.destroy()
    return lamella, domain


def lost(domain: Any) -> None:  # noqa: ANN401
    """The domain and its images are gone."""
    for path in files(domain):
        path.unlink()
    for checkpoint in domain.listAllCheckpoints():
        checkpoint.delete(2)
    domain.undefine()


def same(paths: list[Path], place: Path, lamella: Lamella, *volumes: str) -> None:
    assert [path.read_bytes() for path in paths] == contents(lamella, place, *volumes)
    shutil.rmtree(place / "out")


def test_a_lost_domain_is_defined_as_it_was_and_not_started(daemon: LibvirtDaemon, place: Path) -> None:
    nic = "<interface type='user'><mac address='52:54:00:12:34:56'/><model type='virtio'/></interface>"
    medium = f"<disk type='file' device='cdrom'><source file='{place}/key'/><target dev='sda' bus='sata'/></disk>"
    lamella, domain = saved(daemon, place, "mail", nic + medium)
    uuid = domain.UUIDString()
    lost(domain)
    xml = f"<pool type='dir'><name>default</name><target><path>{place}/pool</path></target></pool>"
    found = daemon.virt.storagePoolCreateXML(xml, 0)
    done = lamella.run("--json", "restore", "mail:vdb", "--to", "libvirt:mail")
    found.destroy()
    document = json.loads(done.out)
    assert done.code == 0 and document["result"] == "complete" and document["uuid"] == uuid, done
    assert len(document["left_out"]) == 1 and "key" in document["left_out"][0] and "left out" in done.err
    again = daemon.virt.lookupByName("mail")
    assert again.UUIDString() == uuid and not again.isActive() and again.isPersistent()
    assert tree(again).find("./devices/interface/mac[@address='52:54:00:12:34:56']") is not None
    assert [path.parent for path in files(again)] == [place / "pool"] * 2
    same(files(again), place, lamella, "mail:vda", "mail:vdb")
    again.create()
    assert [row["mode"] for row in lamella.json("backup", "libvirt:mail")["volumes"]] == ["compare", "compare"]
    again.destroy()


def test_a_second_domain_beside_the_first_shares_nothing_with_it(daemon: LibvirtDaemon, place: Path) -> None:
    nic = "<interface type='user'><mac address='52:54:00:12:34:57'/></interface>"
    lamella, domain = saved(daemon, place, "first", nic)
    domain.create()  # it runs meanwhile
    done = lamella.json("restore", "first:vda", "--to", "libvirt:second", *pool(place))
    assert done["renewed"]
    second = daemon.virt.lookupByName("second")
    assert second.UUIDString() == done["uuid"] != domain.UUIDString()
    mac = tree(second).find("./devices/interface/mac")
    assert mac is not None and mac.get("address") != "52:54:00:12:34:57"
    assert not set(files(second)) & set(files(domain))
    second.create()  # both run
    daemon.guest(second, 0, "write -P 9 0 1M")
    domain.destroy()
    second.destroy()
    # Again from the same snapshot: the files of `second` stay, although they would have the same name.
    old = files(second)
    before = [path.read_bytes() for path in old]
    lamella.ok("restore", "first:vda", "--to", "libvirt:second", "--overwrite", *pool(place), "-y")
    after = daemon.virt.lookupByName("second")
    assert after.UUIDString() == done["uuid"] and not set(files(after)) & set(old)
    assert [path.read_bytes() for path in old] == before
    same(files(after), place, lamella, "first:vda", "first:vdb")


def test_who_is_there_is_replaced_only_when_asked_and_shut_off(daemon: LibvirtDaemon, place: Path) -> None:
    lamella, domain = saved(daemon, place, "there")
    restore = ("restore", "there:vda", "--to", "libvirt:there", *pool(place))
    definition = domain.XMLDesc(0)

    def refused(*words: str, code: int, saying: str) -> None:
        done = lamella.run(*words)
        assert done.code == code and saying in done.err and len(done.err.splitlines()) <= 2, done
        assert list((place / "pool").iterdir()) == []

    refused(*restore, code=2, saying="exists already")
    domain.create()
    refused(*restore, "--overwrite", "-y", code=2, saying="runs")
    domain.managedSave()
    refused(*restore, "--overwrite", "-y", code=2, saying="saved memory")
    domain.managedSaveRemove()
    refused("restore", "there:vda", "--to", "libvirt:new", "--pool", f"{place}/none", code=2, saying="no directory")
    refused("restore", "there:vda", "--to", "libvirt:new", code=2, saying="storage pool default")
    refused("restore", "there:vda", "--to", "libvirt:a/b", *pool(place), code=2, saying="not a name")
    refused("restore", "there:vda", "there:vdb", "--to", "libvirt:new", *pool(place), code=2, saying="one disk")
    (place / "file").write_bytes(b"x" * 4096)
    lamella.ok("backup", place / "file")
    refused("restore", "file", "--to", "libvirt:new", *pool(place), code=2, saying="no disk of a domain")
    assert domain.XMLDesc(0) == definition
    plan = lamella.json(*restore, "--overwrite", "-n")
    assert plan["dry_run"] and domain.XMLDesc(0) == definition and list((place / "pool").iterdir()) == []
    old = files(domain)
    assert ours(domain)
    lamella.ok(*restore, "--overwrite", "-y")
    found = daemon.virt.lookupByName("there")
    assert found.UUIDString() == domain.UUIDString() and not set(files(found)) & set(old) and all(map(Path.exists, old))
    assert ours(found) == []  # they say what changed on other disks
    found.create()
    assert {row["mode"] for row in lamella.json("backup", "libvirt:there")["volumes"]} == {"compare"}
    found.destroy()


def test_a_domain_lacks_the_disk_that_was_not_saved(daemon: LibvirtDaemon, place: Path) -> None:
    lamella, domain = program(daemon, place), defined(daemon, place, "part", ("qcow2", "raw"))
    lamella.ok("backup", "libvirt:part#vda")
    done = lamella.run("--json", "restore", "part:vda", "--to", "libvirt:less", *pool(place))
    assert done.code == 3 and json.loads(done.out)["result"] == "incomplete" and "vdb" in done.err
    assert [path.name[-7:] for path in files(daemon.virt.lookupByName("less"))] == ["vda.img"]
    domain.undefine()


# A restore that dies, or is refused, at one step.
DYING = """
import os, signal, sys
from lamella.cli.main import entry
from lamella.operations.restore import domain, volumes
from lamella.sources.virt import defining
from lamella.base.errors import LamellaError
step, how = sys.argv.pop(1), sys.argv.pop(1)
def end(*more, **named):
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    raise LamellaError("put back by hand")
def second(call, seen=[]):
    def called(*more, **named):
        seen.append(1)
        return end() if len(seen) > 1 else call(*more, **named)
    return called
if step == "disk":
    volumes.VolumesPlan._done = second(volumes.VolumesPlan._done)
if step == "variables":
    domain.write_durably = end
if step == "placed":
    defining._TpmState.place = end
if step == "define":
    place = defining._TpmState.place
    defining._TpmState.place = lambda self: (place(self), end())
entry()
"""


def test_nothing_is_half_defined_whatever_becomes_of_the_restore(daemon: LibvirtDaemon, place: Path) -> None:
    lamella, domain = program(daemon, place), defined(daemon, place, "half", ("qcow2", "raw"))
    (place / "vars").write_bytes(b"variables" * 100)
    disks = {"vda": place / "a.qcow2", "vdb": place / "b.raw"}
    system = f"<loader readonly='yes' type='pflash'>{place}/code</loader><nvram>{place}/vars</nvram>"
    (place / "code").write_bytes(bytes(4096))
    text = domain_xml("half", disks, os_more=system).replace("<cpu ", "<features><acpi/></features><cpu ", 1)
    domain.undefine()
    domain = daemon.virt.defineXML(text)
    state = Path("/var/lib/libvirt/swtpm") / domain.UUIDString()
    name, definition = "half", domain.XMLDesc(0)
    lamella.ok("backup", f"libvirt:{name}")
    hurt = [sys.executable, "-c", DYING]
    for target, more in ((name, ["--overwrite", "-y"]), (f"{name}2", [])):
        for step, how in (
            ("disk", "die"),
            ("variables", "die"),
            ("placed", "die"),
            ("define", "die"),
            ("define", "fail"),
        ):
            words = ["restore", f"{name}:vda", "--to", f"libvirt:{target}", *pool(place), *more]
            done = Lamella(lamella.env, [step, how, *lamella.options], hurt).run(*words)
            assert done.code == (-signal.SIGKILL if how == "die" else 1), (step, done)
            assert daemon.virt.lookupByName(name).XMLDesc(0) == definition
            assert names(daemon) & {f"{name}2"} == set()
        lamella.ok(*words)
        found = daemon.virt.lookupByName(target)
        assert not found.isActive()
        variables = Path(tree(found).findtext("os/nvram") or "")
        assert variables.parent == place / "pool" and variables.read_bytes() == b"variables" * 100
        same(files(found), place, lamella, f"{name}:vda", f"{name}:vdb")
        definition = daemon.virt.lookupByName(name).XMLDesc(0)
    assert not state.exists()


def test_a_full_disk_defines_nothing(daemon: LibvirtDaemon, place: Path) -> None:
    lamella, domain = saved(daemon, place, "full")
    small = place / "pool"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", small], check=True)
    try:
        done = lamella.run("restore", "full:vda", "--to", "libvirt:full2", *pool(place))
        assert done.code == 1 and "not enough space" in done.err, done
        assert "full2" not in names(daemon) and list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)
    assert domain.UUIDString()
