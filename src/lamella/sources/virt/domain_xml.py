"""Libvirt's XML of a domain, and the XML that starts a backup. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from lamella.base.errors import SourceError

_AGENT: Final = "org.qemu.guest_agent.0"
_TRACKED: Final = "qcow2"
"""The form of images that can hold the bitmap of a checkpoint."""


@dataclass(frozen=True, slots=True)
class DomainDisk:
    """A disk of a domain."""

    name: str
    """Its target, such as `vda`."""
    form: str
    path: str
    """File or block device; empty for anything else."""

    @property
    def tracked(self) -> bool:
        """Whether a checkpoint can be kept for it."""
        return self.form == _TRACKED


@dataclass(frozen=True, slots=True)
class DomainFacts:
    """A domain, as its XML says."""

    name: str
    uuid: str
    disks: Mapping[str, DomainDisk]
    has_agent: bool
    nvram: str
    """The path of its UEFI variables; empty if it has none in a file."""
    has_tpm: bool


def parsed(text: str) -> DomainFacts:
    """Raises SourceError for XML that is none of a domain."""
    root = tree(text)
    disks = {disk.name: disk for disk in _disks(root)}
    agents = root.findall(f"./devices/channel/target[@name='{_AGENT}']")
    has_agent = any(agent.get("state") == "connected" for agent in agents)
    has_tpm = root.find("./devices/tpm/backend[@type='emulator']") is not None
    uuid, name, nvram = (root.findtext(place) or "" for place in ("uuid", "name", "os/nvram"))
    return DomainFacts(name, uuid, disks, has_agent, nvram.strip(), has_tpm)


def tree(text: str) -> Element:
    """Raises SourceError for what is no XML."""
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as reason:
        raise SourceError(f"libvirt sent XML that cannot be read: {reason}") from reason


def _disks(root: Element) -> Iterator[DomainDisk]:
    """The disks that the guest can write to, and that stay in."""
    for disk in root.findall("./devices/disk"):
        target, driver, source = disk.find("target"), disk.find("driver"), disk.find("source")
        out = disk.get("device", "disk") not in ("disk", "lun") or disk.find("readonly") is not None
        if out or target is None or source is None or not target.get("dev"):
            continue
        form = "raw" if driver is None else driver.get("type", "raw")
        yield DomainDisk(target.get("dev", ""), form, source.get("file") or source.get("dev") or "")


def disks_of_checkpoint(text: str) -> set[str]:
    """The disks of which a checkpoint has a bitmap. Raises SourceError."""
    return {disk.get("name", "") for disk in tree(text).findall("./disks/disk[@checkpoint='bitmap']")}


def server_of_backup(text: str) -> str:
    """The socket of a backup that is under way. Raises SourceError."""
    server = tree(text).find("server")
    return "" if server is None else server.get("socket", "")


def backup(socket: str, scratch: Mapping[str, str], bases: Mapping[str, str], others: Iterable[str]) -> str:
    """The XML that starts a backup in pull mode; per disk its scratch file, and the checkpoint of its bitmap."""
    root = Element("domainbackup", mode="pull")
    SubElement(root, "server", transport="unix", socket=socket)
    disks = SubElement(root, "disks")
    for name, file in scratch.items():
        mode = {"backupmode": "full"}
        if name in bases:
            mode = {"backupmode": "incremental", "incremental": bases[name], "exportbitmap": bases[name]}
        disk = SubElement(disks, "disk", {"name": name, "backup": "yes", "type": "file", "exportname": name, **mode})
        SubElement(disk, "driver", type="qcow2")
        SubElement(disk, "scratch", file=file)
    for name in others:
        SubElement(disks, "disk", name=name, backup="no")
    return ElementTree.tostring(root, "unicode")


def checkpoint(name: str, tracked: Iterable[str], others: Iterable[str]) -> str:
    """The XML that starts a checkpoint of some disks."""
    root = Element("domaincheckpoint")
    SubElement(root, "name").text = name
    disks = SubElement(root, "disks")
    for disk in tracked:
        SubElement(disks, "disk", name=disk, checkpoint="bitmap")
    for disk in others:
        SubElement(disks, "disk", name=disk, checkpoint="no")
    return ElementTree.tostring(root, "unicode")
