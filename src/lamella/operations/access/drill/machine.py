"""A machine that boots disks: QEMU without a network, a serial console that is read, and a screen that can be kept.

Whatever the machine sends may be a lie; it is read with bounds. Its disks are exports with throw-away overlays, so
nothing that it does lasts.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lamella.base.errors import LamellaError
from lamella.operations.access.drill.hardware import Hardware
from lamella.operations.access.guest import KVM, KVM_SECONDS, QEMU
from lamella.run.spawn import Child

SERIAL_MOST = 1 << 20
"""Bytes of the serial console that are kept."""
_TAIL = 16 * 1024
_PIECE = 1 << 16
_QMP_SECONDS = 20.0
_LINE_MOST = 1 << 20
_AGENT = "org.qemu.guest_agent.0"


class DrillMachine:
    """A running machine; `folder` is its own. Raises LamellaError where QEMU cannot be started or has ended."""

    def __init__(self, uris: Sequence[str], hardware: Hardware, folder: Path, accelerator: str) -> None:
        self.accelerator = accelerator
        self.serial = folder / "serial.log"
        self.tail = b""
        """The last output of the serial console."""
        self._firmware_log, self._qmp_path, self._agent_path = (folder / name for name in ("firmware", "qmp", "agent"))
        self._serial_left = SERIAL_MOST
        self._agent: socket.socket | None = None
        self.serial.touch(0o600)
        self._child = Child(self._words(uris, hardware, folder))
        os.set_blocking(self._child.stdout, False)

    def _words(self, uris: Sequence[str], hardware: Hardware, folder: Path) -> list[str]:
        accelerated = self.accelerator == "kvm"
        words = [QEMU, "-M", hardware.machine, "-accel", self.accelerator, "-cpu", "host" if accelerated else "max"]
        words += ["-m", str(hardware.memory_mib), "-smp", "2", "-nodefaults", "-no-user-config", "-no-reboot"]
        words += ["-display", "none", "-vga", "std", "-nic", "none"]
        words += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
        words += ["-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial"]
        words += ["-qmp", f"unix:{self._qmp_path},server=on,wait=off"]
        # Firmware tells there what it does: whether a processor runs at all can be seen without the disk's help.
        words += ["-chardev", f"file,id=firmware,path={self._firmware_log}"]
        words += ["-device", "isa-debugcon,iobase=0x402,chardev=firmware"]
        words += [
            "-device",
            "virtio-serial-pci",
            "-chardev",
            f"socket,id=agent,path={self._agent_path},server=on,wait=off",
        ]
        words += ["-device", f"virtserialport,chardev=agent,name={_AGENT}"]
        return words + hardware.disk_words(uris) + hardware.firmware_words(folder)

    def runs(self, seconds: float) -> bool:
        """Whether its processor does anything within this time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.watch(0.1)
            with suppress(OSError):
                if self.tail or self._firmware_log.stat().st_size:
                    return True
        return False

    def watch(self, seconds: float) -> None:
        """Take what the serial console shows within this time. Raises LamellaError if the machine has ended."""
        waiting = select.poll()
        waiting.register(self._child.stdout, select.POLLIN)
        if not waiting.poll(seconds * 1000):
            return
        piece = os.read(self._child.stdout, _PIECE)
        if not piece:
            self._child.wait(2.0)
            self._child.drain_stderr()
            said = self._child.said()
            raise LamellaError("the machine ended by itself" + (f": {said}" if said else ""))
        self.tail = (self.tail + piece)[-_TAIL:]
        if self._serial_left > 0:
            with self.serial.open("ab") as file:
                file.write(piece[: self._serial_left])
            self._serial_left -= len(piece)

    def agent_answers(self) -> bool:
        """Whether the guest agent of QEMU has answered a ping."""
        try:
            if self._agent is None:
                self._agent = socket.socket(socket.AF_UNIX)
                self._agent.setblocking(False)
                self._agent.connect(os.fsencode(self._agent_path))
            with suppress(BlockingIOError):
                self._agent.send(b'{"execute": "guest-ping"}\n')
            return b'"return"' in self._agent.recv(4096)
        except OSError:
            return False

    def screenshot(self, path: Path) -> None:
        """Keep what is on the screen as PNG. Raises LamellaError."""
        with socket.socket(socket.AF_UNIX) as qmp:
            qmp.settimeout(_QMP_SECONDS)
            try:
                qmp.connect(os.fsencode(self._qmp_path))
                with qmp.makefile("rwb") as stream:
                    stream.readline(_LINE_MOST)
                    _execute(stream, "qmp_capabilities", {})
                    _execute(stream, "screendump", {"filename": str(path), "format": "png"})
            except (OSError, ValueError) as error:
                raise LamellaError(f"QEMU does not show its screen: {error}") from error

    def end(self) -> None:
        """Kill it."""
        if self._agent is not None:
            self._agent.close()
        self._child.kill()
        self._child.end(2.0)


def _execute(stream: Any, command: str, arguments: dict[str, str]) -> None:  # noqa: ANN401
    """One command of QEMU's monitor (QMP specification). Raises OSError, ValueError, LamellaError."""
    stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    stream.flush()
    while line := stream.readline(_LINE_MOST):
        reply = json.loads(line)
        if "error" in reply:
            raise LamellaError(f"QEMU refuses {command}: {reply['error'].get('desc', '')}")
        if "return" in reply:
            return
    raise OSError("its monitor has closed")


def start(uris: Sequence[str], hardware: Hardware, folder: Path, memory_file: Path) -> DrillMachine:
    """Start a machine with disks at these NBD URIs, with KVM where that works. The caller ends it.

    `memory_file` remembers that KVM does not work here. Raises LamellaError.
    """
    require_qemu()
    if os.access(KVM, os.R_OK | os.W_OK) and not memory_file.exists():
        machine = DrillMachine(uris, hardware, folder, "kvm")
        try:
            if machine.runs(KVM_SECONDS):
                return machine
            with suppress(OSError):
                memory_file.write_text("A guest with KVM did not answer here. Remove this file to try again.\n")
        except LamellaError:  # QEMU ended: what is wrong is said without KVM, too, if it is not that
            pass
        except BaseException:
            machine.end()
            raise
        machine.end()
        for left in folder.iterdir():
            left.unlink()
    return DrillMachine(uris, hardware, folder, "tcg,thread=multi")


def require_qemu() -> None:
    """Raises LamellaError that says what to install."""
    if shutil.which(QEMU) is None:
        hint = "install qemu-system-x86 (Debian) or qemu-system-x86-core (Fedora)"
        raise LamellaError(f"{QEMU} is not installed", hint=hint)
