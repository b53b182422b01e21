"""`lamella qubes backup`: whole qubes, their settings and volumes."""

from __future__ import annotations

from pathlib import Path

from lamella.cli.backup_report import plan_shown, result_shown
from lamella.cli.context import Context
from lamella.cli.output import INCOMPLETE
from lamella.operations.backup.story import BackupOptions
from lamella.qubes.admin import Admin
from lamella.qubes.backup import QubesOptions, plan_qubes
from lamella.qubes.inventory import Inventory, QubeChoice, chosen
from lamella.qubes.storage import kept_running
from lamella.run.allocator import keep_freed_memory


def backup(context: Context, admin: Admin) -> int:
    """Do it."""
    args, out = context.args, context.out
    keep_freed_memory()
    inventory = Inventory(admin)
    choice = QubeChoice(tuple(args.qube), tuple(args.exclude), args.all, tuple(args.tag), tuple(args.label))
    qubes = chosen(admin, inventory, choice)
    with kept_running(admin, context.place, out.report), context.sound_repository(read_only=args.dry_run) as repository:
        plan = plan_qubes(repository, admin, inventory, qubes, _options(context))
        for left_out in plan.excluded:
            out.say(f"{left_out}: left out, as you asked")
        if args.dry_run:
            out.document(plan_shown(out, plan.backup))
            return INCOMPLETE if plan.backup.failed else 0
        result = plan.execute(out.report)
    names = [qube.name for qube in plan.qubes]
    out.document({**result_shown(out, result), "qubes": names, "excluded": plan.excluded})
    return 0 if result.complete else INCOMPLETE


def _options(context: Context) -> QubesOptions:
    args, configured = context.args, context.config.backup
    backup = BackupOptions(
        compression=configured.compression, workers=args.workers or configured.workers, lock_wait=args.lock_wait
    )
    root = Path(context.env.get("LAMELLA_DOM0_ROOT") or "/")
    return QubesOptions(not args.committed, args.pause, not args.no_template_roots, root, backup)
