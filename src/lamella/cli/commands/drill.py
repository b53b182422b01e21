"""`lamella drill`: whether a snapshot boots, shown by booting it."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lamella.base.clock import now_ms
from lamella.base.durable import make_private
from lamella.base.errors import LamellaError, NothingMatched, UsageError
from lamella.cli.amounts import age
from lamella.cli.arguments import SECRETS
from lamella.cli.chosen import chosen, shown_snapshot, warn_of_no_moment
from lamella.cli.context import Context
from lamella.cli.new_files import exists
from lamella.cli.shown import shown_seconds
from lamella.cli.values import seconds
from lamella.memory.drills import Drills, DrillVerdict
from lamella.operations.access.drill.boot_sector import Firmware
from lamella.operations.access.drill.domain import DomainDrill, domain_of
from lamella.operations.access.drill.drill import FAILED, MOUNTED, DrillOptions, DrillResult, bootable, drill
from lamella.operations.access.drill.hardware import Hardware
from lamella.operations.access.drill.machine import DrillMachine, require_qemu
from lamella.operations.access.guest_kernel import find_kernel
from lamella.operations.access.view import Reading
from lamella.operations.shared.selection import Selected
from lamella.repository.repository import Repository
from lamella.run.spawn import run as run_program

_BETWEEN_SECONDS = 2.0
_QUESTION_SECONDS = 60.0
_QUBES = b"qubes:"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = (
        "The machine has no network, and what it writes is thrown away. It is alive when a login prompt shows on its\n"
        "first serial port, or when QEMU's guest agent answers. A volume that cannot boot has its file system mounted\n"
        "by a small guest instead. A disk of a libvirt domain boots with all its disks and its firmware.\n"
        "exit codes of drill: 0 passed, 1 failed, 4 it is no disk, nothing recorded\n\n" + SECRETS
    )
    parser.add_argument(
        "volume",
        nargs="+",
        metavar="VOLUME[@SNAPSHOT]",
        help="SNAPSHOT is any unique beginning of its name, ^TAG, or latest (default)",
    )
    sign = parser.add_mutually_exclusive_group()
    sign.add_argument(
        "--until", metavar="REGEX", type=_pattern, help="the machine is alive when its serial port shows this"
    )
    sign.add_argument(
        "--command",
        dest="question",
        metavar="COMMAND",
        help="the machine is alive when this shell command, run here every few seconds, ends with 0; its environment "
        "has\nLAMELLA_DRILL_SERIAL (what the serial port showed), LAMELLA_DRILL_SCREEN (PNG) and "
        "LAMELLA_DRILL_URI (NBD)",
    )
    parser.add_argument(
        "--seconds",
        metavar="N",
        type=seconds,
        default=180.0,
        help="fail a machine without a sign of life after N seconds (default 180)",
    )
    parser.add_argument("--screenshot", type=Path, metavar="FILE", help="save its last screen as this PNG file")
    parser.add_argument(
        "--kernel", metavar="FILE", type=Path, help="for a volume that cannot boot: the kernel of the small guest"
    )
    parser.add_argument(
        "--every",
        metavar="AGE",
        type=age,
        help="of these volumes only those without a drill for so long, such as 30d; the longest undrilled first",
    )
    parser.add_argument(
        "--budget",
        metavar="TIME",
        type=_time,
        default=15 * 60.0,
        help="with --every: begin no further drill after this time, such as 90s, 15m or 1h (15m)",
    )


def _pattern(text: str) -> re.Pattern[bytes]:
    try:
        return re.compile(text.encode(), re.MULTILINE)
    except re.error as error:
        raise UsageError(f"not a regular expression: {text}: {error}", obj=text) from error


def _time(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600}
    if not (text[:-1].isdecimal() and text[:-1].isascii() and len(text) < 8 and text[-1] in units):
        raise argparse.ArgumentTypeError(f"not a time: {text!r}; write for example 90s, 15m or 1h")
    return float(int(text[:-1]) * units[text[-1]])


def run(context: Context) -> int:
    """Boot, wait, record."""
    args = context.args
    require_qemu()
    if args.screenshot is not None and args.screenshot.exists():
        raise exists(args.screenshot)
    if args.kernel is not None:
        find_kernel(args.kernel)  # before anything starts
    if len(args.volume) > 1 and args.every is None:
        raise UsageError("a drill is of one volume", hint="add --every AGE to drill those of several that are due")
    with context.repository() as repository:
        code = context.warn_of_problems(repository)
        if args.every is not None:
            from lamella.cli.commands._drills import run_due  # a step of profiles

            return run_due(context, repository, partial(_drilled, context, repository)) or code
        fields, failed = _drilled(context, repository, chosen(repository, args.volume[0]))
        context.out.document(fields)
    return failed or code


def _drilled(context: Context, repository: Repository, selected: Selected) -> tuple[dict[str, object], int]:
    """Drill a snapshot, record and tell what came of it; the fields of a document, and the exit code."""
    context.out.say(f"drilling {shown_snapshot(repository, selected)}")
    warn_of_no_moment(context, selected)
    reading = Reading(repository)
    try:
        domain = domain_of(repository, selected)
        if domain is not None and domain.hardware is not None:
            disks, result = domain.volumes, _booted(context, reading, domain, domain.hardware)
        else:
            disks, result = (selected,), _alone(context, reading, selected, domain)
    finally:
        reading.close()
    verdict = DrillVerdict(now_ms(), result.verdict, selected.snapshot.name, result.sign)
    Drills(repository.proofs).record([one.volume.volume_id for one in disks], verdict)
    return _told(context, selected, disks, result), 0 if result.passed else 1


def _booted(context: Context, reading: Reading, domain: DomainDrill, hardware: Hardware) -> DrillResult:
    """All disks of a domain together."""
    names = ", ".join(one.volume_name for one in domain.volumes)
    context.out.say(f"booting the domain {domain.name} by {hardware.firmware.value}, with its disks {names}")
    for note in domain.notes:
        context.out.warn(f"{domain.name}: {note}")
    return drill(reading, domain.volumes, hardware, _options(context), context.out.report)


def _alone(context: Context, reading: Reading, selected: Selected, domain: DomainDrill | None) -> DrillResult:
    """One disk, as far as it can be a machine by itself."""
    make_private(context.host.state_dir)
    firmware = bootable(reading, selected)
    if domain is None and firmware is not Firmware.NONE:
        return drill(reading, [selected], Hardware(firmware), _options(context), context.out.report)
    why = "it has no boot code"
    if domain is not None:
        why = f"the domain {domain.name} starts with a kernel of its host, which is not in its volumes"
    elif selected.volume.identity.startswith(_QUBES):
        why = "Xen starts a qube with a kernel of dom0, which is not in its volumes"
    return _mounted(context, reading, selected, why)


def _options(context: Context) -> DrillOptions:
    state, args = context.host.state_dir, context.args
    make_private(state)
    question = _question(args.question) if args.question else None
    return DrillOptions(
        state / "guest-without-kvm", _folder(context), args.until, question, args.seconds, args.screenshot
    )


def _folder(context: Context) -> Path:
    return Path(context.env.get("TMPDIR") or "/var/tmp")


def _mounted(context: Context, reading: Reading, selected: Selected, why: str) -> DrillResult:
    """The file system instead, mounted by a guest. Raises LamellaError for what is missing on this host."""
    from lamella.operations.access.files import How, listed
    from lamella.operations.access.guest_answers import GuestLacks

    args, began = context.args, time.monotonic()
    context.out.say(f"{selected.text} does not boot by itself ({why}): its file system is mounted instead")
    if args.until or args.question or args.screenshot:
        context.out.warn("a volume that does not boot has neither a serial port nor a screen")
    host = context.host
    memory, cache = host.state_dir / "guest-without-kvm", host.cache_dir / "guest-kernel"
    kernel = find_kernel(args.kernel)
    how = How(lambda: kernel, memory, cache, _folder(context), seconds=max(1, int(args.seconds)))
    try:
        answer = listed(reading, selected, [""], how, context.out.report)
        result = DrillResult(FAILED if answer.trouble else MOUNTED, answer.trouble or answer.shown)
    except NothingMatched as error:
        # What earlier snapshots had is lost; a volume that never had any is no disk, and nothing failed.
        if selected.volume.volume_id not in Drills(reading.repo.proofs).all():
            raise NothingMatched(f"there is nothing to boot or mount in {selected.text}: {error.message}") from error
        result = DrillResult(FAILED, error.message)
    except (UsageError, GuestLacks):  # several file systems, none of which is more the volume; or no word on the disk
        raise
    except LamellaError as error:
        result = DrillResult(FAILED, error.message)
    result.seconds = round(time.monotonic() - began, 1)
    return result


def _question(command: str) -> Callable[[DrillMachine, str], bool]:
    """Asks the user's command, not more often than every few seconds."""
    next_time = 0.0

    def asked(machine: DrillMachine, uri: str) -> bool:
        nonlocal next_time
        if time.monotonic() < next_time:
            return False
        screen = machine.serial.with_name("screen.png")
        facts = {"SERIAL": str(machine.serial), "SCREEN": str(screen), "URI": uri}
        try:
            machine.screenshot(screen)
            words = ["env", *(f"LAMELLA_DRILL_{name}={value}" for name, value in facts.items()), "sh", "-c", command]
            run_program(words, timeout_seconds=_QUESTION_SECONDS)
        except LamellaError:
            return False
        finally:
            next_time = time.monotonic() + _BETWEEN_SECONDS
        return True

    return asked


def _told(context: Context, selected: Selected, disks: Sequence[Selected], result: DrillResult) -> dict[str, object]:
    """Tell people what came of a drill; returns the fields of a document."""
    out, args = context.out, context.args
    shot = args.screenshot if args.screenshot is not None and args.screenshot.exists() else None
    kept = f"; the screen is in {shot}" if shot else ""
    took = shown_seconds(result.seconds)
    out.line(f"{selected.text}: {result.verdict} after {took}: {result.sign}{kept}")
    return {
        "volume": selected.volume_name,
        "snapshot": selected.snapshot.name,
        "disks": [one.volume_name for one in disks],
        "result": "passed" if result.passed else "failed",
        "verdict": result.verdict,
        "sign": result.sign,
        "seconds": result.seconds,
        "accelerator": result.accelerator,
        "screenshot": None if shot is None else str(shot),
    }
