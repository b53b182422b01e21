"""`lamella qubes setup-storage`: what a qube needs to store backups."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from lamella.cli.arguments import add_dry_run, add_yes
from lamella.cli.commands.qubes.qubesd import admin_of
from lamella.cli.context import Context
from lamella.qubes.inventory import Inventory
from lamella.qubes.storage_qube import check_storage, example_policy, install, storage_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's own arguments."""
    parser.add_argument("storage_qube", metavar="QUBE", help="the qube that stores the backups; it needs no trust")
    parser.add_argument("--name", default="main", metavar="NAME", help="name of the destination (default: main)")
    parser.add_argument(
        "--place",
        default="/home/user/lamella",
        metavar="PLACE",
        help="a directory in that qube, or a URL it serves",
    )
    parser.add_argument("--append-only", action="store_true", help="the service refuses to delete or replace anything")
    parser.add_argument("--admitted", action="store_true", help="the service takes commits only of admitted hosts")
    parser.add_argument("--quota", metavar="SIZE", help="store at most SIZE bytes")
    parser.add_argument("--install", action="store_true", help="write the files in the qube, as root, through qvm-run")
    add_yes(parser)
    add_dry_run(parser)


def run(context: Context) -> int:
    """Do it."""
    args, out = context.args, context.out
    admin = admin_of(context)
    qube = check_storage(admin, Inventory(admin), args.storage_qube, out.report)
    words = (("--append-only", args.append_only), ("--admitted", args.admitted), (f"--quota={args.quota}", args.quota))
    options = [word for word, wanted in words if wanted]
    files = storage_files(args.name, args.place, options)
    if args.install and not args.dry_run:
        context.confirm(f"Will write in {qube.name}, as root: {', '.join(file.path for file in files)}.")
        install(qube, files)
    for file in files:
        out.line(f"in {qube.name}: {file.path} (mode {file.mode})" + (", installed" if args.install else ""))
        if not args.install:
            out.line("".join(f"    {line}\n" for line in file.content.splitlines()))
    if not args.install:
        out.line("in dom0, only if other qubes are to use it: /etc/qubes/policy.d/30-lamella.policy")
        out.line("".join(f"    {line}\n" for line in example_policy().splitlines()))
    place = f"qubes://{qube.name}/{args.name}"
    out.say(f"then: lamella -r {place} init")
    facts = {"policy": example_policy(), "installed": args.install, "url": place}
    out.document({"qube": qube.name, "files": [asdict(file) for file in files], **facts})
    return 0
