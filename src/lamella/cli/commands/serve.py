"""`lamella serve`: the far side of a pipe, for one client on standard input and output."""

from __future__ import annotations

import argparse
import re

from lamella.base.errors import UsageError
from lamella.cli.amounts import budget
from lamella.cli.context import Context
from lamella.stores.pipe.frames import Hello
from lamella.stores.pipe.guarded import GuardedStore
from lamella.stores.pipe.server import Server
from lamella.stores.url import below, open_store

_FAILED = 1
_PREFIX = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = (
        "Meant for a command= in authorized_keys, a qrexec service, or the like. The server has no keys and trusts no\n"
        "client. It serves the place named here, and ignores the place that the client names."
    )
    parser.add_argument("place", metavar="PATH|URL", help="the directory, or any destination that REPO may name")
    parser.add_argument("--append-only", action="store_true", help="refuse to remove or replace anything")
    parser.add_argument("--read-only", action="store_true", help="refuse to write anything")
    parser.add_argument(
        "--admitted", action="store_true", help="take commits only of writers that an admin's secret enrolled"
    )
    parser.add_argument(
        "--prefix",
        metavar="NAME",
        type=_prefix,
        help="serve the directory NAME below PATH, and create it if it is missing",
    )
    parser.add_argument(
        "--quota", metavar="SIZE", type=budget, help="refuse writes that would take the sum of all objects above SIZE"
    )


def _prefix(text: str) -> str:
    if not _PREFIX.fullmatch(text):
        raise argparse.ArgumentTypeError("a prefix is one name of letters, digits, '.', '_' and '-'")
    return text


def run(context: Context) -> int:
    """Serve until the client has gone."""
    args = context.args
    if args.append_only and args.read_only:
        raise UsageError("--append-only and --read-only contradict each other")

    def opened(hello: Hello) -> GuardedStore:
        place = below(args.place, args.prefix) if args.prefix else args.place
        read_only = args.read_only or hello.read_only
        create = not read_only and (hello.create or bool(args.prefix))
        store = open_store(place, create=create, read_only=read_only, environment=context.env)
        return GuardedStore(
            store,
            append_only=args.append_only,
            quota_bytes=args.quota,
            checked=hello.checked,
            admitted=args.admitted,
        )

    return 0 if Server(0, 1, opened).run() else _FAILED
