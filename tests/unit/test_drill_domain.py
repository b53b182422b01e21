"""What a domain's XML makes of the machine of a drill: its buses, order and firmware, and nothing of the host."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamella.base.errors import IntegrityError, LamellaError
from lamella.operations.access.drill import hardware as of_hardware
from lamella.operations.access.drill.boot_sector import Firmware
from lamella.operations.access.drill.domain import DomainDrill, domain_of
from lamella.operations.access.drill.hardware import BUSES, SCSI, DrillDisk, Hardware
from lamella.operations.backup.story import Request, plan_backup
from lamella.operations.shared.selection import select
from lamella.sources.file import FileSource
from tests.features import require
from tests.unit.small_repository import OPTIONS, Small, image

Q35 = "<type arch='x86_64' machine='pc-q35-7.2'>hvm</type>"
UEFI = f"{Q35}<loader readonly='yes' type='pflash'>/etc/shadow</loader><nvram>/etc/passwd</nvram>"
HOST = """
  <emulator>/tmp/evil</emulator>
  <disk type='file' device='cdrom'><source file='/evil.iso'/><target dev='sdz' bus='sata'/><readonly/></disk>
  <hostdev mode='subsystem' type='pci'><source><address bus='0x06'/></source></hostdev>
  <interface type='network'><source network='evil'/></interface>
  <filesystem type='mount'><source dir='/evil'/><target dir='host'/></filesystem>
  <serial type='file'><source path='/evil'/></serial>
"""
SCHEMA = "http://libvirt.org/schemas/domain/qemu/1.0"
COMMAND_LINE = f"<qemu:commandline xmlns:qemu='{SCHEMA}'><qemu:arg value='evil'/></qemu:commandline>"


class OfDomain(FileSource):
    """A file that stands for a disk of a domain."""

    def __init__(self, path: Path, machine: str, domain: str) -> None:
        super().__init__(path, machine)
        self._as = f"libvirt:{machine}:{domain}:{path.name}".encode()

    @property
    def identity(self) -> bytes:
        return self._as


def xml(*disks: str, system: str = Q35, more: str = "", memory: str = "<memory>524288</memory>") -> str:
    return f"<domain><name>mail</name>{memory}<os>{system}</os><devices>{''.join(disks)}{more}</devices></domain>"


def disk(name: str, bus: str = "virtio", more: str = "") -> str:
    return f"<disk type='file' device='disk'><source file='/x'/><target dev='{name}' bus='{bus}'/>{more}</disk>"


@pytest.fixture
def small(tmp_path: Path) -> Small:
    (tmp_path / "disks").mkdir()
    return Small.make(tmp_path)


@contextmanager
def drilled(small: Small, text: str, *names: str, nvram: bytes | None = None) -> Iterator[DomainDrill | None]:
    """What a drill makes of the first of these disks, which one run saved with this XML."""
    documents = {"domain.xml": text.encode(), **({} if nvram is None else {"nvram": nvram})}
    with small.opened() as repo:
        requests = [
            Request(
                f"mail:{name}",
                OfDomain(image(small.place / "disks" / name, "a"), repo.host.machine, "u"),
                documents=documents,
            )
            for name in names
        ]
        assert plan_backup(repo, requests, OPTIONS).execute().complete
    with small.opened() as repo:
        yield domain_of(repo, select(repo, [f"mail:{names[0]}"])[0])


def machine(small: Small, text: str, *names: str, nvram: bytes | None = None) -> Hardware:
    with drilled(small, text, *names, nvram=nvram) as found:
        assert found is not None and found.hardware is not None
        assert [one.volume_name for one in found.volumes] == [f"mail:{one.name}" for one in found.hardware.disks]
        return found.hardware


def test_all_disks_come_on_their_buses_in_their_order(small: Small) -> None:
    text = xml(
        disk("vda"),
        disk("sda", "sata", "<boot order='2'/><serial>S-1</serial>"),
        disk("sdb", "scsi", "<boot order='1'/><blockio logical_block_size='4096'/><serial>a,evil=b</serial>"),
        more="<controller type='scsi' model='lsilogic'/>",
    )
    found = machine(small, text, "sda", "sdb", "vda")
    assert found.disks == (
        DrillDisk("vda", "virtio", 3),
        DrillDisk("sda", "sata", 2, "S-1"),
        DrillDisk("sdb", "scsi", 1, "", 4096),
    )
    assert (found.machine, found.memory_mib, found.firmware, found.scsi) == ("q35", 512, Firmware.BIOS, "lsi")
    devices = [word for word in found.disk_words("abc") if "drive=disk" in word]
    assert devices == [
        "virtio-blk-pci,drive=disk0,bootindex=3",
        "ide-hd,bus=ide.0,drive=disk1,bootindex=2,serial=S-1",
        "scsi-hd,bus=scsi.0,drive=disk2,bootindex=1,logical_block_size=4096,physical_block_size=4096",
    ]


def test_nothing_of_the_host_that_the_xml_names_reaches_the_machine(small: Small, tmp_path: Path) -> None:
    text = xml(disk("vda"), more=HOST, system=UEFI).replace("</domain>", f"{COMMAND_LINE}</domain>")
    found = machine(small, text, "vda")
    assert found.firmware is Firmware.UEFI and found.nvram is None
    require("ovmf", Path("/usr/share/OVMF").is_dir(), "ovmf is not installed")
    words = " ".join([*found.disk_words(["URI"]), *found.firmware_words(tmp_path)])
    assert not any(one in words for one in ("evil", "/etc", "/x", "network")), words


@pytest.mark.parametrize("board", ["q35", "pc"])
@pytest.mark.parametrize("scsi", [Hardware.__dataclass_fields__["scsi"].default, *SCSI.values()])
def test_qemu_has_every_device(board: str, scsi: str) -> None:
    qemu = shutil.which("qemu-system-x86_64")
    require("qemu-system-x86_64", qemu is not None, "there is no QEMU")
    disks = tuple(DrillDisk(f"d{number}", bus, number + 1, "S", 4096) for number, bus in enumerate(BUSES))
    if scsi == "pvscsi" and board == "pc":
        disks = (*disks, DrillDisk("second", "ide", 9))
    words = Hardware(Firmware.BIOS, disks, board, scsi=scsi).disk_words(["null-co://"] * len(disks))
    command = [str(qemu), "-M", board, "-accel", "tcg", "-nodefaults", "-display", "none", "-S", "-monitor", "stdio"]
    done = subprocess.run([*command, *words], input="quit\n", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("size", "mib"), [(131072, 2), (540672, 4)])
def test_variables_come_with_the_uefi_of_their_size(small: Small, tmp_path: Path, size: int, mib: int) -> None:
    require("ovmf", Path("/usr/share/OVMF").is_dir(), "ovmf is not installed")
    found = machine(small, xml(disk("vda"), system=UEFI), "vda", nvram=b"v" * size)
    words = found.firmware_words(tmp_path)
    code, variables = (Path(word.partition(",file=")[2]) for word in words if ",file=" in word)
    assert code.stat().st_size + size == mib << 20 and variables.read_bytes() == b"v" * size
    assert "readonly=on" in words[1]


def test_foreign_variables_are_left_out_and_told(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    with drilled(small, xml(disk("vda"), system=UEFI), "vda", nvram=b"QFI\xfb") as found:
        assert found is not None and found.hardware is not None and found.hardware.nvram is None
        assert any("without them" in note for note in found.notes)
    monkeypatch.setattr(of_hardware, "_WHOLE", ())
    with pytest.raises(LamellaError, match="firmware is not installed"):
        Hardware(Firmware.UEFI).firmware_words(small.place)


def test_what_was_not_saved_is_told(small: Small) -> None:
    with drilled(small, xml(disk("vda"), disk("vdb"), disk("vdc")), "vdb") as found:
        assert found is not None and found.hardware is not None
        assert [one.name for one in found.hardware.disks] == ["vdb"]
        assert found.notes == ("without vda, vdc: not in this snapshot",)


def test_a_kernel_of_the_host_is_no_machine_to_boot(small: Small) -> None:
    with drilled(small, xml(disk("vda"), system=f"{Q35}<kernel>/boot/vmlinuz</kernel>"), "vda") as found:
        assert found is not None and found.hardware is None


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        (xml(disk("vda", "fdc")), LamellaError, "'fdc'"),
        (xml(disk("vda"), system="<type arch='aarch64'>hvm</type>"), LamellaError, "aarch64"),
        (xml(disk("sda")), IntegrityError, "has no disk vda"),
        ("<domain>", IntegrityError, "cannot be read"),
        ("", IntegrityError, "cannot be read"),
    ],
)
def test_a_machine_that_cannot_be_had_is_refused(small: Small, text: str, kind: type[LamellaError], said: str) -> None:
    with pytest.raises(kind, match=said), drilled(small, text, "vda"):
        pass


@pytest.mark.parametrize("memory", ["", "<memory>x</memory>", "<memory unit='parsec'>1</memory>"])
def test_odd_figures_are_those_of_any_machine(small: Small, memory: str) -> None:
    more = "<boot order='-1'/><blockio logical_block_size='7'/>"
    found = machine(small, xml(disk("vda", more=more), memory=memory), "vda")
    assert found == Hardware(Firmware.BIOS, (DrillDisk("vda"),))
