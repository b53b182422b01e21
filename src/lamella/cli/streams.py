"""Streams among the sources of a backup: standard input, and what commands write (docs/decisions/0057)."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from typing import Final

from lamella.base.clock import now_ms
from lamella.base.errors import UsageError
from lamella.cli.context import Context
from lamella.cli.destination import named_destinations
from lamella.cli.output import is_terminal
from lamella.cli.sources import is_stream
from lamella.sources.names import check_name, split_name
from lamella.sources.stream import StreamSource

_HOUR_MS: Final = 3_600_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_HINT: Final = "write NAME=- or 'NAME=!COMMAND'; ./- and ./!x are files"


def stream_source(context: Context, text: str, name: str | None) -> StreamSource:
    """The stream that `-` or `!COMMAND` means. Raises UsageError."""
    args = context.args
    if name is None:
        raise UsageError("a stream needs a name", obj=text, hint=_HINT)
    if args.source_driver is not None:
        raise UsageError(f"{name} is a stream, and no other driver can read it", hint="leave --source-driver out")
    command = text[1:].strip()
    if text == "-":
        _check_standard_input(context, name)
    elif not command:
        raise UsageError(f"{name} names no command", obj=name, hint=_HINT)
    claimed = None if args.time is None else moment(args.time)
    locale = context.env.get("LC_ALL", "")
    return StreamSource(check_name(name), context.host.machine, command, locale, args.size, claimed)


def _check_standard_input(context: Context, name: str) -> None:
    if len(_streams(context.args, standard_input=True)) > 1:
        raise UsageError("standard input is one source only", obj=name)
    if len(named_destinations(context)) > 1:
        hint = "save it to one of them, then: lamella copy"
        raise UsageError("standard input can be read once, not for several repositories", obj=name, hint=hint)
    if is_terminal(sys.__stdin__):
        raise UsageError("standard input is the terminal", obj=name, hint=f"pipe something in: ... | backup {name}=-")


def _streams(args: argparse.Namespace, *, standard_input: bool = False) -> list[str]:
    found = [place for _, place in map(split_name, args.source) if is_stream(place)]
    return [place for place in found if place == "-"] if standard_input else found


def check_stream_options(args: argparse.Namespace) -> None:
    """Raises UsageError if `--size` or `--time` is said of anything but streams, or a change map of a stream."""
    found = _streams(args)
    if found and args.changes_from is not None:
        raise UsageError("there is no change map of a stream: all of it is read", hint="leave --changes-from out")
    if (args.size is not None or args.time is not None) and len(found) < len(args.source):
        raise UsageError("--size and --time are for streams only (NAME=-, NAME=!COMMAND)")
    if args.size is not None and len(found) > 1:
        raise UsageError("--size is for a single stream")
    if args.size == 0:
        raise UsageError("a volume of no bytes cannot be saved", hint="leave --size out if the size is not known")


def moment(text: str) -> int:
    """UTC milliseconds of `2026-11-28`, `2026-11-28T18:30` in local time, or with a zone (ISO 8601).

    Raises UsageError; also for a moment to come, and one before 1970.
    """
    try:
        found = datetime.fromisoformat(text).astimezone()
        milliseconds = round((found - _EPOCH).total_seconds() * 1000)
    except (ValueError, OverflowError, OSError) as error:
        hint = "write for example 2026-11-28, 2026-11-28T18:30 or 2026-11-28T18:30:00Z"
        raise UsageError(f"--time: not a moment: {text!r}", obj=text, hint=hint) from error
    if not 0 <= milliseconds <= now_ms() + _HOUR_MS:
        raise UsageError(f"--time: {text} lies in the future, or before 1970", obj=text)
    return milliseconds
