"""A libvirtd of our own for tests, whose places are private to its mount namespace: nothing on the machine meets it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.cli.program import ROOT
from tests.features import require
from tests.system.qemu_machine import need_machine

DAEMON = "/usr/sbin/libvirtd"
MODULES = Path("/usr/lib/python3/dist-packages")
SECONDS = 30
_QEMU = """user="root"
group="root"
dynamic_ownership=0
remember_owner=0
security_driver="none"
cgroup_controllers=[]
namespaces=[]
stdio_handler="file"
"""
_PLACES = {"etc": "/etc/libvirt", "lib": "/var/lib/libvirt", "log": "/var/log/libvirt", "cache": "/var/cache/libvirt"}


def linked_module(place: Path) -> Path:
    """A directory that holds the module of libvirt and nothing else of the system's Python."""
    place.mkdir()
    for found in (*MODULES.glob("libvirt*.py"), *MODULES.glob("libvirtmod*.so")):
        (place / found.name).symlink_to(found)
    return place


class LibvirtDaemon:
    """A daemon that runs. `env` leads Lamella to it; `virt` is a connection of our own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        run = place / "run"
        for name in (*_PLACES, "run"):
            (place / name).mkdir()
        (place / "etc/qemu.conf").write_text(_QEMU)
        conf = f'auth_unix_rw="none"\nauth_unix_ro="none"\nunix_sock_group="root"\nunix_sock_dir="{run}"\n'
        (place / "conf").write_text(conf)
        binds = []
        for name, line in (("passwd", "libvirt-qemu:x:64055:64055::/:/bin/false"), ("group", "libvirt-qemu:x:64055:")):
            (place / name).write_text(Path(f"/etc/{name}").read_text() + line + "\n")
            binds.append(f"mount --bind {place}/{name} /etc/{name}")
        for name, target in {**_PLACES, "run": "/run/libvirt"}.items():
            Path(target).mkdir(parents=True, exist_ok=True)
            binds.append(f"mount --bind {place}/{name} {target}")
        script = " && ".join([*binds, f"exec {DAEMON} -f {place}/conf -p {place}/pid"])
        with (place / "said").open("wb") as said:
            self.program = subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdout=said, stderr=said)
        socket, until = run / "libvirt-sock", time.monotonic() + SECONDS
        while not socket.exists():
            assert self.program.poll() is None and time.monotonic() < until, (place / "said").read_text()
            time.sleep(0.05)
        modules = str(linked_module(place / "modules"))
        if modules not in sys.path:
            sys.path.append(modules)
        libvirt = import_module("libvirt")
        path = f"{ROOT}/src:{modules}"
        self.env = {"LIBVIRT_DEFAULT_URI": f"qemu+unix:///system?socket={socket}", "PYTHONPATH": path}
        libvirt.registerErrorHandler(lambda *_: None, None)
        self.virt: Any = libvirt.open(self.env["LIBVIRT_DEFAULT_URI"])

    def monitor(self, domain: Any, command: str, **arguments: Any) -> Any:  # noqa: ANN401
        """One QMP command, past libvirt."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        text = json.dumps({"execute": command, "arguments": named})
        return json.loads(import_module("libvirt_qemu").qemuMonitorCommand(domain, text, 0))["return"]

    def guest(self, domain: Any, disk: int, command: str) -> None:  # noqa: ANN401
        """Change a disk by a command of qemu-io, as its device would."""
        line = f'qemu-io -d /machine/peripheral/virtio-disk{disk}/virtio-backend "{command}"'
        said = self.monitor(domain, "human-monitor-command", command_line=line)
        assert "rror" not in said and "fail" not in said, said

    def end(self) -> None:
        """Destroy all domains, and stop."""
        for domain in self.virt.listAllDomains():
            if domain.isActive():
                domain.destroy()
        self.virt.close()
        self.program.terminate()
        self.program.wait(SECONDS)


@contextmanager
def libvirt_daemon(place: Path) -> Iterator[LibvirtDaemon]:
    """A daemon that is stopped at the end."""
    need_machine()
    require("root", os.getuid() == 0, "not root")
    there = shutil.which("libvirtd", path="/usr/sbin") and any(MODULES.glob("libvirtmod.*.so"))
    require("libvirt", bool(there), "not installed: libvirt-daemon-driver-qemu, python3-libvirt")
    daemon = LibvirtDaemon(place)
    try:
        yield daemon
    finally:
        daemon.end()


def domain_xml(name: str, disks: dict[str, Path], more: str = "", os_more: str = "") -> str:
    """A domain with these disks; the form of each is the suffix of its file."""
    rows = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='{path.suffix[1:]}' discard='unmap'/>"
        f"<source file='{path}'/><target dev='{target}' bus='virtio'/></disk>"
        for target, path in disks.items()
    )
    emulator = "<emulator>/usr/bin/qemu-system-x86_64</emulator>"
    return (
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>"
        f"<os><type arch='x86_64' machine='q35'>hvm</type>{os_more}</os><cpu mode='maximum'/>"
        f"<devices>{emulator}{rows}{more}<memballoon model='none'/></devices></domain>"
    )
