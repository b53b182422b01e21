"""`lamella tag`: tags and pins of snapshots."""

from __future__ import annotations

import argparse

from lamella.base.errors import RepositoryError, UsageError
from lamella.cli.arguments import SECRETS, add_dry_run
from lamella.cli.context import Context
from lamella.operations.labels import check_tag, label_records, require_may_label, same_run, still_labelled
from lamella.operations.shared.selection import Selected, select, split_selector
from lamella.repository.repository import Repository


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = (
        "A tag selects its snapshot as VOLUME@^TAG, and `prune --keep-tag TAG` keeps it. A pinned snapshot is kept by\n"
        "every prune. What another writer gave is taken away only with an admin's secret.\n\n"
    ) + SECRETS
    parser.add_argument("snapshot", metavar="VOLUME@SNAPSHOT", help="which snapshot")
    parser.add_argument("tag", nargs="*", default=[], metavar="TAG", help="tags to add")
    parser.add_argument("--remove", action="append", default=[], metavar="TAG", help="remove this tag")
    pins = parser.add_mutually_exclusive_group()
    pins.add_argument("--pin", nargs="?", const="", metavar="REASON", help="keep the snapshot, whatever the rules say")
    pins.add_argument("--unpin", action="store_true", help="take the pin away: prune may remove the snapshot again")
    parser.add_argument(
        "--all-volumes", action="store_true", help="the same for all volumes that were saved in this snapshot"
    )
    add_dry_run(parser)


def run(context: Context) -> int:
    """Do it, and print what the snapshots have now."""
    args = context.args
    if split_selector(args.snapshot)[1] is None:
        raise UsageError(f"{args.snapshot} names no snapshot", obj=args.snapshot, hint="write VOLUME@SNAPSHOT")
    tags = [check_tag(tag.removeprefix("^")) for tag in args.tag]
    remove = [tag.removeprefix("^") for tag in args.remove]
    if not (tags or remove or args.unpin) and args.pin is None:
        raise UsageError("nothing to change", hint="give a TAG, --remove TAG, --pin or --unpin")
    if set(tags) & set(remove):
        raise UsageError("the same tag cannot be added and removed")
    with context.sound_repository(read_only=args.dry_run) as repository:
        chosen = select(repository, [args.snapshot])
        if args.all_volumes:
            chosen = same_run(repository, chosen[0])
        if tags or args.pin is not None:
            require_may_label(repository, chosen)
        records = label_records(chosen, tags, remove, args.pin, args.unpin)
        if records and not args.dry_run:
            repository.publish(records)
            repository.reload()
        _report(context, repository, chosen, len(records))
        left = [] if args.dry_run else still_labelled(repository, chosen, remove, args.unpin)
    if left:
        hint = "another writer gave it: use an admin's passphrase, key file or recovery key"
        raise RepositoryError(f"not removed: {', '.join(left)}", obj=left[0], hint=hint)
    return 0


def _report(context: Context, repository: Repository, chosen: list[Selected], count: int) -> None:
    out = context.out
    now = {snapshot.ref: snapshot for snapshot in repository.catalogue.snapshots}
    rows = []
    for one in chosen:
        snapshot = now.get(one.snapshot.ref, one.snapshot)
        marks = [f"^{tag}" for tag in snapshot.tags]
        marks += [f"pinned: {snapshot.pinned}".rstrip(": ")] if snapshot.pinned is not None else []
        free = context.args.unpin and snapshot.pinned is None
        state = [*(marks or ["no tags"]), *(["not pinned: prune may remove the snapshot"] if free else [])]
        out.line(f"{one.text}: {', '.join(state)}")
        row = {"snapshot": snapshot.name, "volume": one.volume_name, "tags": list(snapshot.tags)}
        rows.append({**row, "pinned": snapshot.pinned})
    if context.args.dry_run:
        out.line(f"{count} change{'' if count == 1 else 's'} would be made")
    out.document({"dry_run": context.args.dry_run, "changes": count, "snapshots": rows})
