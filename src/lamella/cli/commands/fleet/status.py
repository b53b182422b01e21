"""`lamella fleet status`: whether every host is in order, and why not."""

from __future__ import annotations

import argparse
from typing import Any

from lamella.base.clock import now_ms
from lamella.cli.amounts import shown_age
from lamella.cli.context import Context
from lamella.cli.everyday.health import GROWTH_DAYS, OK, worst
from lamella.cli.fleet.catalogue import FleetCatalogue, catalogue_path
from lamella.cli.fleet.health import host_rows
from lamella.cli.fleet.hosts import chosen
from lamella.cli.local_time import shown_time
from lamella.cli.output import INCOMPLETE
from lamella.cli.shown import shown_bytes

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's own arguments."""
    parser.epilog = (
        "Opens no repository: run `lamella fleet refresh` before, or by a timer. What nobody looked at for too long\n"
        "is stale.\n\nexit codes of status: 0 every host is in order, 3 one is not"
    )
    parser.add_argument("host", nargs="*", default=[], metavar="HOST", help="only these hosts (default: all)")
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="write one page without any script to FILE, which only you can read; - is standard output",
    )


def run(context: Context) -> int:
    """Judge what the catalogue holds."""
    args, out, now = context.args, context.out, now_ms()
    target = _page_target(context)
    hosts = chosen(context.env, args.host)
    with FleetCatalogue.open(catalogue_path(context.host.cache_dir)) as catalogue:
        rows = host_rows(hosts, catalogue, now)
        if args.host:
            rows = [row for row in rows if row["host"] in set(args.host)]
        state = worst(row["state"] for row in rows)
        if target is not None:
            from lamella.cli.fleet.page import fleet_page
            from lamella.cli.pages.kept import write_page

            write_page(out, fleet_page(rows, catalogue.days(0), now), target)
        else:
            _print(context, rows)
    out.document({"state": state, "hosts": rows})
    return 0 if state == OK else INCOMPLETE


def _page_target(context: Context) -> str | None:
    """Where the page goes; what would fail later fails now. Raises UsageError."""
    target: str | None = context.args.html
    if target is not None:
        from lamella.cli.pages.kept import require_page

        require_page(target, as_json=context.args.json)
    return target


def _print(context: Context, rows: list[Row]) -> None:
    heads = ("", "HOST", "NEWEST", "AGE", "VOLUMES", "STORED", f"{GROWTH_DAYS} DAYS", "VERIFIED", "LOOKED", "WHY")
    words = {"ok": "ok", "warn": "WARN", "bad": "BAD"}
    context.out.table([heads, *((words[row["state"]], *_cells(row)) for row in rows)])


def _cells(row: Row) -> tuple[str, ...]:
    quota = f" of {shown_bytes(row['quota_bytes'])}" if row["quota_bytes"] else ""
    return (
        row["host"],
        shown_time(row["newest_time"]) if row["newest_time"] else "none",
        "" if row["age_seconds"] is None else shown_age(row["age_seconds"]),
        str(row["volumes"]) if row["keys"] else "no key",
        shown_bytes(row["stored_bytes"]) + quota,
        shown_bytes(row["grown_bytes"]) if row["keys"] else "",
        shown_time(row["verified"])[:10] if row["verified"] else "never",
        shown_time(row["looked"]) if row["looked"] else "never",
        "; ".join(row["reasons"]),
    )
