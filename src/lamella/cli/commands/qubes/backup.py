"""`lamella qubes backup`: settings and volumes of qubes as one snapshot."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from lamella.base.errors import UsageError
from lamella.cli.arguments import add_dry_run, lazy
from lamella.cli.backup_report import reporting, result_shown
from lamella.cli.commands.qubes.qubesd import admin_of
from lamella.cli.context import Context
from lamella.cli.output import INCOMPLETE
from lamella.operations.backup.story import BackupOptions
from lamella.qubes.backup import QubesOptions, QubesPlan, plan_qubes
from lamella.qubes.inventory import ADMIN_CLASS, Inventory, QubeChoice, chosen
from lamella.qubes.storage import kept_running
from lamella.repository.repository import Repository
from lamella.run.allocator import keep_freed_memory

_workers = lazy("workers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's own arguments."""
    parser.add_argument(
        "qube", nargs="*", metavar="QUBE", help="back up this qube (default: all qubes that are marked for backups)"
    )
    parser.add_argument("-x", "--exclude", action="append", default=[], metavar="QUBE", help="leave this qube out")
    parser.add_argument("--all", action="store_true", help="back up every qube, dom0 included")
    parser.add_argument("--tag", action="append", default=[], metavar="TAG", help="back up the qubes with this tag")
    parser.add_argument(
        "--label", action="append", default=[], metavar="LABEL", help="back up the qubes with this label"
    )
    state = parser.add_mutually_exclusive_group()
    state.add_argument("--live", action="store_true", help="back up the present state of running qubes (default)")
    state.add_argument(
        "--committed", action="store_true", help="back up the state of running qubes at their last shutdown"
    )
    parser.add_argument(
        "--pause", action="store_true", help="pause running qubes while the backup makes its checkpoints"
    )
    parser.add_argument("--no-template-roots", action="store_true", help="leave out the root volumes of templates")
    parser.add_argument(
        "--scrub",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave files out that match PATTERN inside the volumes, or what @caches stands for: a disposable without a"
        " network removes them from a clone of each volume, never from the volume",
    )
    parser.add_argument(
        "--in",
        dest="inside",
        default="",
        metavar="QUBE",
        help="make these disposables from QUBE (default: the system's own for disposables)",
    )
    parser.add_argument(
        "--workers", type=lazy("workers"), metavar="N", help="number of threads (default: suited to this machine)"
    )
    add_dry_run(parser)


def run(context: Context) -> int:
    """Do it."""
    args, out = context.args, context.out
    admin = admin_of(context)
    keep_freed_memory()
    inventory = Inventory(admin)
    # A qube that is gone must not cost the others their backup; if all are gone it is an error.
    there = [name for name in args.qube if name in inventory.qubes] or args.qube
    excluded = [name for name in args.exclude if name in inventory.qubes]
    choice = QubeChoice(tuple(there), tuple(excluded), args.all, tuple(args.tag), tuple(args.label))
    qubes = chosen(admin, inventory, choice)
    with (
        kept_running(admin, context.place, out.report),
        context.sound_repository(read_only=args.dry_run) as repository,
        ExitStack() as held,
    ):
        gone = [name for name in args.qube if name not in there]
        plan = plan_qubes(repository, admin, inventory, qubes, _options(context, repository, held), gone)
        for name in set(args.exclude) - set(excluded):
            out.warn(f"there is no qube called {name} to leave out")
        for left_out in plan.excluded:
            out.say(f"{left_out}: left out, as you asked")
        _say_what_runs(context, plan)
        states = {qube.name: qube.state for qube in plan.qubes}
        if args.dry_run:
            from lamella.cli.dry_run import plan_shown

            out.document({**plan_shown(out, plan.backup), "states": states})
            return INCOMPLETE if plan.backup.failed else 0
        result = plan.execute(reporting(out))
    names = [qube.name for qube in plan.qubes]
    out.document({**result_shown(out, result), "qubes": names, "states": states, "excluded": plan.excluded})
    return 0 if result.complete else INCOMPLETE


def _say_what_runs(context: Context, plan: QubesPlan) -> None:
    """Whoever relies on a backup of a running qube should have known that it ran."""
    show = context.out.line if context.args.dry_run else context.out.say
    how = "of its last shutdown" if context.args.committed else "of this moment"
    for qube in plan.qubes:
        if qube.running and qube.klass != ADMIN_CLASS:
            show(f"{qube.name} is {qube.state.lower()}: its state {how} is saved")


def _options(context: Context, repository: Repository, held: ExitStack) -> QubesOptions:
    args, configured = context.args, context.config.backup
    backup = BackupOptions(
        compression=configured.compression,
        workers=args.workers or configured.workers,
        lock_wait=args.lock_wait,
        deltas=configured.deltas,
    )
    if scrub := (*args.scrub, *configured.scrub):
        from lamella.cli.scrubbing import qubes_scrubber  # few backups of qubes leave files out

        backup = replace(backup, scrub=held.enter_context(qubes_scrubber(context, repository, scrub)))
    elif args.inside:
        raise UsageError("--in names the qube whose disposables leave files out: it needs --scrub")
    root = Path(context.env.get("LAMELLA_DOM0_ROOT") or "/")
    return QubesOptions(not args.committed, args.pause, not args.no_template_roots, root, backup)
