"""A drill: a snapshot is booted from an export, and a sign of life is waited for."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from lamella.base.errors import LamellaError
from lamella.base.events import Reporter
from lamella.operations.access.drill.boot_sector import HEAD_BYTES, Firmware, firmware_for
from lamella.operations.access.drill.hardware import Hardware
from lamella.operations.access.drill.machine import DrillMachine, require_qemu, start
from lamella.operations.access.exported import exported
from lamella.operations.access.view import Reading
from lamella.operations.shared.selection import Selected

LOGIN = re.compile(rb"login: *$", re.MULTILINE)
"""The prompt of getty on a serial console."""
_TURN_SECONDS = 0.5
BOOTED, MOUNTED, FAILED = "booted", "mounted", "failed"

Question = Callable[[DrillMachine, str], bool]
"""Asks a program of the user's whether the machine with the disk at this URI is alive."""


@dataclass(frozen=True, slots=True)
class DrillOptions:
    """Options of a drill: the pattern or the question that decides, and the bounds."""

    memory_file: Path
    """Remembers that KVM does not work here."""
    folder: Path
    """Where the overlay is kept, as an unnamed file."""
    until: re.Pattern[bytes] | None = None
    question: Question | None = None
    seconds: float = 180.0
    screenshot: Path | None = None


@dataclass(slots=True)
class DrillResult:
    """The result of a drill: BOOTED, MOUNTED or FAILED, why, and after how many seconds."""

    verdict: str
    sign: str
    seconds: float = 0.0
    accelerator: str = ""

    @property
    def passed(self) -> bool:
        """Whether the snapshot can be relied on as far as a drill says."""
        return self.verdict != FAILED


def bootable(reading: Reading, selected: Selected) -> Firmware:
    """The firmware that would start the snapshot's disk. Raises IntegrityError, StoreError."""
    return firmware_for(reading.view(selected).read(0, HEAD_BYTES))


def drill(
    reading: Reading, disks: Sequence[Selected], hardware: Hardware, options: DrillOptions, reporter: Reporter
) -> DrillResult:
    """Boot a machine from snapshots, the disks of the hardware, and wait for a sign of life; without any it has failed.

    Raises LamellaError for what is missing on this host, IntegrityError, StoreError.
    """
    require_qemu()
    with ExitStack() as held:
        uris = [held.enter_context(exported(reading, one, options.folder, reporter)) for one in disks]
        folder = held.enter_context(tempfile.TemporaryDirectory(prefix="lamella-drill-"))
        began = time.monotonic()
        machine = start(uris, hardware, Path(folder), options.memory_file)
        try:
            result = _waited(machine, uris[0], options, began)
            if options.screenshot is not None:
                with suppress(LamellaError):  # of a machine that ended there is none
                    machine.screenshot(options.screenshot.absolute())
        finally:
            machine.end()
    result.seconds = round(time.monotonic() - began, 1)
    result.accelerator = machine.accelerator.partition(",")[0]
    return result


def _waited(machine: DrillMachine, uri: str, options: DrillOptions, began: float) -> DrillResult:
    try:
        while time.monotonic() < began + options.seconds:
            machine.watch(_TURN_SECONDS)
            sign = _sign(machine, uri, options)
            if sign:
                return DrillResult(BOOTED, sign)
    except LamellaError as error:
        return DrillResult(FAILED, error.message)
    return DrillResult(FAILED, f"no sign of life within {options.seconds:g} s")


def _sign(machine: DrillMachine, uri: str, options: DrillOptions) -> str:
    """The sign of life, if there is one by now."""
    if options.question is not None:
        return "the command says so" if options.question(machine, uri) else ""
    if (options.until or LOGIN).search(machine.tail):
        return "the serial console shows what was waited for" if options.until else "a login prompt"
    return "the guest agent answers" if options.until is None and machine.agent_answers() else ""
