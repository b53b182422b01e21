"""What a restored domain may have of the saved one: nothing of the host but what everybody may read."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from lamella.base.errors import IntegrityError, SourceError
from lamella.sources.virt.definition import Definition, Wishes, redefined

UUID = "11111111-2222-4333-8444-555555555555"
_DRIVER = "<driver name='qemu' type='qcow2' cache='none' copy_on_read='on'/>"
DISK = "<disk type='{0}' device='{1}'>" + _DRIVER + "{2}<target dev='{3}'/></disk>"
VDA = DISK.format("file", "disk", "<source file='/old/a.qcow2'/><backingStore type='file'/><auth/>", "vda")
PUBLIC = "/usr/share/firmware.fd"


class TheHost:
    """Has one public file, one bridge and one virtual network."""

    def is_public(self, path: str) -> bool:
        return path == PUBLIC

    def has_network(self, kind: str, name: str) -> bool:
        return (kind, name) in (("network", "default"), ("bridge", "br0"))


def made(devices: str = "", top: str = "", nvram: str = "", *, new: bool = False, disks: str = "vda") -> Definition:
    text = (
        "<domain type='kvm' id='4' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        f"<name>mail</name><uuid>old</uuid><memory>1</memory>{top}<devices>{VDA}{devices}</devices></domain>"
    )
    wishes = Wishes("again", UUID, new, {disk: f"/new/{disk}.img" for disk in disks.split()}, nvram)
    return redefined(text, wishes, TheHost())


def root(found: Definition) -> Element:
    return ElementTree.fromstring(found.xml)


def test_name_uuid_and_disks_are_those_of_the_restore() -> None:
    found = made()
    assert found.left_out == [] and found.missing_disks == []
    tree = root(found)
    assert (tree.findtext("name"), tree.findtext("uuid"), tree.get("id")) == ("again", UUID, None)
    (disk,) = tree.findall("devices/disk")
    driver, source = disk.find("driver"), disk.find("source")
    assert driver is not None and driver.attrib == {"name": "qemu", "type": "raw", "cache": "none"}
    assert source is not None and source.attrib == {"file": "/new/vda.img"}
    assert {one.tag for one in disk} == {"driver", "source", "target"}


# What must not come along; each line is told, and no path of the host is left.
HOSTILE = [
    "<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='1'/></source></hostdev>",
    "<filesystem type='mount'><source dir='/etc'/><target dir='x'/></filesystem>",
    "<shmem name='x'/>",
    "<interface type='bridge'><source bridge='br1'/></interface>",
    "<interface type='network'><source network='gone'/></interface>",
    "<interface type='vhostuser'><source type='unix' path='/run/x'/></interface>",
    "<interface type='hostdev'/>",
    "<input type='evdev'><source dev='/dev/input/event1'/></input>",
    "<redirdev type='tcp'/>",
    "<smartcard type='host'/>",
    "<memory model='nvdimm'><source><path>/dev/pmem0</path></source></memory>",
    "<tpm model='tpm-crb'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
    "<rng model='virtio'><backend model='egd' type='unix'><source path='/x'/></backend></rng>",
    "<serial type='file'><source path='/var/lib/libvirt/images/other.img'/></serial>",
    "<serial type='pty'><log file='/etc/cron.d/x'/></serial>",
    "<channel type='file'><source path='/etc/passwd'/><target type='virtio' name='x'/></channel>",
    "<graphics type='vnc' socket='/run/x'/>",
    "<graphics type='spice'><gl rendernode='/dev/dri/renderD128'/></graphics>",
    "<video><driver vgaconf='io'/><acceleration rendernode='/dev/dri/renderD128'/></video>",
    "<sound model='ich9'/><audio id='1' type='file' path='/etc/x'/>",
    "<interface type='user'><rom file='/etc/shadow'/></interface>",
    DISK.format("file", "cdrom", "<source file='/etc/shadow'/>", "sda"),
    DISK.format("file", "floppy", "<source file='/etc/shadow'/>", "fda"),
    DISK.format("file", "disk", "<readonly/><source file='/etc/shadow'/>", "vdb"),
    DISK.format("block", "cdrom", "<source dev='/dev/sda'/>", "sda"),
    DISK.format("block", "disk", "<source dev='/dev/sdb'/>", "vdb"),
    DISK.format("network", "disk", "<source protocol='rbd' name='x/y'/>", "vdb"),
    "<unheard/>",
    "<sound model='ich9'/><audio id='1' type='file' path='home/user/.profile'/>",  # QEMU works in /
    "<memory model='dimm'><source><path>etc/shadow</path></source></memory>",
    "<graphics type='egl-headless'><gl rendernode='dev/dri/renderD128'/></graphics>",
]
HOSTILE_TOP = [
    "<qemu:commandline><qemu:arg value='-drive'/><qemu:arg value='file=/etc/shadow'/></qemu:commandline>",
    "<qemu:override/>",
    "<os><kernel>/etc/shadow</kernel><initrd>/boot/i</initrd><cmdline>/x</cmdline><type>hvm</type></os>",
    f"<os><kernel>{PUBLIC}</kernel><initrd>/etc/shadow</initrd><cmdline>/x</cmdline><type>hvm</type></os>",
    "<os><loader type='pflash'>/etc/shadow</loader></os>",
    "<os><nvram template='/etc/shadow'>/old/vars</nvram></os>",
    "<os><acpi><table type='slic'>/etc/shadow</table></acpi></os>",
    "<sysinfo type='fwcfg'><entry name='x' file='/etc/shadow'/></sysinfo>",
    "<sysinfo type='fwcfg'><entry name='x' file='etc/shadow'/></sysinfo>",
    "<os><nvram template='etc/shadow'>/old/vars</nvram></os>",
    "<os><type>hvm</type><initrd>etc/shadow</initrd></os>",
    "<seclabel type='none' model='selinux'/>",
    "<bootloader>/etc/x</bootloader>",
    "<launchSecurity type='sev'/>",
    "<blkiotune><device><path>/dev/sda</path></device></blkiotune>",
]


def texts(found: Definition) -> set[str]:
    parts = [value for one in root(found).iter() for value in (*one.attrib.values(), (one.text or "").strip())]
    return {text for text in parts if "/" in text}


@pytest.mark.parametrize("devices", HOSTILE)
def test_devices_that_reach_into_the_host_are_left_out_and_told(devices: str) -> None:
    found = made(devices)
    assert texts(found) == {"/new/vda.img"}
    assert len(found.left_out) == 1, found.left_out


@pytest.mark.parametrize("top", HOSTILE_TOP)
def test_nothing_else_reaches_into_the_host(top: str) -> None:
    found = made(top=top)
    assert texts(found) == {"/new/vda.img"}
    assert found.left_out


def test_what_everybody_may_read_stays() -> None:
    top = f"<os><type>hvm</type><loader type='pflash'>{PUBLIC}</loader><nvram template='{PUBLIC}'>/old</nvram></os>"
    medium = DISK.format("file", "cdrom", f"<source file='{PUBLIC}'/>", "sda")
    found = made(medium, top, "/new/vars")
    assert found.left_out == [] and texts(found) == {"/new/vda.img", "/new/vars", PUBLIC}
    kernel = f"<os><kernel>{PUBLIC}</kernel><cmdline>quiet</cmdline></os>"
    assert root(made(top=kernel)).findtext("os/cmdline") == "quiet"


def test_what_a_guest_needs_stays() -> None:
    devices = (
        "<emulator>/opt/qemu</emulator><controller type='pci'/><input type='tablet' bus='usb'/><rng model='virtio'>"
        "<backend model='random'>/dev/hwrng</backend></rng><tpm model='tpm-crb'><backend type='emulator'"
        " version='2.0'/></tpm><interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/>"
        "<script path='/x'/><target dev='vnet3'/></interface><interface type='network'><mac"
        " address='52:54:00:00:00:02'/><source network='default'/></interface><channel type='unix'><source mode='bind'"
        " path='/run/x'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel><memballoon model='virtio'/>"
    )
    found = made(devices, "<genid>x</genid><seclabel type='dynamic' model='apparmor'/>")
    tree = root(found)
    assert found.left_out == []
    kept = ["controller", "input", "rng", "tpm", "interface", "interface", "channel", "memballoon"]
    assert [one.tag for one in tree.findall("devices/*")] == ["disk", *kept]
    assert len(tree.findall("devices/interface/mac")) == 2 and tree.findtext("genid") == ""
    assert root(made(devices, new=True)).findall("devices/interface/mac") == []
    assert texts(found) == {"/new/vda.img", "/dev/urandom"}


def test_a_disk_that_the_snapshot_does_not_hold_is_missing() -> None:
    other = DISK.format("file", "disk", "<source file='/old/b'/>", "vdb")
    assert made(other).missing_disks == ["vdb"]
    assert made(other, disks="vda vdb").missing_disks == []
    with pytest.raises(IntegrityError, match="no disk vdb"):
        made(disks="vda vdb")


def test_uefi_variables_that_are_not_saved_are_new_ones() -> None:
    found = made(top="<os><nvram type='file'><source file='/old/vars'/></nvram></os>")
    assert root(found).find("os/nvram/source") is None
    assert "variables" in found.left_out[0]


def test_what_is_no_domain_is_refused() -> None:
    for text in ("<network/>", "<domain", ""):
        with pytest.raises(SourceError):
            redefined(text, Wishes("a", UUID, False, {}, ""), TheHost())


# What stays as the user had it, and is said by name: a copy beside the original must not open it unseen.
DOORS = {
    "<graphics type='vnc' port='-1' autoport='yes' listen='0.0.0.0'/>": "vnc at 0.0.0.0, without a password",
    "<graphics type='vnc' port='5901'><listen type='address' address='::'/></graphics>": "at ::, port 5901, without",
    "<graphics type='spice' passwd='x'><listen type='address' address='192.0.2.1'/></graphics>": "with the password of",
    "<graphics type='vnc'><listen type='network' network='lan'/></graphics>": "vnc at the network lan, without",
    "<graphics type='vnc'><listen type='address' address='127.0.0.1.example.org'/></graphics>": "127.0.0.1.example.org",
    "<graphics type='rdp' listen='10.0.0.1'/>": "rdp at 10.0.0.1",
    "<graphics type='sdl' display=':0.0'/>": "a window on the display :0.0",
    "<audio id='1' type='pulseaudio' serverName='192.0.2.7'/>": "sound and microphone by pulseaudio of 192.0.2.7",
    "<audio id='1' type='alsa'/>": "sound and microphone by alsa of this host",
}
QUIET = [
    "<graphics type='vnc' listen='127.0.0.1'/>",
    "<graphics type='vnc' port='-1'/>",
    "<graphics type='spice'><listen type='address' address='::1'/></graphics>",
    "<graphics type='vnc'><listen type='socket'/></graphics>",
    "<graphics type='spice'><listen type='none'/></graphics>",
    "<audio id='1' type='spice'/><audio id='2' type='none'/>",
]


@pytest.mark.parametrize("device", DOORS)
def test_what_the_domain_opens_stays_and_is_said(device: str) -> None:
    found = made(device)
    assert len(found.opens) == 1 and DOORS[device] in found.opens[0], found.opens
    assert found.left_out == []
    wanted = ElementTree.fromstring(device)
    assert [one.attrib for one in root(found).iter(wanted.tag)] == [wanted.attrib]


@pytest.mark.parametrize("device", QUIET)
def test_what_only_this_host_reaches_is_no_news(device: str) -> None:
    assert made(device).opens == []
