"""`lamella monitor`: for each source make a new checkpoint, note what changed since the old ones, and remove them."""

from __future__ import annotations

import argparse

from lamella.base.errors import LamellaError, NothingMatched
from lamella.cli.context import Context
from lamella.cli.output import INCOMPLETE
from lamella.cli.shown import shown_bytes
from lamella.cli.sources import named_source
from lamella.memory.ledger import tracked_identities
from lamella.operations.moments.monitor import UNTRACKED, MonitorResult, monitor
from lamella.sources.places import place_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = (
        "Between two backups a checkpoint holds the space of everything that is overwritten. Let a timer run this\n"
        "command to free that space; the next backup still reads only what changed. Only sources on Btrfs, XFS with\n"
        "reflinks, and thin volumes of LVM have checkpoints. The command needs no repository and no secret."
    )
    parser.add_argument(
        "source",
        nargs="*",
        metavar="SOURCE",
        help="image or lvm:VG/LV (default: all sources with a checkpoint)",
    )


def run(context: Context) -> int:
    """Do it. A source that fails does not stop the others."""
    out = context.out
    results: list[MonitorResult] = []
    failed: list[dict[str, str]] = []
    places = context.args.source or _tracked(context)
    for place in places:
        try:
            results.append(monitor(context.host, named_source(context, place), lock_wait=context.args.lock_wait))
        except LamellaError as error:
            if len(places) == 1:
                raise
            failed.append({"source": place, "error": error.message})
            out.warn(f"{place}: {error.message}")
            continue
        done = results[-1]
        if not done.tracked:
            out.line(f"{done.source} ({done.driver}): nothing to free; {UNTRACKED}")
            continue
        changed = f"{shown_bytes(done.changed_bytes)} may have changed"
        out.line(f"{done.source} ({done.driver}): {changed}; checkpoints removed: {done.dropped}")
        for note in done.notes:
            out.say(f"{done.source}: {note}")
    rows = [{name: getattr(row, name) for name in MonitorResult.__slots__} for row in results]
    out.document({"sources": rows, "failed": failed})
    return INCOMPLETE if failed else 0


def _tracked(context: Context) -> list[str]:
    found: list[str] = []
    for identity in tracked_identities(context.host):
        try:
            place = place_of(identity, context.host.machine)
        except LamellaError as error:
            context.out.warn(f"a source cannot be found: {error.message}")
            continue
        found += [] if place is None else [place]
    if not found:
        raise NothingMatched("this host has no checkpoint of any source", hint="the first backup of a volume makes one")
    return found
