"""The `libvirt` driver through the command, against a real libvirtd and domains of QEMU."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from lamella.sources.base import Consistency, Keeping
from lamella.sources.registry import open_kept_source
from lamella_kit.source_reading import whole
from tests.cli.program import ROOT, Lamella, environment
from tests.system.libvirt_daemon import LibvirtDaemon, domain_xml, libvirt_daemon
from tests.system.libvirt_linux import Linux, SerialLine, make_disk, make_initrd

MIB = 1 << 20
SIZE = 16 * MIB


@pytest.fixture(scope="module")
def daemon() -> Iterator[LibvirtDaemon]:
    with TemporaryDirectory(prefix="lv") as folder, libvirt_daemon(Path(folder)) as found:
        yield found


@pytest.fixture
def place() -> Iterator[Path]:
    with TemporaryDirectory(prefix="lv") as folder:
        yield Path(folder)


def program(daemon: LibvirtDaemon, place: Path) -> Lamella:
    (place / "key").write_bytes(b"k" * 32)
    (place / "key").chmod(0o600)
    env = {"LAMELLA_REPO": str(place / "repo"), "LAMELLA_STATE_DIR": str(place / "st"), **daemon.env}
    options = ["--keyfile", str(place / "key")]
    lamella = Lamella({**env, "LAMELLA_CACHE_DIR": str(place / "ca")}, options)
    lamella.ok("init", "-q")
    return lamella


def defined(daemon: LibvirtDaemon, place: Path, name: str, forms: tuple[str, ...] = ("qcow2", "qcow2", "raw")) -> Any:  # noqa: ANN401
    disks = {f"vd{letter}": place / f"{letter}.{form}" for letter, form in zip("abc", forms, strict=False)}
    for path in disks.values():
        subprocess.run(["qemu-img", "create", "-q", "-f", path.suffix[1:], str(path), str(SIZE)], check=True)
    return daemon.virt.defineXML(domain_xml(name, disks))


def modes(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(row["volume"], row["mode"], row["consistency"]) for row in document["volumes"]]


def contents(lamella: Lamella, place: Path, *volumes: str) -> list[bytes]:
    (place / "out").mkdir()
    lamella.ok("restore", *volumes, "--to", f"{place}/out/")
    return [next((place / "out").glob(f"*{volume[-3:]}.img")).read_bytes() for volume in volumes]


def gone(left: Callable[[], object]) -> None:
    """Wait until nothing is left."""
    until = time.monotonic() + 30
    while found := left():
        assert time.monotonic() < until, found
        time.sleep(0.05)


def ours(domain: Any) -> list[str]:  # noqa: ANN401
    return [row.getName() for row in domain.listAllCheckpoints() if row.getName().startswith("lamella-")]


def test_a_domain_running_paused_and_halted(daemon: LibvirtDaemon, place: Path) -> None:
    lamella, domain = program(daemon, place), defined(daemon, place, "one")
    domain.create()
    for disk in range(3):
        daemon.guest(domain, disk, "write -P 1 0 4M")
    first = lamella.json("backup", "libvirt:one")
    assert modes(first) == [(f"one:vd{letter}", "full", "live") for letter in "abc"]
    daemon.guest(domain, 0, "write -P 2 1M 64k")
    daemon.guest(domain, 2, "write -P 3 2M 64k")
    domain.suspend()
    document = lamella.json("backup", "libvirt:one")
    expected = [("one:vda", "incremental", "live"), ("one:vdb", "incremental", "live"), ("one:vdc", "compare", "live")]
    assert modes(document) == expected
    assert domain.state()[0] == 3  # it is still paused
    domain.resume()
    # One disk loses its bitmap.
    nodes = daemon.monitor(domain, "query-named-block-nodes", flat=True)
    (node,) = [row["node-name"] for row in nodes if row["drv"] == "qcow2" and row["file"].endswith("/b.qcow2")]
    (checkpoint,) = ours(domain)
    daemon.monitor(domain, "block-dirty-bitmap-remove", node=node, name=checkpoint)
    daemon.guest(domain, 1, "write -P 4 3M 64k")
    document = lamella.json("backup", "libvirt:one")
    assert [row[1] for row in modes(document)] == ["incremental", "compare", "compare"]
    domain.destroy()
    document = lamella.json("backup", "libvirt:one")
    assert modes(document) == [(f"one:vd{letter}", "compare", "halted") for letter in "abc"]
    domain.create()  # and its checkpoint still counts
    daemon.guest(domain, 0, "write -P 5 8M 64k")
    document = lamella.json("backup", "libvirt:one")
    assert [row[1] for row in modes(document)] == ["incremental", "incremental", "compare"]
    assert len(ours(domain)) == 1
    a, b, c = contents(lamella, place, "one:vda", "one:vdb", "one:vdc")
    assert [a[at * MIB] for at in (0, 1, 8, 9)] == [1, 2, 5, 0] and len(a) == SIZE
    assert b[3 * MIB] == 4 and c[2 * MIB] == 3
    lamella.ok("restore", "one:vda", "--document", "domain.xml", "--to", place / "domain.xml")
    domain.destroy()
    for checkpoint in domain.listAllCheckpoints():
        checkpoint.delete(2)
    domain.undefine()
    again = daemon.virt.defineXML((place / "domain.xml").read_text())
    assert again.UUIDString() == domain.UUIDString() and not again.isActive()


def test_all_disks_that_are_open_are_of_one_moment(
    daemon: LibvirtDaemon, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its end the scratch files are written out while the job runs: QEMU flushes them, and its guest waits."""
    written: list[str] = []
    fdatasync = os.fdatasync

    def noted(fd: int) -> None:
        assert domain.backupGetXMLDesc(0), "the job has not ended"
        written.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        fdatasync(fd)

    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", daemon.env["LIBVIRT_DEFAULT_URI"])
    domain = defined(daemon, place, "four", ("qcow2", "raw"))
    domain.create()
    keeping = Keeping("01234567", records=place / "records")
    sources = [open_kept_source(f"libvirt:four#{disk}", "0123456789abcdef", keeping) for disk in ("vda", "vdb")]
    with sources[0].freeze() as first:
        daemon.guest(domain, 0, "write -P 8 0 64k")
        daemon.guest(domain, 1, "write -P 9 0 64k")
        with sources[1].freeze() as second:
            for volume in (first, second):
                assert whole(volume) == bytes(SIZE)
                assert volume.consistency() == Consistency.LIVE
        monkeypatch.setattr(os, "fdatasync", noted)
    assert sorted(name.rpartition("-")[2] for name in written) == ["vda.qcow2", "vdb.qcow2"]
    assert ours(domain) == []


def test_a_device_that_is_written_while_it_is_read_is_not_halted(daemon: LibvirtDaemon, place: Path) -> None:
    """The domain was started and shut down again meanwhile. Nothing of that shows in the inode of its device: libvirt
    gives each QEMU a /dev with nodes of its own."""
    lamella, _ = program(daemon, place), defined(daemon, place, "dev", ("raw",))
    (place / "a.raw").rename(place / "image")
    losetup = ["losetup", "--find", "--show", str(place / "image")]
    device = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
    try:
        (place / "a.raw").symlink_to(device)
        assert modes(lamella.json("backup", "libvirt:dev")) == [("dev:vda", "full", "halted")]
        os.mknod(place / "node", 0o600 | stat.S_IFBLK, Path(device).stat().st_rdev)
        write = f"dd if=/dev/urandom of={place}/node bs=64k count=1 conv=notrunc,fsync"
        refused = lamella.run("backup", "libvirt:dev", "--after", write)
        assert refused.code == 3 and "moved while it was read" in refused.err, refused
        assert modes(lamella.json("backup", "libvirt:dev")) == [("dev:vda", "compare", "halted")]
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def test_what_lies_below_a_halted_disk_counts(daemon: LibvirtDaemon, place: Path) -> None:
    """Somebody writes to the backing file, and nothing to the image itself."""
    lamella, _ = program(daemon, place), defined(daemon, place, "below", ("qcow2",))
    base = place / "base"
    base.write_bytes(bytes(SIZE))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", place / "a.qcow2"], check=True)
    assert modes(lamella.json("backup", "libvirt:below")) == [("below:vda", "full", "halted")]
    write = f"dd if=/dev/urandom of={base} bs=64k count=1 conv=notrunc"
    refused = lamella.run("backup", "libvirt:below", "--after", write)
    assert refused.code == 3 and "moved while it was read" in refused.err, refused


def test_who_cannot_be_backed_up_is_told_in_one_line(daemon: LibvirtDaemon, place: Path) -> None:
    lamella, domain = program(daemon, place), defined(daemon, place, "two", ("qcow2",))
    for address, code, word in (("libvirt:none", 1, "no domain none"), ("libvirt:two#vdx", 4, "there are: vda")):
        refused = lamella.run("backup", address)
        assert refused.code == code and word in refused.err and len(refused.err.splitlines()) == 1, refused
    domain.create()
    job = "<domainbackup mode='pull'><server transport='unix' socket='{0}/other'/><disks><disk name='vda' type='file'>"
    domain.backupBegin((job + "<scratch file='{0}/scratch'/></disk></disks></domainbackup>").format(place), None, 0)
    refused = lamella.run("backup", "libvirt:two")
    assert refused.code != 0 and "another program is backing up" in refused.err
    assert "other" in domain.backupGetXMLDesc(0)
    domain.abortJob()
    refused = lamella.run("backup", "libvirt:two", env={"PYTHONPATH": str(ROOT / "src")})
    assert refused.code != 0 and "python3-libvirt" in refused.err


HOLDING = """
import sys
from pathlib import Path
from lamella.sources.base import Keeping
from lamella.sources.registry import open_kept_source
with open_kept_source(sys.argv[1], "0123456789abcdef", Keeping(sys.argv[2], records=Path(sys.argv[3]))).freeze():
    print(flush=True)
    sys.stdin.read()
"""


def guardians(place: Path) -> list[int]:
    """Processes of ours that look after a domain."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            line = path.read_bytes()
            if b"guard" in line and os.fsencode(place) in line:
                found.append(int(path.parent.name))
    return found


def has_job(domain: Any) -> bool:  # noqa: ANN401
    try:
        return bool(domain.backupGetXMLDesc(0))
    except Exception as error:
        if "no domain backup job" not in str(error):
            raise
        return False


def test_a_killed_backup_is_ended_by_its_guardian_or_by_the_next_run(daemon: LibvirtDaemon, place: Path) -> None:
    lamella, domain = program(daemon, place), defined(daemon, place, "three", ("qcow2", "raw"))
    domain.create()
    daemon.guest(domain, 0, "write -P 1 0 1M")
    lamella.ok("backup", "libvirt:three")
    # The same owner: its records say who it is.
    owner = ours(domain)[0].split("-")[1]
    words = [sys.executable, "-c", HOLDING, "libvirt:three#vda", owner, str(place / "st/sources")]

    def files() -> list[Path]:
        return list(Path("/var/tmp").glob(f"lamella-{owner}-*"))

    # Another repository's checkpoint is newer than this change.
    daemon.guest(domain, 0, "write -P 3 4M 64k")
    for command in (["init", "-q"], ["backup", "libvirt:three#vda"]):
        lamella.ok(*command, env={"LAMELLA_REPO": str(place / "other")})
    for last in (False, True):
        with subprocess.Popen(words, env=environment(lamella.env), stdin=-1, stdout=-1) as held:
            assert held.stdout is not None
            held.stdout.readline()
            if not last:
                refused = lamella.run("backup", "libvirt:three#vdb")
                assert refused.code != 0 and "another lamella" in refused.err
            else:
                (guardian,) = guardians(place)
                os.kill(guardian, signal.SIGKILL)
            held.kill()
        if not last:
            gone(lambda: has_job(domain) or files())
            gone(lambda: guardians(place))
    assert has_job(domain) and len(ours(domain)) == 4 and files()
    daemon.guest(domain, 0, "write -P 2 2M 1M")  # the guest goes on
    document = lamella.json("backup", "libvirt:three")
    assert [row[1] for row in modes(document)] == ["incremental", "compare"]
    assert len(ours(domain)) == 2
    assert files() == []
    (saved,) = contents(lamella, place, "three:vda")
    assert saved[2 * MIB : 3 * MIB] == bytes([2]) * MIB and saved[4 * MIB] == 3
    gone(lambda: has_job(domain) or guardians(place))


def found_when_restored(daemon: LibvirtDaemon, place: Path, lamella: Lamella, volume: str) -> tuple[int, int]:
    """How many whole and spoilt files a guest finds that is restored as a domain, and booted."""
    (place / "pool").mkdir()
    # Its kernel is a file of the host that everybody may read, so the restored domain keeps that.
    place.chmod(0o755)
    (place / "initrd").chmod(0o644)
    document = lamella.json("restore", volume, "--to", "libvirt:again", "--pool", f"{place}/pool")
    assert [what for what in document["left_out"] if "kernel" in what] == [], document
    domain = daemon.virt.lookupByName("again")
    domain.create()
    line = SerialLine(domain)
    try:
        found = line.said(r"FOUND good=(\d+) bad=(\d+)\.")
        line.said(r"WROTE 2\.")
    finally:
        line.close()
    return int(found[1]), int(found[2])


# What a backup does that is frozen at this moment; whatever it says is written by the command.
FROZEN = """
import os, signal, sys, time
from lamella.cli.main import entry
from lamella.sources.virt import domain_xml, guardian
backup, child = domain_xml.backup, guardian._GuardianProcess
mode = sys.argv.pop(1)
children = []
def frozen(*more):
    if mode == "all die":
        for one in children:
            one.kill()
    if mode.endswith("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "guardian dead":
        children[0].kill()
    if mode == "late":
        time.sleep(2)
    return backup(*more)
def made(*words, **more):
    children.append(child(*words, **more))
    return children[-1]
domain_xml.backup, guardian._GuardianProcess = frozen, made
if mode == "late":
    guardian.FROZEN_SECONDS = 0.2
if mode == "impatient":
    guardian.ANSWER_SECONDS = 0.2
entry()
"""


def test_a_linux_guest_goes_on_whatever_becomes_of_its_backup_and_boots_from_what_is_restored(
    daemon: LibvirtDaemon, place: Path
) -> None:
    """What it says at each freeze: libvirt_linux.SLOW says which of them are slow."""
    make_initrd(place)
    lamella = program(daemon, place)
    guest = Linux(daemon, place, "linux", make_disk(place))
    guest.said(r"WROTE 4\.")
    notes = place / "st/sources"

    def hurt(mode: str) -> Lamella:
        return Lamella(lamella.env, [mode, *lamella.options], [sys.executable, "-c", FROZEN])

    def let_go(number: int) -> None:
        """It was frozen, thawed, and writes."""
        guest.said(rf"FROZEN {number}\.[\s\S]*THAWED {number}\.")
        guest.goes_on()
        gone(lambda: list(notes.glob("*.frozen")))

    document = lamella.json("backup", "libvirt:linux")
    assert modes(document) == [("linux:vda", "full", "quiesced")]
    let_go(1)
    assert hurt("die").run("backup", "libvirt:linux").code == -signal.SIGKILL
    let_go(2)
    words = [*lamella.command, *lamella.options, "backup", "libvirt:linux"]
    with subprocess.Popen(words, env=environment(lamella.env)) as killed:  # while the agent freezes
        guest.said(r"SLOW 3\.")
        killed.kill()
    let_go(3)
    # The guardian dies as well: it is frozen until the next backup.
    assert hurt("all die").run("backup", "libvirt:linux").code == -signal.SIGKILL
    guest.said(r"FROZEN 4\.")
    assert list(notes.glob("*.frozen"))
    assert modes(lamella.json("backup", "libvirt:linux")) == [("linux:vda", "incremental", "quiesced")]
    let_go(4)
    let_go(5)
    for number, (mode, seen) in enumerate((("impatient", "live"), ("late", "live"), ("guardian dead", "quiesced")), 6):
        assert modes(hurt(mode).json("backup", "libvirt:linux")) == [("linux:vda", "incremental", seen)]
        let_go(number)
    least = guest.written()
    document = lamella.json("backup", "libvirt:linux")
    assert modes(document) == [("linux:vda", "incremental", "quiesced")]
    guest.domain.destroy()
    good, bad = found_when_restored(daemon, place, lamella, "linux:vda")
    assert good >= least - 5 * (least // 15) - 5 and bad == 0


def test_setup_finds_domains_and_saves_their_images_once(daemon: LibvirtDaemon, place: Path) -> None:
    """An image that a domain uses, saved by itself as well, would be saved at a moment that is none."""
    lamella = program(daemon, place)
    (place / "vms").mkdir()
    defined(daemon, place / "vms", "found", ("qcow2",))
    (place / "vms" / "other.img").write_bytes(b"x" * MIB)
    words: list[str | Path] = ["setup", "-y", "-r", place / "R", "--when", "never", "--tell", "nobody"]
    env = {"HOME": str(place), "LAMELLA_CONFIG": str(place / "etc")}
    shown = lamella.run("--json", *words, "-n", env=env).json
    (text,) = shown["files"].values()
    sources = tomllib.loads(text)["profiles"]["main"]["sources"]
    assert "libvirt:found" in sources and f"{place}/vms/other.img" in sources
    assert not [one for one in sources if "qcow2" in one]
    done = lamella.run("--json", *words, "libvirt:found", place / "vms/other.img", env=env)
    assert done.code == 0, (done.err, done.out)
    assert {row["result"] for row in done.json["steps"]} == {"made", "done", "exists"}
