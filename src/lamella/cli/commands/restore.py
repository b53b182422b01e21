"""`lamella restore`: write a volume, or a document, back."""

from __future__ import annotations

import argparse
from pathlib import Path

from lamella.base.errors import Interrupted, LamellaError, SourceAtRisk, SourceError, UsageError
from lamella.cli.arguments import SECRETS, add_dry_run, add_yes
from lamella.cli.chosen import chosen, shown_snapshot, warn_of_no_moment
from lamella.cli.context import Context
from lamella.cli.files import exists, write_file
from lamella.cli.shown import shown_bytes, shown_seconds
from lamella.cli.sources import keeping
from lamella.cli.values import workers
from lamella.operations.restore.restore import RestoreOptions, RestorePlan, RestoreResult, plan_restore
from lamella.operations.shared.selection import Selected, split_selector
from lamella.operations.shared.streaming import read_document
from lamella.repository.repository import Repository
from lamella.run.allocator import keep_freed_memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = SECRETS
    parser.add_argument(
        "volume",
        metavar="VOLUME[@SNAPSHOT]",
        help="SNAPSHOT is any unique beginning of its name, ^TAG, or latest (default)",
    )
    parser.add_argument(
        "--to",
        required=True,
        type=_target,
        metavar="TARGET",
        help="file, block device or lvm:VG/LV to write; a new file or volume gets its name only after the comparison",
    )
    parser.add_argument("--pool", metavar="POOL", help="thin pool for a new lvm:VG/LV, if the group has several")
    parser.add_argument("--document", metavar="NAME", help="restore this document instead of the volume")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at TARGET")
    parser.add_argument(
        "--in-place",
        action="store_true",
        help="write into the existing file; this needs no further space, and the old content is lost",
    )
    parser.add_argument("--workers", type=workers, metavar="N", help="threads (default: as many as suit the machine)")
    add_yes(parser)
    add_dry_run(parser)


def _target(text: str) -> Path:
    path = Path(text)
    if text == "-":
        raise UsageError("restore writes to no pipe", hint="use: lamella export VOLUME --to - (./- is a file)")
    # `./lvm:x` is a file, and loses its first part by becoming a path.
    return path.absolute() if str(path).startswith("lvm:") and not text.startswith("lvm:") else path


def run(context: Context) -> int:
    """Restore."""
    keep_freed_memory()
    args, out = context.args, context.out
    _require_place(args)
    replaces = args.overwrite or (args.in_place and args.document is None)
    if args.to.exists() and not args.to.is_block_device() and not replaces:
        error = exists(args.to)
        error.hint = "add --overwrite to replace it"
        raise error
    try:
        with context.repository() as repository:
            selected = chosen(repository, args.volume)
            code = context.warn_of_problems(repository)
            out.say(f"restoring {shown_snapshot(repository, selected)}")
            return (_volume if args.document is None else _document)(context, repository, selected) or code
    except SourceAtRisk:
        raise
    except SourceError as error:  # here it is the target, and nothing else was saved
        raise LamellaError(error.message, obj=error.obj, hint=error.hint) from error


def _require_place(args: argparse.Namespace) -> None:
    """Raises LamellaError where no file can be made: what would fail after the plan fails before the command asks."""
    if str(args.to).startswith("lvm:"):
        return
    name = args.document or f"{split_selector(args.volume)[0]}.img"
    if args.to.is_dir():
        raise UsageError(f"{args.to} is a directory", obj=str(args.to), hint=f"name a file in it: {args.to / name}")
    above = args.to.resolve().parent
    if not above.is_dir():
        raise LamellaError(f"there is no directory {above}", obj=str(args.to), hint="make it first")


def _volume(context: Context, repository: Repository, selected: Selected) -> int:
    args, out = context.args, context.out
    warn_of_no_moment(context, selected)
    options = RestoreOptions(
        args.workers or context.config.backup.workers,
        overwrite=args.overwrite,
        in_place=args.in_place,
        pool=args.pool,
        pool_limits=keeping(context).limits,
    )
    plan = plan_restore(repository, selected, args.to, options)
    for line in plan.lines(shown_bytes):
        if args.dry_run:
            out.line(line)
        else:
            out.say(line)
    if args.dry_run:
        out.document({"dry_run": True, **_facts(plan)})
        return 0
    if plan.replaces:
        context.confirm(f"Will replace the content of {args.to} by {selected.text}, {shown_bytes(plan.size)}.")
    try:
        result = plan.execute(out.report)
    except KeyboardInterrupt:
        state = "now a mixture of old and new: restore it again" if plan.in_place else "as it was before"
        raise Interrupted("interrupted", hint=f"{args.to} is {state}") from None
    return _report(context, plan, result)


def _facts(plan: RestorePlan) -> dict[str, object]:
    return {
        "volume": plan.volume,
        "snapshot": plan.snapshot,
        "target": str(plan.target),
        "size": plan.size,
        "data_bytes": plan.data_bytes,
        "in_place": plan.in_place,
    }


def _report(context: Context, plan: RestorePlan, result: RestoreResult) -> int:
    out = context.out
    out.line(
        f"restored {plan.volume}@{plan.snapshot} to {result.path}: wrote {shown_bytes(result.bytes_written)},"
        f" compared {shown_bytes(result.compared_bytes)} in {shown_seconds(result.seconds)}"
    )
    out.document(
        {
            **_facts(plan),
            "target": str(result.path),
            "bytes_written": result.bytes_written,
            "compared_bytes": result.compared_bytes,
            "seconds": result.seconds,
        }
    )
    return 0


def _document(context: Context, repository: Repository, selected: Selected) -> int:
    args, out = context.args, context.out
    content = read_document(repository, selected, args.document)
    if not args.dry_run:
        if args.to.exists():
            context.confirm(f"Will replace the content of {args.to} by document {args.document}.")
        write_file(args.to, content, overwrite=args.overwrite)
    out.line(
        f"{'would write' if args.dry_run else 'wrote'} document {args.document} of {selected.text} to {args.to}:"
        f" {shown_bytes(len(content))}"
    )
    out.document(
        {
            **({"dry_run": True} if args.dry_run else {}),
            "volume": selected.volume_name,
            "snapshot": selected.snapshot.name,
            "document": args.document,
            "target": str(args.to),
            "bytes_written": 0 if args.dry_run else len(content),
        }
    )
    return 0
