"""A domain of libvirt for a drill: the disks that were saved together, and what its XML says of the machine.

The XML came with the snapshot: whoever may publish chose it. So a machine is put together from words that are known
here; no path, no device and no network of the XML reaches QEMU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final
from xml.etree.ElementTree import Element

from lamella.base.errors import IntegrityError, LamellaError, SourceError, printable
from lamella.operations.access.drill.boot_sector import Firmware
from lamella.operations.access.drill.hardware import (
    BUSES,
    MEMORY_MIB,
    PC,
    Q35,
    SCSI,
    VIRTIO_SCSI,
    DrillDisk,
    Hardware,
    code_for,
)
from lamella.operations.access.guest import spare_mib
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.streaming import read_document
from lamella.repository.repository import Repository
from lamella.sources.virt.domain_xml import tree

_IDENTITY: Final = b"libvirt:"
XML, NVRAM = "domain.xml", "nvram"
_LEAST_MIB: Final = 256
_LAST: Final = 1 << 20
_SERIAL: Final = re.compile(r"[A-Za-z0-9_.+-]{1,36}")
_UNITS: Final = {"b": 0, "bytes": 0, "KiB": 10, "k": 10, "MiB": 20, "M": 20, "GiB": 30, "G": 30, "TiB": 40, "T": 40}
"""libvirt's units of memory that are powers of two, as shifts."""
_SECTORS: Final = ("512", "4096")


@dataclass(frozen=True, slots=True)
class DomainDrill:
    """A domain: its volumes in the order of the hardware's disks, and what people should know."""

    name: str
    volumes: tuple[Selected, ...]
    hardware: Hardware | None
    """None: the domain is started with a kernel of its host, which no volume holds."""
    notes: tuple[str, ...] = ()


def domain_of(repo: Repository, selected: Selected) -> DomainDrill | None:
    """The domain that a snapshot is a disk of; None if it is no such disk.

    Raises LamellaError for a machine that cannot be had here, IntegrityError, StoreError.
    """
    disk = _disk_of(selected)
    if disk is None or not any(row.name == XML for row in selected.snapshot.added.documents):
        return None
    try:
        root = tree(read_document(repo, selected, XML).decode("utf-8", "replace"))
    except SourceError as error:
        raise IntegrityError(f"the XML of the domain of {selected.text} cannot be read", obj=selected.text) from error
    saved = {name: one for one in _saved_together(repo, selected) if (name := _disk_of(one)) is not None}
    disks: list[tuple[Element, str]] = []
    absent: list[tuple[Element, str]] = []
    for element, name in _disks(root):
        (disks if name in saved else absent).append((element, name))
    notes = [f"without {', '.join(printable(name) for _, name in absent)}: not in this snapshot"] if absent else []
    if disk not in {name for _, name in disks}:
        raise IntegrityError(f"the domain of {selected.text} has no disk {printable(disk)}", obj=selected.text)
    name = printable(root.findtext("name") or "?")
    volumes = tuple(saved[target] for _, target in disks)
    if root.find("os/kernel") is not None:
        return DomainDrill(name, volumes, None)
    hardware, more = _hardware(repo, selected, root, [element for element, _ in disks])
    return DomainDrill(name, volumes, hardware, (*notes, *more))


def _disk_of(selected: Selected) -> str | None:
    """The disk's name in its domain, from `libvirt:MACHINE:UUID:DISK`."""
    parts = selected.volume.identity.split(b":", 3)
    return parts[3].decode("utf-8", "replace") if parts[0] + b":" == _IDENTITY and len(parts) == 4 else None


def _saved_together(repo: Repository, selected: Selected) -> Iterable[Selected]:
    """The snapshots of all disks of the domain that one run saved."""
    domain, wanted = selected.volume.identity.rpartition(b":")[0] + b":", selected.snapshot
    shown = repo.catalogue.shown_names()
    for volume in repo.catalogue.volumes.values():
        if volume.identity.startswith(domain):
            for one in volume.snapshots:
                if (one.name, one.ref.writer) == (wanted.name, wanted.ref.writer):
                    yield Selected(shown[volume.volume_id], volume, one)


def _disks(root: Element) -> Iterable[tuple[Element, str]]:
    for disk in root.findall("./devices/disk"):
        target = disk.find("target")
        if disk.get("device", "disk") in ("disk", "lun") and disk.find("readonly") is None and target is not None:
            yield disk, target.get("dev", "")


def _hardware(
    repo: Repository, selected: Selected, root: Element, disks: list[Element]
) -> tuple[Hardware, tuple[str, ...]]:
    kind = root.find("os/type")
    arch, machine = ("x86_64", Q35) if kind is None else (kind.get("arch", "x86_64"), kind.get("machine", PC))
    if arch not in ("x86_64", "i686"):
        raise LamellaError(f"the domain of {selected.text} is for processors of the kind {printable(arch)}")
    nvram: bytes | None = None
    notes: tuple[str, ...] = ()
    firmware = Firmware.UEFI if _is_uefi(root) else Firmware.BIOS
    if firmware is Firmware.UEFI and any(row.name == NVRAM for row in selected.snapshot.added.documents):
        nvram = read_document(repo, selected, NVRAM)
        if code_for(len(nvram)) is None:
            nvram, notes = None, ("no UEFI of this host takes the domain's variables: it boots without them",)
    scsi = next((one.get("model", "") for one in root.findall("./devices/controller[@type='scsi']")), "")
    board, controller = Q35 if "q35" in machine else PC, SCSI.get(scsi, VIRTIO_SCSI)
    return Hardware(firmware, _in_order(disks), board, _memory_mib(root), nvram, controller), notes


def _in_order(elements: list[Element]) -> tuple[DrillDisk, ...]:
    """The disks; those without a place of their own boot after the others, as they are written."""
    made = [_disk(element, number) for number, element in enumerate(elements)]
    ranks = sorted(range(len(made)), key=lambda number: (made[number].boot, number))
    return tuple(replace(disk, boot=1 + ranks.index(number)) for number, disk in enumerate(made))


def _is_uefi(root: Element) -> bool:
    system = root.find("os")
    loader = root.find("os/loader")
    return system is not None and (
        system.get("firmware") == "efi" or (loader is not None and loader.get("type") == "pflash")
    )


def _disk(element: Element, number: int) -> DrillDisk:
    target, order, block = element.find("target"), element.find("boot"), element.find("blockio")
    name = "" if target is None else target.get("dev", "")
    bus = "virtio" if target is None else target.get("bus", "virtio")
    if bus not in BUSES:
        raise LamellaError(f"the disk {printable(name)} of the domain is on a bus that drills do not have: {bus!r}")
    first = "" if order is None else order.get("order", "")
    serial = element.findtext("serial") or ""
    sector = "512" if block is None else block.get("logical_block_size", "512")
    return DrillDisk(
        name if _SERIAL.fullmatch(name) else f"disk{number}",
        bus,
        int(first) if first.isascii() and first.isdecimal() and len(first) < 5 else _LAST + number,
        serial if _SERIAL.fullmatch(serial) else "",
        int(sector) if sector in _SECTORS else 512,
    )


def _memory_mib(root: Element) -> int:
    """As much as the domain has, within what this host can spare."""
    memory = root.find("memory")
    text, unit = ("", "KiB") if memory is None else ((memory.text or "").strip(), memory.get("unit", "KiB"))
    if not (text.isascii() and text.isdecimal() and len(text) < 16) or unit not in _UNITS:
        return MEMORY_MIB
    return max(_LEAST_MIB, min(int(text) << _UNITS[unit] >> 20, max(MEMORY_MIB, spare_mib() // 2)))
