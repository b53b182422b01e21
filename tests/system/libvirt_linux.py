"""A domain that runs Linux, and writes files to its disk that are named by their contents; it has an agent.

The agent stands for qemu-ga: a shell script behind the domain's channel, which freezes and thaws the file system.
"""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.features import require
from tests.guest.machine import INITRD, KERNEL
from tests.system.libvirt_daemon import LibvirtDaemon, domain_xml

MIB = 1 << 20
SLOW = (3, 6)
"""Which freezes the agent begins only after SLOW_SECONDS."""
SLOW_SECONDS = 4

_INIT = """#!/bin/sh
B=/bin/busybox
$B mount -t proc proc /proc; $B mount -t sysfs sys /sys; $B mount -t devtmpfs dev /dev
for m in $($B cat /order) virtio_console.ko; do $B insmod /modules/$m; done
$B mount -t ext4 /dev/vda /new || { echo NO FILE SYSTEM; $B poweroff -f; }
agent() {
  n=0
  while :; do
    read -r line <&3 || { $B sleep 0.1; continue; }
    answer=0
    case "$line" in
      *guest-sync*) answer=${line##*\\"id\\":}; answer=${answer%%%%[!0-9]*} ;;
      *fsfreeze-freeze*)
        n=$((n+1)); case $n in %s) echo "SLOW $n."; $B sleep %d ;; esac
        $B fsfreeze --freeze /new && answer=1 && echo "FROZEN $n." ;;
      *fsfreeze-thaw*) $B fsfreeze --unfreeze /new && answer=1 && echo "THAWED $n." ;;
    esac
    echo "{\\"return\\": $answer}" >&3
  done
}
P=$(echo /dev/vport*p1)
[ -c "$P" ] && agent 3<>"$P" &
cd /new; good=0; bad=0
for f in f-*; do
  [ -e $f ] || continue
  if [ "$($B sha256sum < $f | $B cut -c1-16)" = "${f#f-}" ]; then good=$((good+1)); else bad=$((bad+1)); echo BAD $f; fi
done
echo "FOUND good=$good bad=$bad."
i=0
while :; do
  i=$((i+1)); $B dd if=/dev/urandom of=new bs=4096 count=$((1+i%%50)) conv=fsync 2>/dev/null
  $B mv new f-$($B sha256sum < new | $B cut -c1-16); [ $((i%%15)) = 0 ] && $B rm $($B ls | $B head -n 5)
  $B sync; echo "WROTE $i."
done
"""


def make_initrd(place: Path) -> Path:
    """The guest's initrd with an init of our own behind it; skips the test where there is none."""
    consoles = list((INITRD.parent / "lib").rglob("virtio_console.ko"))
    require("lvm-guest", INITRD.exists() and KERNEL.exists(), "there is no kernel for the guest")
    require("files-guest", bool(consoles), "needs tools/guest_kernel.py")
    tree = place / "tree"
    (tree / "modules").mkdir(parents=True)
    (tree / "modules/virtio_console.ko").write_bytes(consoles[0].read_bytes())
    (tree / "init").write_text(_INIT % ("|".join(map(str, SLOW)), SLOW_SECONDS))
    (tree / "init").chmod(0o755)
    names = b"init\nmodules/virtio_console.ko\n"
    done = subprocess.run(["cpio", "-o", "-H", "newc"], cwd=tree, input=names, capture_output=True, check=True)
    made = place / "initrd"
    made.write_bytes(INITRD.read_bytes() + gzip.compress(done.stdout))
    return made


def make_disk(place: Path) -> Path:
    """A qcow2 image with an empty file system."""
    raw, disk = place / "raw.img", place / "disk.qcow2"
    with raw.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(raw)], check=True)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk)], check=True)
    return disk


class SerialLine:
    """What a domain says on its serial line, read from the terminal that libvirt gives the line."""

    def __init__(self, domain: Any) -> None:  # noqa: ANN401 - libvirt has no types
        source = ElementTree.fromstring(domain.XMLDesc(0)).find("./devices/serial/source")
        assert source is not None
        self.text = ""
        self._fd = os.open(source.get("path", ""), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)

    def said(self, pattern: str) -> re.Match[str]:
        """Wait until it says something."""
        until = time.monotonic() + 120
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < until, self.text[-2000:]
            try:
                self.text += os.read(self._fd, 4096).decode(errors="replace")
            except BlockingIOError:
                time.sleep(0.1)
        return found

    def close(self) -> None:
        """Listen no more."""
        os.close(self._fd)


class Linux:
    """The domain, and what its console says."""

    def __init__(self, daemon: LibvirtDaemon, place: Path, name: str, disk: Path) -> None:
        self.console = place / f"{name}.console"
        boot = (
            f"<kernel>{KERNEL}</kernel><initrd>{place}/initrd</initrd><cmdline>console=ttyS0 quiet panic=-1</cmdline>"
        )
        more = (
            f"<serial type='file'><source path='{self.console}'/><target port='0'/></serial>"
            f"<channel type='unix'><source mode='bind' path='{place}/{name}.agent'/>"
            "<target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
        )
        self.domain = daemon.virt.defineXML(domain_xml(name, {"vda": disk}, more, boot))
        self.domain.create()

    @property
    def text(self) -> str:
        """Everything its console has said."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def said(self, pattern: str) -> re.Match[str]:
        """Wait until its console says something."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if found := re.search(pattern, self.text):
                return found
            time.sleep(0.1)
        raise AssertionError(self.text[-2000:])

    def written(self) -> int:
        """How many files it has written."""
        return max(map(int, re.findall(r"WROTE (\d+)\.", self.text)), default=0)

    def goes_on(self) -> None:
        """Wait until it has written two more files."""
        self.said(rf"WROTE {self.written() + 2}\.")
