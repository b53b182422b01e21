"""The same work in the repository of each host: a line for each, and one exit code."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from lamella.base.clock import now_ms
from lamella.base.errors import LamellaError
from lamella.cli.context import Context
from lamella.cli.fleet.catalogue import Deed, FleetCatalogue, catalogue_path
from lamella.cli.fleet.hosts import FleetHost, chosen
from lamella.cli.fleet.running import AT_ONCE, Command, HostResult, each
from lamella.cli.output import INCOMPLETE
from lamella.cli.values import workers

LOOK_SECONDS = 900.0
"""A look that takes longer is ended. Lamella itself gives up a silent destination within five minutes."""
Row = dict[str, Any]


def add_hosts(parser: argparse.ArgumentParser) -> None:
    """The hosts to work on, and how many at a time."""
    parser.add_argument("host", nargs="*", default=[], metavar="HOST", help="only these hosts (default: all)")
    parser.add_argument(
        "--at-once", type=workers, default=AT_ONCE, metavar="N", help=f"work on N hosts at a time (default {AT_ONCE})"
    )


def look_at(context: Context, catalogue: FleetCatalogue, hosts: Sequence[FleetHost], seconds: float) -> list[Row]:
    """Look at these hosts, and keep what is found; returns a row for each."""
    rows = []
    for result in each(hosts, _look, at_once=context.args.at_once, seconds=seconds):
        rows.append(_taken_in(catalogue, result))
        _tell(context, rows[-1], "looked at")
    return rows


def _look(host: FleetHost) -> list[str]:
    return ["fleet", "refresh", "--one"]


def _taken_in(catalogue: FleetCatalogue, result: HostResult) -> Row:
    """A look that failed leaves what was known."""
    name, now, code, error, kind = result.host.name, now_ms(), result.code, result.error, result.kind
    if not code:
        try:
            catalogue.take_in(name, now, result.document)
        except LamellaError as reason:
            code, error, kind = reason.exit_code, reason.message, reason.kind
    if code:
        catalogue.failed(name, now, code, kind, error or f"ended with {code}")
    return {"host": name, "exit": code, "error": error}


def work(context: Context, word: str, command: Command, lacks: Callable[[FleetHost], str]) -> int:
    """Do what `word` says in the repositories of the hosts, then look at these again. `lacks` says why a host cannot.

    A host that cannot is told, and a failure where it was named. Returns the exit code. Raises NothingMatched.
    """
    args = context.args
    hosts = chosen(context.env, args.host)
    missing = {host.name: lacks(host) for host in hosts if not host.problem}
    able = [host for host in hosts if host.problem or not missing[host.name]]
    rows: list[Row] = [
        {"host": name, "exit": 2 if args.host else 0, "error": why} for name, why in missing.items() if why
    ]
    for row in rows:
        context.out.answer(f"{row['host']}: not done: {row['error']}")
    with FleetCatalogue.open(catalogue_path(context.host.cache_dir)) as catalogue:
        for result in each(able, command, at_once=args.at_once, seconds=None):
            rows.append(_result_row(result))
            _tell(context, rows[-1], _figures(word, result.document))
            if not args.dry_run:
                catalogue.did(result.host.name, Deed(word, now_ms(), result.code, rows[-1]["error"]))
        if not args.dry_run:
            _look_again(context, catalogue, able)
    context.out.document({"hosts": rows})
    return exit_code(rows)


def _look_again(context: Context, catalogue: FleetCatalogue, hosts: Sequence[FleetHost]) -> None:
    """So that the catalogue knows what was done; whether a host can be looked at is what `status` says."""
    for result in each(hosts, _look, at_once=context.args.at_once, seconds=LOOK_SECONDS):
        _taken_in(catalogue, result)


def _result_row(result: HostResult) -> Row:
    error = result.error if result.code else ""
    if result.code and (found := result.document.get("findings")):
        first = found[0]
        error = f"{len(found)} finding{'s' * (len(found) > 1)}: {first.get('object')}: {first.get('message')}"
    return {"host": result.host.name, "exit": result.code, "error": error, "result": result.document}


def _tell(context: Context, row: Row, done: str) -> None:
    """A line for a host; failures are answers, whatever --quiet says."""
    if row["exit"]:
        context.out.answer(f"{row['host']}: FAILED ({row['exit']}): {row['error']}")
    else:
        context.out.line(f"{row['host']}: {done}")


_FIGURES = {
    "prune": lambda one: f"{len(one.get('removed', ()))} snapshots removed",
    "verify": lambda one: f"{one.get('checked_chunks', 0)} chunks checked, no damage found",
    "mirror": lambda one: f"{one.get('copied_objects', one.get('missing_objects', 0))} objects to copy",
}


def _figures(word: str, document: Row) -> str:
    return _FIGURES[word](document)


def exit_code(rows: Sequence[Row]) -> int:
    """0 if all went well, else 3: the line of each host says more."""
    return INCOMPLETE if any(row["exit"] for row in rows) else 0
