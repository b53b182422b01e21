"""A virtual machine of QEMU for tests. It waits before its first instruction: its disks move only when told."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.features import require
from tests.system.qemu_storage import SECONDS, need_qemu, wait_for

PROGRAM = "qemu-system-x86_64"
MIB = 1 << 20


class Monitor:
    """A client of a QMP socket, apart from ours."""

    def __init__(self, place: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SECONDS)
        self._socket.connect(str(place))
        self._lines = self._socket.makefile("rwb")
        self._lines.readline()
        self.do("qmp_capabilities")

    def do(self, command: str, **arguments: Any) -> Any:  # noqa: ANN401  (whatever QMP takes and gives)
        """One command, its arguments' names with _ for -; fails the test if QEMU refuses."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._lines.write(json.dumps({"execute": command, "arguments": named}).encode() + b"\n")
        self._lines.flush()
        while True:
            answer = json.loads(self._lines.readline())
            if "event" not in answer:
                assert "return" in answer, answer
                return answer["return"]

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()


class QemuMachine:
    """A machine with the disks `root` (qcow2) and `data` (qcow2 or raw), and two monitors: `qmp` is for Lamella."""

    def __init__(self, place: Path, size: int, *, data: str = "qcow2", uuid: str = "", name: str = "vm") -> None:
        self.place, self.size, self._data, self._uuid, self._name = place, size, data, uuid, name
        self.qmp = place / "qmp"
        self.images = {"root": place / "root.qcow2", "data": place / f"data.{data}"}
        for image in self.images.values():
            form = image.suffix[1:]
            subprocess.run(["qemu-img", "create", "-q", "-f", form, str(image), str(size)], check=True, timeout=SECONDS)
        self.start()

    def start(self) -> None:
        """Switch it on."""
        own = self.place / "own"
        command = [PROGRAM, "-M", "q35", "-accel", "tcg", "-S", "-m", "64", "-nodefaults", "-display", "none"]
        command += ["-name", self._name, *(["-uuid", self._uuid] if self._uuid else [])]
        for socket_path in (self.qmp, own):
            command += ["-qmp", f"unix:{socket_path},server=on,wait=off"]
        for name, image in self.images.items():
            node = f"driver={image.suffix[1:]},node-name=node-{name},discard=unmap,file.driver=file"
            command += ["-blockdev", f"{node},file.filename={image}"]
            command += ["-device", f"virtio-blk-pci,drive=node-{name},id={name}"]
        self.program = subprocess.Popen(command)
        wait_for(own, self.program)
        self.own = Monitor(own)

    def guest(self, disk: str, *commands: str) -> None:
        """Change a disk by commands of qemu-io, as its device would."""
        for command in commands:
            line = f'qemu-io -d /machine/peripheral/{disk}/virtio-backend "{command}"'
            said = self.own.do("human-monitor-command", command_line=line)
            assert "rror" not in said and "fail" not in said, said

    def bitmaps(self, disk: str) -> list[dict[str, Any]]:
        """The named bitmaps of a disk."""
        for row in self.own.do("query-named-block-nodes"):
            if row["node-name"] == f"node-{disk}":
                return [one for one in row.get("dirty-bitmaps", []) if "name" in one]
        raise AssertionError(disk)

    def leftovers(self) -> list[str]:
        """What there is beside the two disks, their files, and bitmaps."""
        nodes = [row["node-name"] for row in self.own.do("query-named-block-nodes")]
        found = [name for name in nodes if not name.startswith(("node-", "#block"))]
        found += [row["id"] for row in self.own.do("query-jobs")]
        found += [row["id"] for row in self.own.do("query-block-exports")]
        return found

    def kill(self) -> None:
        """As a power cut."""
        self.own.close()
        self.program.kill()
        self.program.wait(SECONDS)
        for name in ("qmp", "own"):
            (self.place / name).unlink(missing_ok=True)

    def quit(self) -> None:
        """An orderly end."""
        self.own.do("quit")
        self.own.close()
        self.program.wait(SECONDS)
        for name in ("qmp", "own"):
            (self.place / name).unlink(missing_ok=True)


def need_machine() -> None:
    """Skip the test where there is no QEMU; fail it where `LAMELLA_REQUIRE` names it."""
    need_qemu()
    require(PROGRAM, shutil.which(PROGRAM) is not None, f"not installed: {PROGRAM}")


@contextmanager
def qemu_machine(place: Path, size: int = 16 * MIB, **options: str) -> Iterator[QemuMachine]:
    """A machine that is killed at the end."""
    need_machine()
    machine = QemuMachine(place, size, **options)
    try:
        yield machine
    finally:
        if machine.program.poll() is None:
            machine.kill()
