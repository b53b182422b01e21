"""`lamella fleet search`: snapshots by host, volume and date."""

from __future__ import annotations

import argparse
from datetime import datetime, time

from lamella.base.clock import iso, local_now
from lamella.base.errors import NothingMatched, UsageError
from lamella.cli.context import Context
from lamella.cli.fleet.catalogue import FleetCatalogue, Wanted, catalogue_path
from lamella.cli.local_time import shown_time
from lamella.cli.shown import shown_bytes

_MOST = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's own arguments."""
    parser.epilog = (
        "Opens no repository. Patterns have *, ? and [abc]. A DATE is a day (2026-11-28, today, yesterday), a minute\n"
        "(2026-11-28T18:30), or so long ago (2h, 10d), in local time. Get what was found:\n"
        "lamella restore -r fleet:HOST VOLUME@SNAPSHOT --to TARGET"
    )
    parser.add_argument("volume", nargs="?", default="*", metavar="VOLUME", help="name or pattern of volumes")
    parser.add_argument("--host", default="*", metavar="HOST", help="name or pattern of hosts")
    parser.add_argument("--since", type=_begin, default=0, metavar="DATE", help="from DATE on")
    parser.add_argument("--until", type=_end, default=(1 << 62), metavar="DATE", help="up to DATE")
    parser.add_argument(
        "--most", type=_count, default=_MOST, metavar="N", help=f"show the newest N that fit (default {_MOST})"
    )


def _end(text: str) -> int:
    from lamella.operations.shared.dates import moment_ms

    found = moment_ms(text, local_now())
    if found is None:
        raise argparse.ArgumentTypeError(f"not a date: {text!r}; write for example 2026-11-28, yesterday or 10d")
    return found + 1


def _begin(text: str) -> int:
    """The beginning of a day; of anything else the moment."""
    end = _end(text)
    if ":" in text or (text[:1].isdigit() and "-" not in text):
        return end
    day = datetime.fromtimestamp((end - 1) / 1000).date()
    return int(datetime.combine(day, time()).astimezone().timestamp() * 1000)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"not a number from 1 to 1000000: {text!r}")
    return int(text)


def run(context: Context) -> int:
    """Find them."""
    args, out = context.args, context.out
    if args.since >= args.until:
        raise UsageError("--since lies behind --until")
    with FleetCatalogue.open(catalogue_path(context.host.cache_dir)) as catalogue:
        found, more = catalogue.search(Wanted(args.host, args.volume, args.since, args.until, args.most))
    if not found:
        hint = "what the last look found is searched: lamella fleet refresh"
        raise NothingMatched("no snapshot fits", hint=hint)
    rows = [{"time": iso(row.pop("time_ms")), **row} for row in found]
    table = [
        (row["host"], row["volume"], row["snapshot"], shown_time(row["time"]), shown_bytes(row["stored_bytes"]),
         "" if row["good"] else "not whole")
        for row in rows
    ]  # fmt: skip
    out.table([("HOST", "VOLUME", "SNAPSHOT", "LOCAL TIME", "ADDED", ""), *table])
    if more:
        out.say(f"these are the newest {args.most}; --most N shows more")
    out.document({"snapshots": rows, "more": more})
    return 0
