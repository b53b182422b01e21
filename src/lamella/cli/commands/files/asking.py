"""The common part of the actions of `lamella files`: options, the guest's kernel, the open snapshot, notes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lamella.base.durable import make_private
from lamella.base.errors import KeyRefused, LamellaError, NothingMatched, UsageError
from lamella.cli.arguments import SECRETS
from lamella.cli.chosen import chosen, shown_snapshot, warn_of_no_moment
from lamella.cli.context import Context
from lamella.cli.output import INCOMPLETE
from lamella.cli.values import seconds
from lamella.operations.access.files import How
from lamella.operations.access.guest_answers import GuestAnswer
from lamella.operations.access.guest_kernel import find_kernel
from lamella.operations.access.view import Reading
from lamella.operations.shared.selection import Selected
from lamella.qubes.admin import SOCKET

_KEY_MOST = 8 << 20
"""Bytes of a key file (cryptsetup takes no more either)."""


class Asked(NamedTuple):
    """A snapshot that can be asked for its files."""

    reading: Reading
    selected: Selected
    how: How


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every action."""
    parser.epilog = SECRETS
    parser.add_argument(
        "volume",
        metavar="VOLUME[@SNAPSHOT]",
        help="SNAPSHOT is any unique beginning of its name, ^TAG, or latest (default)",
    )
    add_guest_options(parser)


def add_guest_options(parser: argparse.ArgumentParser) -> None:
    """The options about the guest and its disk."""
    parser.add_argument(
        "--partition",
        metavar="NUMBER",
        default="",
        help="the partition to read: its number, VG/LV for a logical volume, `disk` for the whole disk",
    )
    parser.add_argument(
        "--luks-key-file",
        metavar="FILE",
        type=Path,
        help="the key of an encrypted partition, every byte of FILE (default: a passphrase is asked for)",
    )
    parser.add_argument(
        "--kernel", metavar="FILE", type=Path, help="the kernel of the guest (default: the one that runs here)"
    )
    parser.add_argument(
        "--in",
        dest="inside",
        metavar="QUBE",
        default="",
        help="in dom0 of Qubes OS: mount it in a disposable made from QUBE (default: the system's own for disposables)",
    )
    parser.add_argument(
        "--seconds", metavar="N", type=seconds, default=600.0, help="end the guest after N seconds (default 600)"
    )


@contextmanager
def opened(context: Context) -> Iterator[tuple[Reading, How]]:
    """The open repository, and how guests are made. Raises LamellaError."""
    args = context.args
    state = context.host.state_dir
    try:
        make_private(state)
    except OSError as error:
        raise LamellaError(f"cannot make {state}: {error.strerror}", obj=str(state)) from error
    folder = Path(context.env.get("TMPDIR") or "/var/tmp")
    kept = context.host.cache_dir / "guest-kernel"
    key = Key(args.luks_key_file)
    find = cache(lambda: find_kernel(args.kernel))
    if args.kernel is not None:  # a wrong name is said at once; trees need no kernel, so none is looked for yet
        find()
    how = How(find, state / "guest-without-kvm", kept, folder, key, args.partition, max(1, int(args.seconds)))
    with context.repository() as repository, ExitStack() as ended:
        context.warn_of_problems(repository)
        reading = Reading(repository)
        ended.callback(reading.close)
        if args.inside or (args.kernel is None and _is_dom0(context)):
            from lamella.cli.disposable_guests import guests  # dom0 of Qubes OS only

            how = replace(how, elsewhere=ended.enter_context(guests(context, repository)))
        yield reading, how


def _is_dom0(context: Context) -> bool:
    return Path(context.env.get("LAMELLA_QUBESD_SOCKET") or SOCKET).is_socket()


@contextmanager
def asked(context: Context) -> Iterator[Asked]:
    """The snapshot that the command names. Raises LamellaError."""
    with opened(context) as (reading, how):
        selected = chosen(reading.repo, context.args.volume)
        context.out.say(f"reading {shown_snapshot(reading.repo, selected)}")
        warn_of_no_moment(context, selected)
        yield Asked(reading, selected, how)


class Key:
    """The key of an encrypted partition: from a file, or typed; a typed one is kept for another guest."""

    def __init__(self, place: Path | None) -> None:
        self._place = place
        self._typed: dict[str, bytes] = {}

    def __call__(self, name: str, wrong: int) -> bytes:
        """The key of the partition `name`, after so many wrong ones. Raises KeyRefused, UsageError."""
        if self._place is not None:
            if wrong:
                hint = "every byte of the file counts, a line end included"
                raise KeyRefused(f"{self._place} does not open partition {name}", obj=str(self._place), hint=hint)
            return self._read(self._place)
        from lamella.cli.terminal import ask_secret, has_terminal

        if wrong or name not in self._typed:
            if not has_terminal():
                raise UsageError(f"partition {name} is encrypted", obj=name, hint="give its key with --luks-key-file")
            again = "That is not its passphrase. " if wrong else ""
            typed = ask_secret(f"{again}Passphrase of the encrypted partition {name}: ")
            self._typed[name] = os.fsencode(typed)
        return self._typed[name]

    @staticmethod
    def _read(place: Path) -> bytes:
        try:
            with place.open("rb") as file:
                key = file.read(_KEY_MOST + 1)
        except OSError as error:
            raise UsageError(f"cannot read {place}: {error.strerror}", obj=str(place)) from error
        if not 0 < len(key) <= _KEY_MOST:
            raise UsageError(f"{place} is no key: it is empty or larger than 8 MiB", obj=str(place))
        return key


def facts(asked: Asked, answer: GuestAnswer) -> dict[str, object]:
    """The fields of every document."""
    return facts_of(asked.selected, answer)


def facts_of(selected: Selected, answer: GuestAnswer) -> dict[str, object]:
    """The fields about a snapshot and the guest that read it."""
    return {
        "volume": selected.volume_name,
        "snapshot": selected.snapshot.name,
        "partition": answer.partition,
        "file_system": answer.file_system,
        "journal": answer.state,
        "absent": answer.absent,
        "trouble": answer.trouble,
    }


def concluded(context: Context, answer: GuestAnswer) -> int:
    """Say which state was shown and what is missing. Returns the exit code: 4 if nothing was there, 3 if a part."""
    context.out.say(answer.shown)
    for path in answer.absent:
        context.out.warn(f"there is no {path}")
    if answer.trouble:
        context.out.warn(f"incomplete: {answer.trouble}")
        return INCOMPLETE
    something = answer.rows or answer.taken.files or answer.taken.left_out_count
    return NothingMatched.exit_code if answer.absent and not something else INCOMPLETE if answer.absent else 0
