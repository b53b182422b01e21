"""A throw-away machine for tests that need device-mapper: qemu without KVM, its root file system this machine's own.

The guest sees this machine's `/` by 9p, read-only, with everything it writes kept in its memory; one directory is
shared for writing. So it has the same Python, the same programs and this working tree, and no image is built. It boots
the kernel and initrd that tools/guest_kernel.py made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNEL, INITRD = ROOT / ".guest" / "vmlinuz", ROOT / ".guest" / "initrd"
ZFS = ROOT / ".guest" / "zfs"
"""Modules and programs of ZFS, made by tools/guest_zfs.py."""
QEMU = "qemu-system-x86_64"
PROGRAMS = (QEMU, "lvs", "thin_delta", "dmsetup", "mkfs.ext4")
SHARED = Path("/run/out")
"""Where the guest sees the shared directory."""
SELECTED = SHARED / "selected"
DISK = Path("/dev/vda")
"""An empty disk of DISK_BYTES in the guest."""
DISK_BYTES = 4 << 30

_MEMORY_MIB = 1536

# LVM without udev, on nothing but the disk of the guest.
_LVM_CONF = """
devices { scan=["/dev"] dir="/dev" filter=["a|^/dev/vda$|","a|^/dev/loop|","r|.*|"] use_devicesfile=0 }
global { event_activation=0 use_lvmpolld=0 use_lvmlockd=0 }
activation { monitoring=0 udev_sync=0 udev_rules=0 verify_udev_operations=0 reserved_memory=64 reserved_stack=64 }
backup { backup=0 archive=0 }
"""

_START = """
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
export LAMELLA_GUEST=1 LVM_SYSTEM_DIR=/run/lvm-conf DM_DISABLE_UDEV=1 PYTHONDONTWRITEBYTECODE=1 TMPDIR=/run/tmp
. /run/out/environment
/run/busybox ip link set lo up
mkdir -p /run/lvm-conf /run/lvm /run/lock /run/tmp; cp /run/out/lvm.conf /run/lvm-conf/

# The programs started most often, out of the slow shared file system.
mkdir /run/fast
for p in lvm dmsetup pdata_tools; do f=$(command -v $p) && cp "$f" /run/fast/ &&
    ldd "$f" | while read -r _ _ l _; do case $l in /*) cp -n "$l" /run/fast/;; esac; done; done
for p in lvs lvcreate lvremove lvchange lvresize lvrename vgs vgcreate pvcreate; do ln -s lvm /run/fast/$p; done
for p in thin_delta thin_dump; do ln -s pdata_tools /run/fast/$p; done
for f in "$LAMELLA_ROOT"/.guest/zfs/zfs "$LAMELLA_ROOT"/.guest/zfs/zpool "$LAMELLA_ROOT"/.guest/zfs/lib/*; do
    [ -e "$f" ] && cp "$f" /run/fast/; done
export PATH=/run/fast:$PATH LD_LIBRARY_PATH=/run/fast
cd "$LAMELLA_ROOT"
sh /run/out/command > /run/out/log 2>&1
echo $? > /run/out/status
sync
/run/busybox poweroff -f
"""


def missing() -> str:
    """Why no guest can be started here; empty if one can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if not (KERNEL.exists() and INITRD.exists()):
        return "there is no kernel for the guest: tools/setup-env.sh system makes it"
    return ""


def missing_zfs() -> str:
    """Why there is no ZFS in the guest; empty if there is."""
    if not (ZFS / "zfs.ko").exists():
        return "there is no ZFS for the guest: make test-zfs makes it"
    return ""


class SeenGuest:
    """A guest that another process starts, or has started, in `place`."""

    _START_SECONDS = 120.0

    def __init__(self, place: Path) -> None:
        self.out = place / "out"
        self._pid = place / "pid"
        self._until = time.monotonic() + self._START_SECONDS

    def ended(self, seconds: float) -> bool:
        """Whether it has ended, or never began, at most that many seconds from now."""
        end = time.monotonic() + seconds
        while self._runs():
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)
        return True

    def _runs(self) -> bool:
        try:
            state = Path(f"/proc/{self._pid.read_text()}/stat").read_text().rpartition(") ")[2][:1]
        except FileNotFoundError:
            return not self._pid.exists() and time.monotonic() < self._until
        return state not in ("Z", "X")

    def close(self) -> None:
        """Its own process ends it."""

    def last_words(self) -> str:
        """The end of what the guest and its kernel said."""
        return _last_words(self.out)


class Guest:
    """A running guest. `place` becomes the shared directory, and holds the disk beside it.

    `selected` is what SELECTED holds in the guest: /dev and /run, where tests may have their files, are its own there.
    """

    def __init__(self, place: Path, command: str, selected: str = "") -> None:
        self.out = place / "out"
        self.out.mkdir(parents=True)
        disk = place / "disk"
        with disk.open("wb") as file:
            file.truncate(DISK_BYTES)
        passed = ["LAMELLA_REQUIRE", "HYPOTHESIS_PROFILE", "LAMELLA_GUEST_CYCLES"]
        passed += ["LAMELLA_ZFS_ROUNDS", "LAMELLA_ZFS_SEED"]
        environment = [f"export {name}='{os.environ[name]}'" for name in passed if name in os.environ]
        environment.append(f"export LAMELLA_ROOT='{ROOT}'")
        for name, content in (
            ("start", _START),
            ("command", command),
            (SELECTED.name, selected),
            ("lvm.conf", _LVM_CONF),
            ("environment", "\n".join(environment) + "\n"),
        ):
            (self.out / name).write_text(content)
        with (self.out / "qemu").open("wb") as said:
            self._process = subprocess.Popen(
                [*_qemu(self.out, disk), "-serial", f"file:{self.out / 'console'}"],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        with_name = place / "pid.new"
        with_name.write_text(str(self._process.pid))
        with_name.rename(place / "pid")

    def ended(self, seconds: float) -> bool:
        """Whether it has ended, at most that many seconds from now."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """End it, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def last_words(self) -> str:
        """The end of what the guest and its kernel said."""
        return _last_words(self.out)


def _last_words(out: Path) -> str:
    found = []
    for name in ("qemu", "console", "log"):
        path = out / name
        if path.exists():
            lines = path.read_text("utf-8", "replace").splitlines()
            found += [f"{name}: {line}" for line in lines[-40:]]
    return "\n".join(found)


def _qemu(out: Path, disk: Path) -> list[str]:
    shares = [("hostroot", "/", ",readonly=on,multidevs=remap"), ("out", str(out), "")]
    words = [QEMU, "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", str(_MEMORY_MIB), "-smp", "2"]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    words += ["-kernel", str(KERNEL), "-initrd", str(INITRD)]
    words += ["-append", "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off"]
    for tag, path, options in shares:
        words += ["-fsdev", f"local,id={tag},path={path},security_model=none{options}"]
        words += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    words += ["-drive", f"file={disk},if=virtio,format=raw,cache=unsafe,discard=unmap"]
    return words
