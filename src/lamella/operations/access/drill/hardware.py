"""The hardware that a drill gives to a machine, as QEMU's words. Nothing of it is a device of this host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from lamella.base.errors import LamellaError
from lamella.operations.access.drill.boot_sector import Firmware

MEMORY_MIB: Final = 1024
SECTOR: Final = 512
Q35, PC = "q35", "pc"
_CODE: Final = (
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "/usr/share/OVMF/OVMF_CODE.fd",
    "/usr/share/edk2/ovmf/OVMF_CODE.fd",
    "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
    "/usr/share/qemu/ovmf-x86_64-4m-code.bin",
    "/usr/share/qemu/ovmf-x86_64-code.bin",
)
"""UEFI as distributions install it, to be used with variables of its own size: together they fill 2 or 4 MiB."""
_WHOLE: Final = ("/usr/share/ovmf/OVMF.fd", *_CODE[2:], *_CODE[:2])
"""UEFI that forgets its variables."""
_FLASH_BYTES: Final = (2 << 20, 4 << 20)
VIRTIO_SCSI: Final = "virtio-scsi-pci"
SCSI: Final = {"lsilogic": "lsi", "lsisas1068": "mptsas1068", "vmpvscsi": "pvscsi"}
"""libvirt's model of a SCSI controller -> QEMU's device; any other is virtio."""
_SMALL_SECTORS: Final = ("sata", "ide")
"""Buses on which QEMU has sectors of 512 bytes only."""
BUSES: Final = ("virtio", "scsi", "sata", "ide", "usb", "nvme")


@dataclass(frozen=True, slots=True)
class DrillDisk:
    """A disk: its name for people, how it is attached, and its place in the order of booting."""

    name: str
    bus: str = "virtio"
    boot: int = 1
    serial: str = ""
    sector: int = SECTOR
    """Bytes of a sector, as the machine sees them."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a machine consists of."""

    firmware: Firmware
    disks: tuple[DrillDisk, ...] = (DrillDisk("disk"),)
    machine: str = Q35
    memory_mib: int = MEMORY_MIB
    nvram: bytes | None = None
    """UEFI's variables; None: those of a new machine."""
    scsi: str = VIRTIO_SCSI
    """QEMU's device for the bus `scsi`."""

    def disk_words(self, uris: Sequence[str]) -> list[str]:
        """The options for disks at these NBD URIs, in the order of `disks`."""
        words: list[str] = []
        used = {disk.bus for disk in self.disks}
        controllers = {"scsi": f"{self.scsi},id=scsi", "usb": "qemu-xhci,id=usb", "sata": "ahci,id=sata"}
        for bus, device in controllers.items():
            if bus in used and (bus != "sata" or self.machine == PC):
                words += ["-device", device]
        ports = count()
        for number, (disk, uri) in enumerate(zip(self.disks, uris, strict=True)):
            words += ["-drive", f"file={uri},if=none,id=disk{number},format=raw,cache=unsafe"]
            device = f"{self._device(disk, ports)},drive=disk{number},bootindex={disk.boot}"
            if disk.serial or disk.bus == "nvme":
                device += f",serial={disk.serial or disk.name}"
            if disk.sector != SECTOR and disk.bus not in _SMALL_SECTORS:
                device += f",logical_block_size={disk.sector},physical_block_size={disk.sector}"
            words += ["-device", device]
        return words

    def _device(self, disk: DrillDisk, ports: count[int]) -> str:
        if disk.bus == "ide" and self.machine == PC:
            port = next(ports)
            return f"ide-hd,bus=ide.{port // 2},unit={port % 2}"
        if disk.bus in ("sata", "ide"):  # q35 has one controller for both
            return f"ide-hd,bus={'sata' if self.machine == PC else 'ide'}.{next(ports)}"
        return {"scsi": "scsi-hd,bus=scsi.0", "usb": "usb-storage,bus=usb.0", "nvme": "nvme"}.get(
            disk.bus, "virtio-blk-pci"
        )

    def firmware_words(self, folder: Path) -> list[str]:
        """The options for the firmware; UEFI's variables are copied to `folder`. Raises LamellaError for none."""
        if self.firmware is not Firmware.UEFI:
            return []
        code = None if self.nvram is None else code_for(len(self.nvram))
        if code is None or self.nvram is None:
            return ["-bios", str(_first(_WHOLE))]
        variables = folder / "nvram"
        variables.write_bytes(self.nvram)
        flash = "if=pflash,format=raw"
        return ["-drive", f"{flash},unit=0,readonly=on,file={code}", "-drive", f"{flash},unit=1,file={variables}"]


def code_for(variables_bytes: int) -> Path | None:
    """UEFI that takes variables of this size; None if this host has none."""
    fits = [size - variables_bytes for size in _FLASH_BYTES]
    return next((path for path in map(Path, _CODE) if path.is_file() and path.stat().st_size in fits), None)


def _first(places: Sequence[str]) -> Path:
    found = next((path for path in map(Path, places) if path.is_file()), None)
    if found is None:
        hint = "install ovmf (Debian) or edk2-ovmf (Fedora)"
        raise LamellaError("the disk boots by UEFI, whose firmware is not installed", hint=hint)
    return found
