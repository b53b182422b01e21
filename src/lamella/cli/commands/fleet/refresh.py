"""`lamella fleet refresh`: look at the repositories of the hosts again."""

from __future__ import annotations

import argparse
import json
import sys

from lamella.base.errors import NothingMatched, UsageError
from lamella.cli.arguments import SECRETS
from lamella.cli.commands.fleet._each import LOOK_SECONDS, add_hosts, exit_code, look_at
from lamella.cli.context import Context
from lamella.cli.fleet.catalogue import FleetCatalogue, catalogue_path
from lamella.cli.fleet.hosts import all_hosts, chosen
from lamella.cli.values import seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's own arguments."""
    parser.epilog = (
        "Nothing in any repository is changed. A host that this machine has no key for is listed, not opened: what\n"
        "shows is how much is stored, and whether anything was added. A host that cannot be looked at keeps what was\n"
        "found before, with its age.\n\n"
    ) + SECRETS
    add_hosts(parser)
    parser.add_argument(
        "--seconds", type=seconds, default=LOOK_SECONDS, metavar="N",
        help=f"give a host N seconds for its answer (default {LOOK_SECONDS:.0f})",
    )  # fmt: skip
    parser.add_argument(
        "--forget", action="append", default=[], metavar="HOST", help="drop what is known of a host without a file"
    )
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # what each look is: see `running`


def run(context: Context) -> int:
    """Look."""
    if context.args.one:
        return _one(context)
    if not context.args.seconds:
        raise UsageError("--seconds 0 leaves no host time for an answer")
    with FleetCatalogue.open(catalogue_path(context.host.cache_dir)) as catalogue:
        if context.args.forget:
            return _forget(context, catalogue)
        rows = look_at(context, catalogue, chosen(context.env, context.args.host), context.args.seconds)
    context.out.document({"hosts": rows})
    return exit_code(rows)


def _one(context: Context) -> int:
    from lamella.cli.fleet.look import opened, unopened

    found = (unopened if context.given_secret() is None else opened)(context)
    # Not indented, as a document for people is: an answer may have a megabyte, and its reader is this program.
    sys.stdout.write(json.dumps(found))
    return 0


def _forget(context: Context, catalogue: FleetCatalogue) -> int:
    known, files = catalogue.hosts(), {host.name: host for host in all_hosts(context.env)}
    for name in context.args.forget:
        if name in files:
            raise NothingMatched(f"{name} has a file: remove that first", obj=str(files[name].path))
        if name not in known:
            raise NothingMatched(f"nothing is known of a host {name}", obj=name)
    for name in context.args.forget:
        catalogue.forget(name)
        context.out.line(f"{name}: forgotten; its repository is as it was")
    context.out.document({"forgotten": context.args.forget})
    return 0
