"""`lamella report`: how everything stands and how it came to that, as a page to keep, to print or to send."""

from __future__ import annotations

import argparse
from datetime import timedelta
from typing import Any

from lamella.base.clock import iso
from lamella.cli.arguments import SECRETS
from lamella.cli.context import Context
from lamella.cli.everyday.standing import Overview, standing
from lamella.cli.pages.kept import require_page, write_page
from lamella.cli.pages.past import days_of, local_day, with_past
from lamella.cli.shown import shown_bytes

_SPANS = (7, 30, 365)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = SECRETS
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="write one page without any script to FILE, which only you can read; - is standard output",
    )


def run(context: Context) -> int:
    """Make it. Whether everything is in order is what `status` ends with; this ends with 0."""
    target = context.args.html
    if target is not None:
        require_page(target, as_json=context.args.json)
    found = standing(context, "report", with_past)
    if target is not None:
        from lamella.cli.pages.report import report

        write_page(context.out, report(found, _host()), target)
    else:
        _print(context, found)
    context.out.document(found.row())
    return 0


def _host() -> str:
    import socket

    return socket.gethostname()


def _print(context: Context, found: Overview) -> None:
    """The same in a few lines: what was added lately, and how many runs went wrong."""
    today, out = local_day(iso(found.time_ms)), context.out
    heads = ("VOLUME", "REPOSITORY", "STATE", "SNAPSHOTS", *(f"{span} DAYS" for span in _SPANS), "FAILED")
    rows: list[tuple[Any, ...]] = []
    for row in found.volumes:
        days = days_of(row)
        since = {span: today - timedelta(span - 1) for span in _SPANS}
        added = [sum(day.stored_bytes for when, day in days.items() if when >= since[span]) for span in _SPANS]
        failed = sum(day.failed for when, day in days.items() if when >= since[_SPANS[-1]])
        words = (row["volume"], row["repository"], row["state"], row["snapshots"])
        rows.append((*words, *map(shown_bytes, added), failed))
    if rows:
        out.table([heads, *rows])
    for one in found.repositories:
        why = f": {'; '.join(one['reasons'])}" if one["reasons"] else ""
        out.line(f"repository {one['repository']}, {shown_bytes(one['stored_bytes'])} stored{why}")
