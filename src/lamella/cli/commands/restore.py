"""`lamella restore`: write a volume, or a document, back."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from lamella.base.errors import Interrupted, LamellaError, SourceAtRisk, SourceError, UsageError
from lamella.cli.arguments import SECRETS, add_dry_run, add_yes
from lamella.cli.chosen import add_thaw, chosen, shown_snapshot, thaw_first, warn_of_no_moment
from lamella.cli.context import Context
from lamella.cli.shown import shown_bytes, shown_seconds
from lamella.cli.sources import keeping
from lamella.cli.values import workers
from lamella.operations.restore.restore import RestoreOptions, RestorePlan, RestoreResult, plan_restore
from lamella.operations.shared.kinds import is_tree
from lamella.operations.shared.selection import Selected, split_selector
from lamella.repository.repository import Repository
from lamella.run.allocator import keep_freed_memory

Facts = dict[str, object]
_NAMED = ("lvm:", "rbd:")  # targets that are no paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = SECRETS
    parser.add_argument(
        "volume",
        nargs="*",
        default=[],
        metavar="VOLUME[@SNAPSHOT]",
        help="SNAPSHOT is any unique beginning of its name, ^TAG, or latest (default)",
    )
    parser.add_argument("--all", action="store_true", help="restore the latest whole snapshot of every volume")
    parser.add_argument(
        "--to",
        required=True,
        type=_target,
        metavar="TARGET",
        help="file, block device, lvm:VG/LV or rbd:POOL/IMAGE to write, named once compared; in DIR/ each"
        " volume becomes VOLUME.img (or .qcow2) unless that is right already; libvirt:NAME gets all disks of a domain",
    )
    parser.add_argument("--pool", metavar="POOL", help="thin pool of a new lvm:VG/LV; place of libvirt:NAME's disks")
    parser.add_argument("--document", metavar="NAME", help="restore this document instead of the volume")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at TARGET")
    parser.add_argument(
        "--in-place", action="store_true", help="write into the file: no further space, old content lost"
    )
    parser.add_argument(
        "--trust-local",
        action="store_true",
        help="trust this host's checkpoint of the volume: compare only what differs from it, and a sample",
    )
    parser.add_argument("--instant", action="store_true", help="serve it at once, writable, and restore meanwhile")
    parser.add_argument("--socket", type=Path, metavar="PATH", help="with --instant: the socket file to serve at")
    parser.add_argument(
        "--journal", type=Path, metavar="FILE", help="with --instant: the journal (default: beside TARGET)"
    )
    parser.add_argument(
        "--in", dest="inside", default="", metavar="QUBE", help="in dom0: open the backup in a disposable of QUBE"
    )
    parser.add_argument("--devices", action="store_true", help="of a tree of files: make its devices, too (root)")
    parser.add_argument("--numeric-ids", action="store_true", help="of a tree: owners by number, not by their names")
    parser.add_argument(
        "--workers", type=workers, metavar="N", help="number of threads (default: suited to this machine)"
    )
    add_thaw(parser)
    add_yes(parser)
    add_dry_run(parser)


def _target(text: str) -> str:
    if text == "-":
        raise UsageError("restore writes to no pipe", hint="use: lamella export VOLUME --to - (./- is a file)")
    return text


def run(context: Context) -> int:
    """Restore."""
    keep_freed_memory()
    args, text = context.args, context.args.to
    # `./lvm:x` is a file, and loses its first part by becoming a path.
    args.to = Path(text).absolute() if str(Path(text)).startswith(_NAMED) > text.startswith(_NAMED) else Path(text)
    try:
        if args.instant or args.socket or args.journal:
            from lamella.cli.commands import _instant  # most restores are not used before their end

            return _instant.run(context)
        if len(args.volume) != 1 or args.all or text[:8] == "libvirt:" or text.endswith("/") > text.startswith(_NAMED):
            from lamella.cli.commands import _volumes  # most restores are of one volume

            return _volumes.run(context)
        return _one(context)
    except SourceAtRisk:
        raise
    except SourceError as error:  # here it is the target, and nothing else was saved
        raise LamellaError(error.message, obj=error.obj, hint=error.hint) from error
    except KeyboardInterrupt:
        raise Interrupted("interrupted", hint="nothing was written") from None


def _one(context: Context) -> int:
    args, out = context.args, context.out
    _require_place(args)
    with context.repository() as repository, decoding(context, repository):
        selected = chosen(repository, args.volume[0])
        code = context.warn_of_problems(repository)
        out.say(f"restoring {shown_snapshot(repository, selected)}")
        thawed = thaw_first(context, repository, [selected])
        if args.document is not None:
            from lamella.cli.commands._document import run as restore_document  # most restores are of volumes

            return restore_document(context, repository, selected) or code
        return _volume(context, repository, selected, thawed) or code


def decoding(context: Context, repository: Repository) -> AbstractContextManager[None]:
    """Where the backup is opened and decoded."""
    if not context.args.inside:
        return nullcontext()
    from lamella.cli.disposables import decoding as in_disposables  # in dom0 of Qubes OS

    return in_disposables(context, repository)


def _require_place(args: argparse.Namespace) -> None:
    """Raises LamellaError where nothing can be written, before the command asks for anything."""
    to, name = args.to, args.document or f"{split_selector(args.volume[0])[0]}.img"
    if str(to).startswith(_NAMED):
        return
    if to.is_dir():
        hint = f"name a file in it: {to / name}" + (
            "" if args.document else f"; {to}/ takes several volumes, and files"
        )
        raise UsageError(f"{to} is a directory", obj=str(to), hint=hint)
    if not (above := to.resolve().parent).is_dir():
        raise LamellaError(f"there is no directory {above}", obj=str(to), hint="make it first")
    in_place = args.in_place and args.document is None
    if in_place and not to.exists():
        raise UsageError(f"{to} does not exist", obj=str(to), hint="leave out --in-place")
    if to.exists() and not to.is_block_device() and not (args.overwrite or in_place):
        raise UsageError(f"{to} exists already", obj=str(to), hint="add --overwrite to replace it")


def _volume(context: Context, repository: Repository, selected: Selected, thawed: Facts) -> int:
    args, out = context.args, context.out
    warn_of_no_moment(context, selected)
    if is_tree(selected.snapshot):
        out.warn(f"{selected.volume_name} holds files: {args.to} becomes their image; for the files write --to DIR/")
    options = RestoreOptions(
        args.workers or context.config.backup.workers,
        overwrite=args.overwrite,
        in_place=args.in_place,
        pool=args.pool,
        pool_limits=(kept := keeping(context)).limits,
        trust_local=args.trust_local,
        checkpoint_dir=kept.directory,
    )
    plan = plan_restore(repository, selected, args.to, options)
    for line in plan.lines():
        (out.line if args.dry_run else out.say)(line)
    if args.dry_run:
        out.document({"dry_run": True, **facts(plan), **thawed})
        return 0
    if plan.replaces:
        context.confirm(f"Will replace the content of {args.to} by {selected.text}, {shown_bytes(plan.size)}.")
    try:
        result = plan.execute(out.report)
    except KeyboardInterrupt:
        from lamella.cli.commands._restore_words import state_left  # hardly ever

        raise Interrupted("interrupted", hint=f"{state_left(plan)}; the same command goes on from there") from None
    return _report(context, plan, result, thawed)


def facts(plan: RestorePlan) -> dict[str, object]:
    """The fields that every restore reports."""
    return {
        "volume": plan.volume,
        "snapshot": plan.snapshot,
        "target": str(plan.target),
        "size": plan.size,
        "data_bytes": plan.data_bytes,
        "in_place": plan.in_place,
    }


def restored(context: Context, plan: RestorePlan, result: RestoreResult) -> str:
    """The line that tells of a volume that was restored."""
    text = (
        f"restored {plan.volume}@{plan.snapshot} to {result.path}: wrote {shown_bytes(result.bytes_written)},"
        f" compared {shown_bytes(result.compared_bytes)} in {shown_seconds(result.seconds)}"
    )
    if use := plan.use_of_kept():
        from lamella.cli.commands._restore_words import use_in_words  # where this host keeps a checkpoint

        text += use_in_words(use, asked=context.args.trust_local)
    return text


def _report(context: Context, plan: RestorePlan, result: RestoreResult, thawed: Facts) -> int:
    context.out.line(restored(context, plan, result))
    if any(record.type == 0x8012 for record in plan.selected.snapshot.added.inner):  # IMAGE of format.image
        from lamella.cli.commands._restore_words import warn_of_missing_files  # few volumes are such files

        warn_of_missing_files(context, plan.selected, result.path)
    context.out.document(
        {
            **facts(plan),
            "target": str(result.path),
            "bytes_written": result.bytes_written,
            "compared_bytes": result.compared_bytes,
            "seconds": result.seconds,
            **plan.use_of_kept(),
            **thawed,
        }
    )
    return 0
