"""QEMU's own programs for tests: qemu-nbd around an image, and a storage daemon that is told what to do by QMP."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.features import require

SECONDS = 20


def need_qemu() -> None:
    """Skip the test where QEMU's tools are missing; fail it where `LAMELLA_REQUIRE` names `qemu-nbd`."""
    missing = [one for one in ("qemu-nbd", "qemu-img", "qemu-io", "qemu-storage-daemon") if shutil.which(one) is None]
    require("qemu-nbd", not missing, f"not installed: {', '.join(missing)}")


def wait_for(place: Path, program: subprocess.Popen[bytes]) -> None:
    """Wait until a server listens on a socket."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(str(place))
            return
        assert program.poll() is None, "the server ended"
        time.sleep(0.01)
    raise AssertionError(f"nothing listens on {place}")


class Served:
    """Images behind qemu-nbd, each on a socket beside it. `end` stops all."""

    def __init__(self) -> None:
        self._running: dict[Path, subprocess.Popen[bytes]] = {}

    def serve(self, image: Path, *options: str, form: str = "raw", writable: bool = False) -> Path:
        """Serve an image, as it is now; returns the socket."""
        self.stop(image)
        place = image.with_name(image.name + ".sock")
        command = ["qemu-nbd", "--persistent", "--shared=0", "-f", form, "-x", "disk", "-k", str(place)]
        options = options if writable else ("--read-only", *options)
        program = subprocess.Popen([*command, *options, str(image)], stderr=subprocess.DEVNULL)
        self._running[image] = program
        wait_for(place, program)
        return place

    def stop(self, image: Path) -> None:
        """Serve an image no more."""
        program = self._running.pop(image, None)
        if program is not None:
            program.kill()
            program.wait(SECONDS)
            image.with_name(image.name + ".sock").unlink(missing_ok=True)

    def end(self) -> None:
        """Stop all."""
        for image in list(self._running):
            self.stop(image)


class StorageDaemon:
    """A qemu-storage-daemon with one qcow2 image as node `disk`; `nbd` is the socket of its NBD server.

    The export `guest` may be written to.
    """

    def __init__(self, place: Path, image: Path) -> None:
        self.nbd = place / "nbd.sock"
        qmp = place / "qmp.sock"
        file = f"driver=qcow2,node-name=disk,discard=unmap,file.driver=file,file.filename={image},file.locking=off"
        self._program = subprocess.Popen(
            [
                "qemu-storage-daemon",
                "--chardev", f"socket,id=qmp,path={qmp},server=on,wait=off",
                "--monitor", "chardev=qmp",
                "--blockdev", file,
                "--nbd-server", f"addr.type=unix,addr.path={self.nbd},max-connections=0",
                "--export", "type=nbd,id=guest,node-name=disk,name=guest,writable=on",
            ]
        )  # fmt: skip
        wait_for(self.nbd, self._program)
        self._monitor = socket.socket(socket.AF_UNIX)
        self._monitor.settimeout(SECONDS)
        self._monitor.connect(str(qmp))
        self._lines = self._monitor.makefile("rwb")
        self._lines.readline()
        self.do("qmp_capabilities")

    def do(self, command: str, **arguments: Any) -> Any:  # noqa: ANN401  (whatever QMP takes and gives)
        """One QMP command; fails the test if QEMU refuses."""
        self._lines.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self._lines.flush()
        while True:
            answer = json.loads(self._lines.readline())
            if "event" not in answer:
                assert "return" in answer, answer
                return answer["return"]

    def new_moment(self, new: str, old: str = "") -> None:
        """Start a bitmap and stop the one before at one moment, and export the disk with the one before as `disk`."""
        steps = [{"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": new, "granularity": 4096}}]
        if old:
            steps.append({"type": "block-dirty-bitmap-disable", "data": {"node": "disk", "name": old}})
        self.do("transaction", actions=steps)
        export = {"type": "nbd", "id": "backup", "node-name": "disk", "name": "disk"}
        self.do("block-export-add", **export, bitmaps=[old] if old else [])

    def end_moment(self, old: str = "") -> None:
        """Withdraw the export, and remove the bitmap that was read."""
        self.do("block-export-del", id="backup", mode="hard")
        while any(one["id"] == "backup" for one in self.do("query-block-exports")):
            time.sleep(0.005)
        if old:
            self.do("block-dirty-bitmap-remove", node="disk", name=old)

    def guest(self, *commands: str) -> None:
        """Change the disk by commands of qemu-io."""
        told = [word for command in commands for word in ("-c", command)]
        done = subprocess.run(
            ["qemu-io", "-f", "raw", "-d", "unmap", *told, f"nbd+unix:///guest?socket={self.nbd}"],
            capture_output=True, check=True, timeout=SECONDS,
        )  # fmt: skip
        assert b"rror" not in done.stdout, done.stdout

    def end(self) -> None:
        """Kill it."""
        self._lines.close()
        self._monitor.close()
        self._program.kill()
        self._program.wait(SECONDS)


@contextmanager
def storage_daemon(place: Path, size: int) -> Iterator[StorageDaemon]:
    """A daemon with a new qcow2 image of so many bytes."""
    need_qemu()
    image = place / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(size)], check=True, timeout=SECONDS)
    daemon = StorageDaemon(place, image)
    try:
        yield daemon
    finally:
        daemon.end()
