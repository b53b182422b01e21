"""The definition of a restored domain, made from that of the saved domain (docs/decisions/0065).

The XML is authentic, but may be old, or come from another host, or from somebody who may write backups and not rule
this host. So the new definition keeps what is known to be harmless and leaves out the rest. A path of this host stays
only if every user of the host may read the file: then the guest learns no secret from it. The guest writes to nothing
but its restored disks. Pure, except for what `RestoringHost` answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, Protocol
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from lamella.base.errors import IntegrityError, SourceError, printable
from lamella.sources.virt.domain_xml import tree


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_KEPT: Final = _words(
    "title description metadata memory currentMemory maxMemory memoryBacking memtune vcpu vcpus cputune "
    "numatune iothreads iothreadids defaultiothread os features cpu clock on_poweroff on_reboot on_crash "
    "on_lockfailure pm sysinfo keywrap genid devices"
)
_SILENT: Final = frozenset({"name", "uuid", "resource"})
"""What is chosen anew."""
_TEXTS: Final = frozenset({"title", "description", "metadata", "cmdline"})
"""What may begin like a path and is none."""
_HARMLESS: Final = _words(
    "controller video audio sound memballoon panic hub watchdog vsock iommu redirfilter crypto graphics nvram"
)
_CHARACTERS: Final = frozenset({"serial", "parallel", "console", "channel"})
_OPEN_CHARACTERS: Final = frozenset({"pty", "spicevmc", "spiceport", "null", "vc", "qemu-vdagent", "dbus"})
_INPUTS: Final = frozenset({"mouse", "keyboard", "tablet"})
_NETWORKS: Final = {"network": "network", "bridge": "bridge", "direct": "dev", "user": ""}
"""Kinds of network interfaces, and the attribute that names what the host must have."""
_OF_DISK: Final = _words("driver target address boot serial wwn vendor product alias blockio geometry iotune")
_OF_DRIVER: Final = _words(
    "cache io discard detect_zeroes error_policy rerror_policy ioeventfd event_idx queues iothread packed"
)
_NAMES_A_FILE: Final = frozenset({"file", "path", "template", "rendernode"})
"""Attributes and elements whose text is a path, also without a slash in front: libvirt and QEMU work in `/`."""
_RANDOM: Final = "/dev/urandom"
_QUIET_SOUND: Final = frozenset({"", "none", "spice", "dbus", "file"})
"""Kinds of audio that reach nothing but the screen's client, or nothing."""


class RestoringHost(Protocol):
    """What this host has."""

    def is_public(self, path: str) -> bool:
        """Whether there is a file that every user of the host may read."""

    def has_network(self, kind: str, name: str) -> bool:
        """Whether there is a virtual network (kind `network`) or a network device of that name."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """How the restored domain shall differ from the saved one."""

    name: str
    uuid: str
    new_macs: bool
    """Whether libvirt shall choose new MAC addresses."""
    disks: Mapping[str, str]
    """For each saved disk, by its target, the path of the restored file."""
    nvram: str
    """The path of the restored UEFI variables; empty if the backup has none."""


@dataclass(slots=True)
class Definition:
    """XML for libvirt, and what it lacks."""

    xml: str = ""
    left_out: list[str] = field(default_factory=list)
    missing_disks: list[str] = field(default_factory=list)
    """Writable disks of the saved domain that the snapshot does not hold."""
    opens: list[str] = field(default_factory=list)
    """What the domain will open to others once it is started, as the saved one did."""


def redefined(text: str, wishes: Wishes, host: RestoringHost) -> Definition:
    """The definition of the restored domain. Raises SourceError for XML of no domain, IntegrityError for lost disks."""
    root = tree(text)
    if root.tag != "domain":
        raise SourceError("the document domain.xml describes no domain")
    made = _Maker(wishes, host)
    made.domain(root)
    if made.unplaced:
        raise IntegrityError(f"the saved definition has no disk {', '.join(sorted(made.unplaced))}", obj=wishes.name)
    made.found.xml = ElementTree.tostring(root, "unicode")
    return made.found


class _Maker:
    """Changes the tree of a definition in place."""

    def __init__(self, wishes: Wishes, host: RestoringHost) -> None:
        self._wishes = wishes
        self._host = host
        self.found = Definition()
        self.unplaced = set(wishes.disks)
        self._rules: dict[str, Callable[[Element], str]] = {
            "disk": self._disk,
            "interface": self._interface,
            "input": lambda one: "" if one.get("type") in _INPUTS else "an input device of the host",
            "redirdev": lambda one: "" if one.get("type") == "spicevmc" else "a redirected device",
            "smartcard": lambda one: "" if one.get("type") == "spicevmc" else "a smart card",
            "memory": lambda one: "" if one.get("model") == "dimm" else "memory of the host",
            "tpm": _tpm,
            "rng": _random,
            **dict.fromkeys(_HARMLESS, lambda _: ""),
            "graphics": lambda one: self._opens(_screen(one)),
            "audio": lambda one: self._opens(_sound(one)),
            **dict.fromkeys(_CHARACTERS, self._characters),
        }

    def domain(self, root: Element) -> None:
        """Make it that of the restored domain."""
        root.attrib.pop("id", None)
        for one in [one for one in root if one.tag not in _KEPT]:
            root.remove(one)
            if one.tag not in _SILENT and one.get("type") != "dynamic":
                self._tell(_word(one))
        for name, value in (("uuid", self._wishes.uuid), ("name", self._wishes.name)):
            element = Element(name)
            element.text = value
            root.insert(0, element)
        for one in root.findall("genid"):
            one.text = None  # libvirt chooses another: by it the guest notices that its past was changed
        for system in root.findall("os"):
            self._boot(system)
        for devices in root.findall("devices"):
            for one in list(devices):
                self._device(devices, one)
        for system in root.findall("os"):
            self._variables(system)
        for disk in root.findall("./devices/disk"):
            self._place(disk)
        self._paths(root)

    def _opens(self, doors: list[str]) -> str:
        """What stays, and is said."""
        self.found.opens += doors
        return ""

    def _tell(self, what: str) -> None:
        self.found.left_out.append(what)

    # -- how the domain boots -----------------------------------------------------------------------------------------

    def _boot(self, system: Element) -> None:
        """Keep firmware and kernel where this host has them; else libvirt chooses firmware, and no kernel is given."""
        loader = system.find("loader")
        if loader is not None and not self._public(loader.text):
            self._tell(f"the firmware {_told(loader.text)}: libvirt chooses one")
            system.remove(loader)
            if loader.get("type") == "pflash":
                system.set("firmware", "efi")
        files = [one for one in system if one.tag in ("kernel", "initrd", "dtb")]
        if files and not all(self._public(one.text) for one in files):
            names = ", ".join(_told(one.text) for one in files)
            self._tell(f"the kernel that the host gives ({names}): the domain boots from its disks")
            for one in [*files, *system.findall("cmdline")]:
                system.remove(one)

    def _variables(self, system: Element) -> None:
        """Put the UEFI variables where they are restored to."""
        for one in system.findall("nvram"):
            one.attrib.pop("type", None)
            for inner in list(one):
                one.remove(inner)
            one.text = self._wishes.nvram or None
            if not self._wishes.nvram:
                self._tell("the UEFI variables, which the backup does not hold: the domain gets new ones")

    # -- devices ------------------------------------------------------------------------------------------------------

    def _device(self, devices: Element, one: Element) -> None:
        if one.tag == "emulator":
            devices.remove(one)  # libvirt knows the one of this host
            return
        rule = self._rules.get(one.tag)
        why = _word(one) if rule is None else rule(one)
        if why:
            devices.remove(one)
            self._tell(why)

    def _disk(self, disk: Element) -> str:
        """Keep a disk that is restored, and what is not written to if it is a public file."""
        target, source = disk.find("target"), disk.find("source")
        name = "" if target is None else target.get("dev", "")
        kind = disk.get("device", "disk")
        if kind in ("disk", "lun") and disk.find("readonly") is None:
            if name in self._wishes.disks:
                return ""
            self.found.missing_disks.append(name)
            return f"the disk {_told(name)}, which the snapshot does not hold"
        path = "" if source is None else source.get("file", "")
        if source is None or (disk.get("type") == "file" and self._public(path)):
            return ""
        if kind not in ("cdrom", "floppy"):
            return f"the read-only disk {_told(name)} ({_told(path)})"
        for inner in (one for one in list(disk) if one.tag in ("source", "backingStore", "driver")):
            disk.remove(inner)
        disk.set("type", "file")
        self._tell(f"the medium in the drive {_told(name)} ({_told(path)})")
        return ""

    def _place(self, disk: Element) -> None:
        """Make a restored disk a raw image at its path."""
        target = disk.find("target")
        name = "" if target is None else target.get("dev", "")
        kind = disk.get("device", "disk")
        if name not in self.unplaced or kind not in ("disk", "lun") or disk.find("readonly") is not None:
            return
        self.unplaced.discard(name)
        for word in set(disk.attrib) - {"model"}:
            del disk.attrib[word]
        disk.attrib |= {"type": "file", "device": "disk"}
        for one in [one for one in disk if one.tag not in _OF_DISK]:
            disk.remove(one)
        driver = disk.find("driver")
        driver = SubElement(disk, "driver") if driver is None else driver
        for word in set(driver.attrib) - _OF_DRIVER:
            del driver.attrib[word]
        driver.attrib |= {"name": "qemu", "type": "raw"}
        SubElement(disk, "source", file=self._wishes.disks[name])

    def _interface(self, one: Element) -> str:
        """Keep an interface whose network this host has."""
        kind = one.get("type", "")
        if kind not in _NETWORKS:
            return f"a network interface of the kind {_told(kind)}"
        source, word = one.find("source"), _NETWORKS[kind]
        name = "" if source is None else source.get(word, "")
        if word and not self._host.has_network(kind, name):
            return f"the network interface on {_told(name)}, which this host has not"
        dropped = {"target", "backend", "script", "downscript", *(["mac"] if self._wishes.new_macs else [])}
        for inner in [inner for inner in one if inner.tag in dropped]:
            one.remove(inner)
        return ""

    def _characters(self, one: Element) -> str:
        """A serial line that leads to a file, a socket or the network of the host leads to a terminal instead."""
        kind = one.get("type", "")
        for inner in [inner for inner in one if inner.tag in ("source", "protocol")]:
            one.remove(inner)
        if kind not in _OPEN_CHARACTERS and not (kind == "unix" and one.tag == "channel"):
            one.set("type", "pty")
            if one.tag != "console":  # the console is the first serial line once more
                self._tell(f"where a {one.tag} line led to ({_told(kind)}): virsh console shows the line")
        one.attrib.pop("tty", None)
        return ""

    # -- paths --------------------------------------------------------------------------------------------------------

    def _public(self, path: str | None) -> bool:
        text = (path or "").strip()
        return text.startswith("/") and self._host.is_public(text)

    def _paths(self, root: Element) -> None:
        """Whatever else looks like a path of this host goes, unless everybody may read what is there."""
        own = {*self._wishes.disks.values(), self._wishes.nvram, _RANDOM}

        def foreign(word: str, text: str) -> bool:
            leads = text.startswith("/") or (word in _NAMES_A_FILE and bool(text))
            return leads and text not in own and not self._public(text)

        for above in [one for one in root.iter() if one.tag not in _TEXTS]:
            for word in [word for word, value in above.attrib.items() if foreign(word, value)]:
                self._tell(f"the path {_told(above.attrib.pop(word))} ({_word(above)})")
            for one in [one for one in above if one.tag not in _TEXTS and foreign(one.tag, (one.text or "").strip())]:
                above.remove(one)
                self._tell(f"the path {_told(one.text)} ({_word(one)})")


def _screen(one: Element) -> list[str]:
    """Where others than programs of this host reach the screen. Without a listener libvirt takes its own default."""
    kind = one.get("type", "")
    if kind in ("sdl", "desktop"):
        return [f"a window on the display {_told(one.get('display'))} of this host"]
    if not (listeners := one.findall("listen")) and one.get("listen") is not None:
        listeners = [Element("listen", {"type": "address", "address": one.get("listen", "")})]
    secret = "with the password of the backup" if one.get("passwd") else "without a password"
    port = one.get("port", "-1")
    where = "" if port in ("-1", "") else f" port {_told(port)},"
    found = []
    for listener in listeners:
        place = listener.get("address") or ""
        if listener.get("type") == "network":
            place = f"the network {_told(listener.get('network'))}"
        elif listener.get("type") != "address" or not place or _is_loopback(place):
            continue
        found.append(f"its screen by {_told(kind)} at {_told(place)},{where} {secret}")
    return found


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _sound(one: Element) -> list[str]:
    """The sound system that the guest plays on, and records from."""
    kind, server = one.get("type", ""), one.get("serverName", "")
    if kind in _QUIET_SOUND:
        return []
    return [f"sound and microphone by {_told(kind)} of {_told(server) if server else 'this host'}"]


def _tpm(one: Element) -> str:
    backend = one.find("backend")
    if backend is None or backend.get("type") != "emulator":
        return "the TPM of the host"
    for inner in backend.findall("source"):
        backend.remove(inner)
    return ""


def _random(one: Element) -> str:
    backend = one.find("backend")
    if backend is None or backend.get("model") not in ("random", "builtin"):
        return "a source of random numbers"
    if backend.get("model") == "random":
        backend.text = _RANDOM
    return ""


def _word(one: Element) -> str:
    """What an element is called, without its name space, and what kind it is."""
    name, kind = one.tag.rpartition("}")[2], one.get("type")
    return _told(f"{name} {kind}" if kind else name)


def _told(text: str | None) -> str:
    return printable((text or "").strip())[:200] or "none"
