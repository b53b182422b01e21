"""`lamella qubes restore`: create qubes or overwrite them, data and settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

from lamella.base.durable import make_private
from lamella.base.errors import NothingMatched, UsageError
from lamella.cli.arguments import add_dry_run, add_yes, lazy
from lamella.cli.commands.qubes.qubesd import admin_of
from lamella.cli.context import Context
from lamella.cli.output import INCOMPLETE
from lamella.cli.shown import shown_bytes
from lamella.operations.restore.restore import RestoreOptions, plan_restore
from lamella.operations.shared.selection import Selected
from lamella.qubes.admin import Admin
from lamella.qubes.archive import read_snapshot, saved_qubes
from lamella.qubes.inventory import Inventory
from lamella.qubes.names import DOM0, owner_of
from lamella.qubes.powers import read_policies
from lamella.qubes.restore import QubeResult, QubesRestore
from lamella.qubes.restore_plan import QubeRestore, RestorePlanner, RestoreWishes
from lamella.qubes.storage import kept_running
from lamella.repository.repository import Repository
from lamella.run.allocator import keep_freed_memory
from lamella.sources.base import Consistency

_workers = lazy("workers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's own arguments."""
    parser.add_argument(
        "qube", nargs="*", metavar="QUBE[@SNAPSHOT]", help="restore this qube (default: every qube in the repository)"
    )
    parser.add_argument("-x", "--exclude", action="append", default=[], metavar="QUBE", help="leave this qube out")
    parser.add_argument("--overwrite", action="store_true", help="replace data and settings of qubes that exist")
    parser.add_argument("--rename-conflicting", action="store_true", help="restore qubes that exist under a new name")
    parser.add_argument("--skip-conflicting", action="store_true", help="leave qubes that exist as they are")
    parser.add_argument(
        "--ignore-missing", action="store_true", help="use the default template instead of a missing one"
    )
    parser.add_argument("--skip-broken", action="store_true", help="leave out qubes whose template is missing")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--only-data", action="store_true", help="restore the volumes without the settings")
    only.add_argument("--only-settings", action="store_true", help="restore the settings without the volumes")
    parser.add_argument(
        "--grant-powers",
        action="store_true",
        help="also set tags, devices and references to qubes that a policy of this system names",
    )
    parser.add_argument(
        "--paranoid",
        action="store_true",
        help="open and decode the backup in disposables without a network, one for each qube, instead of dom0",
    )
    parser.add_argument(
        "--in", dest="inside", default="", metavar="QUBE", help="make these disposables from QUBE; implies --paranoid"
    )
    parser.add_argument(
        "--trust-local", action="store_true", help="trust checkpoints: compare what differs, and a sample"
    )
    parser.add_argument("--exact", action="store_true", help="also remove settings that the backup does not contain")
    parser.add_argument(
        "--dom0-to", type=Path, metavar="FOLDER", help="write the saved files of dom0 into this new folder"
    )
    parser.add_argument(
        "--workers", type=lazy("workers"), metavar="N", help="number of threads (default: suited to this machine)"
    )
    add_yes(parser)
    add_dry_run(parser)


def run(context: Context) -> int:
    """Do it."""
    args = context.args
    admin = admin_of(context)
    inventory = Inventory(admin)
    with (
        kept_running(admin, context.place, context.out.report),
        context.sound_repository() as repository,
        _decoding(context, repository),
    ):
        names = args.qube or [qube.owner for qube in saved_qubes(repository) if not qube.owner.startswith(DOM0)]
        saved = [one for one in (read_snapshot(repository, name) for name in names) if one.name not in args.exclude]
        dom0 = [one for one in saved if one.name == "dom0"]
        if not saved:
            raise NothingMatched("no qube is selected", hint="see: lamella qubes list")
        if dom0 and args.dom0_to is None:
            raise UsageError("dom0 is never overwritten", obj="dom0", hint="add --dom0-to FOLDER to see its files")
        wishes = _wishes(args)
        others = [one for one in saved if one.name != "dom0"]
        policies = read_policies(Path(context.env.get("LAMELLA_DOM0_ROOT") or "/"))
        owner = partial(owner_of, admin, machine=context.host.machine)
        rows = RestorePlanner(inventory, others, wishes, owner, policies).rows()
        for row in rows:
            _tell(context, row)
        if args.dry_run:
            context.out.document({"dry_run": True, "qubes": [_planned(row) for row in rows]})
            return 0
        over = [row for row in rows if row.action == "overwrite"]
        if over:
            names = ", ".join(row.name for row in over)
            size = sum(one.snapshot.added.size for row in over for one in row.saved.volumes.values())
            kept = "Volumes that keep revisions keep their old state as a revision."
            context.confirm(f"Will overwrite {names} with {shown_bytes(size)} of volumes. {kept}")
        _grant(context, rows)
        results = _execute(context, repository, admin, rows, wishes)
        laid_out = [line for one in dom0 for line in _lay_out(context, repository, one.volumes.get("config"))]
    return _report(context, results, laid_out)


def _decoding(context: Context, repository: Repository) -> AbstractContextManager[None]:
    """Where the backup is opened and decoded."""
    if not (context.args.paranoid or context.args.inside):
        return nullcontext()
    from lamella.cli.disposables import decoding

    return decoding(context, repository)


def _wishes(args: argparse.Namespace) -> RestoreWishes:
    if args.overwrite + args.rename_conflicting + args.skip_conflicting > 1:
        raise UsageError("--overwrite, --rename-conflicting and --skip-conflicting exclude each other")
    return RestoreWishes(
        overwrite=args.overwrite,
        rename_conflicting=args.rename_conflicting,
        skip_conflicting=args.skip_conflicting,
        ignore_missing=args.ignore_missing,
        skip_broken=args.skip_broken,
        data=not args.only_settings,
        settings=not args.only_data,
        exact=args.exact,
        powers=args.grant_powers,
        trust_local=args.trust_local,
    )


def _tell(context: Context, row: QubeRestore) -> None:
    show = context.out.line if context.args.dry_run else context.out.say
    show(row.line())
    for one in row.saved.volumes.values() if row.action != "skip" else ():
        if one.snapshot.added.consistency == Consistency.CHANGED:
            from lamella.cli.chosen import warn_of_no_moment  # rare

            warn_of_no_moment(context, one)
    for power in row.powers:
        show(f"    {power.line()}" + (": only with --grant-powers" if power in row.withheld else ""))


def _grant(context: Context, rows: Sequence[QubeRestore]) -> None:
    """Ask a person for the consent that powers need; nobody else gives it, and --yes does not."""
    if context.asks and any(row.withheld for row in rows):
        from lamella.cli.terminal import confirm

        if confirm("Policies of this system name some of these settings. Set them, too?"):
            for row in rows:
                row.withheld = []


def _planned(row: QubeRestore) -> dict[str, object]:
    return {
        "qube": row.saved.name,
        "name": row.name,
        "action": str(row.action),
        "class": row.settings.klass,
        "snapshot": row.saved.snapshot,
        "volumes": {name: one.snapshot.added.size for name, one in row.saved.volumes.items()},
        "notes": row.notes,
        "powers": [
            {"kind": one.kind, "value": one.value, "named_in": one.named, "given": one not in row.withheld}
            for one in row.powers
        ],
    }


def _execute(
    context: Context, repository: Repository, admin: Admin, rows: Sequence[QubeRestore], wishes: RestoreWishes
) -> list[QubeResult]:
    keep_freed_memory()
    count = context.args.workers or context.config.backup.workers
    return QubesRestore(repository, admin, rows, wishes).execute(context.out.report, count)


def _lay_out(context: Context, repository: Repository, selected: object) -> list[str]:
    """dom0's files into the folder named; returns how the system differs from them."""
    from lamella.qubes.dom0 import differences, lay_out  # only where dom0's files are wanted

    target: Path = context.args.dom0_to
    if not isinstance(selected, Selected):
        raise NothingMatched("no files of dom0 are in this snapshot", obj="dom0")
    if target.exists():
        raise UsageError(f"{target} exists already", obj=str(target), hint="name a new folder")
    archive = context.host.cache_dir / "dom0-restored.tar"
    archive.unlink(missing_ok=True)
    make_private(archive.parent)
    try:
        plan_restore(repository, selected, archive, RestoreOptions()).execute(context.out.report)
        lay_out(archive, target)
    finally:
        archive.unlink(missing_ok=True)
    return differences(target, Path(context.env.get("LAMELLA_DOM0_ROOT") or "/"))


def _report(context: Context, results: list[QubeResult], laid_out: list[str]) -> int:
    out = context.out
    for result in results:
        done = f"{result.result}, {shown_bytes(result.bytes_written)} written" if result.volumes else result.result
        out.line(f"{result.qube}: {done}" + (f": {result.error}" if result.error else ""))
        for note in result.notes:
            out.say(f"{result.qube}: {note}")
    for line in laid_out:
        out.line(f"dom0: {line}")
    out.document({"qubes": [asdict(result) for result in results], "dom0": laid_out})
    return INCOMPLETE if any(result.result == "failed" for result in results) else 0
