"""`lamella drill` of a domain that libvirt described: all its disks, its firmware, its order; a verdict for each."""

from __future__ import annotations

import shutil
import struct
import subprocess
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.cli.boot_disk import KERNEL, LOGIN, initramfs, make_boot_disk, programs
from tests.cli.program import Lamella
from tests.features import require
from tests.system.libvirt_daemon import LibvirtDaemon, libvirt_daemon

pytestmark = pytest.mark.slow
MIB = 1 << 20
OVMF = Path("/usr/share/OVMF")
LOADER = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
# The machine offers a login only if its other disk is there, as the first virtio disk.
WITH_DATA = f'[ "$($B head -c 8 /dev/vda)" = lamella! ] || $B poweroff -f\n{LOGIN}'
ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
START, SECTORS = 2048, 128 * 2048


@pytest.fixture
def place() -> Iterator[Path]:
    with TemporaryDirectory(prefix="ld") as folder:
        yield Path(folder)


@pytest.fixture
def daemon(place: Path) -> Iterator[LibvirtDaemon]:
    programs()
    (place / "d").mkdir()
    with libvirt_daemon(place / "d") as found:
        yield found


def program(daemon: LibvirtDaemon, place: Path, monkeypatch: pytest.MonkeyPatch) -> Lamella:
    monkeypatch.setattr("tests.cli.program.SECONDS", 280)
    (place / "key").write_bytes(b"k" * 32)
    (place / "key").chmod(0o600)
    (place / "st").mkdir(mode=0o700)
    (place / "st/guest-without-kvm").touch()
    env = {"LAMELLA_REPO": str(place / "repo"), "LAMELLA_STATE_DIR": str(place / "st"), **daemon.env}
    lamella = Lamella({**env, "LAMELLA_CACHE_DIR": str(place / "ca")}, ["--keyfile", str(place / "key")])
    lamella.ok("init", "-q")
    return lamella


def define(daemon: LibvirtDaemon, name: str, disks: str, system: str, more: str = "") -> None:
    kind = "<type arch='x86_64' machine='q35'>hvm</type>"
    daemon.virt.defineXML(
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>512</memory><vcpu>1</vcpu>"
        f"<os>{kind}{system}</os><features><acpi/></features>"
        f"<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}{more}</devices></domain>"
    )


def disk(path: Path, target: str, bus: str, more: str = "") -> str:
    return (
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/>"
        f"<source file='{path}'/><target dev='{target}' bus='{bus}'/>{more}</disk>"
    )


def test_a_domain_boots_with_all_its_disks_or_fails(
    daemon: LibvirtDaemon, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lamella, boot, data = program(daemon, place, monkeypatch), place / "boot.img", place / "data.img"
    make_boot_disk(boot, place, WITH_DATA)
    data.write_bytes(b"lamella!".ljust(MIB, b"\0"))
    disks = disk(data, "vda", "virtio") + disk(boot, "sda", "sata", "<boot order='1'/>")
    nic = "<interface type='user'><model type='virtio'/></interface>"
    define(daemon, "mail", disks, "", nic)
    lamella.ok("backup", "libvirt:mail", "-q")
    # Named by the disk that could not even boot by itself.
    done = lamella.json("drill", "mail:vda")
    assert (done["result"], done["verdict"], done["sign"]) == ("passed", "booted", "a login prompt"), done
    assert done["disks"] == ["mail:vda", "mail:sda"]
    drilled = {row["volume"]: row["drilled"]["verdict"] for row in lamella.json("status", code=3)["volumes"]}
    assert drilled == {"mail:vda": "booted", "mail:sda": "booted"}
    # The other disk is spoiled: the machine does not come up, and neither volume is called good.
    data.write_bytes(bytes(MIB))
    lamella.ok("backup", "libvirt:mail", "-q")
    done = lamella.json("drill", "mail:sda", "--seconds", "60", code=1)
    assert done["verdict"] == "failed", done
    drilled = {row["volume"]: row["drilled"]["verdict"] for row in lamella.json("status", code=3)["volumes"]}
    assert drilled == {"mail:vda": "failed", "mail:sda": "failed"}


def test_a_domain_boots_by_uefi_with_its_variables(
    daemon: LibvirtDaemon, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = OVMF.is_dir() and LOADER.exists() and shutil.which("mcopy")
    require("ovmf", bool(there), "needs ovmf, systemd-boot-efi and mtools")
    lamella, boot, nvram = program(daemon, place, monkeypatch), place / "boot.img", place / "vars.fd"
    make_uefi_disk(boot, place)
    shutil.copyfile(OVMF / "OVMF_VARS_4M.fd", nvram)
    system = f"<loader readonly='yes' type='pflash'>{OVMF}/OVMF_CODE_4M.fd</loader><nvram>{nvram}</nvram>"
    define(daemon, "web", disk(boot, "vda", "virtio"), system)
    saved = lamella.json("backup", "libvirt:web")
    assert saved["volumes"][0]["result"] == "complete"
    told = lamella.run("drill", "web:vda")
    assert told.code == 0 and "booting the domain web by uefi" in told.err and "without them" not in told.err, told
    assert "booted" in told.out and nvram.read_bytes() == (OVMF / "OVMF_VARS_4M.fd").read_bytes()


def make_uefi_disk(path: Path, place: Path) -> None:
    """A disk with a GPT (UEFI 2.10, 5.3) and one partition, from which systemd-boot starts a kernel."""
    esp = place / "esp.img"
    with esp.open("wb") as file:
        file.truncate((SECTORS - START - 64) * 512)
    subprocess.run(["mformat", "-i", esp, "-F", "::"], check=True)
    tree = place / "esp"
    (tree / "EFI/BOOT").mkdir(parents=True)
    (tree / "loader/entries").mkdir(parents=True)
    shutil.copyfile(LOADER, tree / "EFI/BOOT/BOOTX64.EFI")
    shutil.copyfile(KERNEL, tree / "vmlinuz")
    (tree / "initrd").write_bytes(initramfs(LOGIN))
    (tree / "loader/loader.conf").write_text("timeout 0\n")
    options = "console=tty0 console=ttyS0 quiet mitigations=off no_timer_check nokaslr"
    (tree / "loader/entries/one.conf").write_text(f"title one\nlinux /vmlinuz\ninitrd /initrd\noptions {options}\n")
    subprocess.run(["mcopy", "-i", esp, "-s", *tree.iterdir(), "::"], check=True)
    entry = ESP.bytes_le + uuid.uuid4().bytes_le + struct.pack("<QQQ", START, SECTORS - 65, 0) + bytes(72)
    entries = entry.ljust(128 * 128, b"\0")
    disk_id = uuid.uuid4().bytes_le

    def header(at: int, other: int, table: int) -> bytes:
        def packed(checksum: int) -> bytes:
            fields = (b"EFI PART", 0x10000, 92, checksum, 0, at, other, 34, SECTORS - 34, disk_id, table, 128, 128)
            return struct.pack("<8sIIIIQQQQ16sQIII", *fields, zlib.crc32(entries))

        return packed(zlib.crc32(packed(0))).ljust(512, b"\0")

    whole = struct.pack("<B3xB3xII", 0, 0xEE, 1, SECTORS - 1)
    with path.open("wb") as file:
        file.write(bytes(446) + whole + bytes(48) + b"\x55\xaa" + header(1, SECTORS - 1, 2) + entries)
        file.seek(START * 512)
        with esp.open("rb") as content:
            shutil.copyfileobj(content, file)
        file.seek((SECTORS - 33) * 512)
        file.write(entries + header(SECTORS - 1, 1, SECTORS - 33))
        file.truncate(SECTORS * 512)
