"""`lamella rename`: give a volume another name."""

from __future__ import annotations

import argparse

from lamella.cli.arguments import SECRETS, add_dry_run
from lamella.cli.context import Context
from lamella.operations.labels import rename_record
from lamella.operations.shared.selection import find_volume


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = SECRETS
    parser.add_argument("volume", metavar="VOLUME", help="the volume as it is called now")
    parser.add_argument("name", metavar="NAME", help="its new name; its source and its snapshots stay what they are")
    add_dry_run(parser)


def run(context: Context) -> int:
    """Do it."""
    args, out = context.args, context.out
    with context.sound_repository(read_only=args.dry_run) as repository:
        volume = find_volume(repository, args.volume)
        old = repository.catalogue.shown_names()[volume.volume_id]
        record = rename_record(repository, volume, args.name)
        if not args.dry_run and volume.name != args.name:
            repository.publish([record])
            repository.reload()
        new = args.name if args.dry_run else repository.catalogue.shown_names()[volume.volume_id]
    out.line(f"{old} {'would be' if args.dry_run else 'is'} called {new} {'then' if args.dry_run else 'now'}")
    out.document({"dry_run": args.dry_run, "volume": new, "before": old, "id": volume.volume_id.hex()})
    return 0
