"""`lamella qubes`: back up and restore whole qubes of Qubes OS, and set up the qube that stores them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.base.errors import NothingMatched, UsageError
from lamella.cli.arguments import SECRETS, add_actions, add_dry_run, add_yes
from lamella.cli.context import Context
from lamella.cli.output import INCOMPLETE
from lamella.cli.shown import shown_bytes
from lamella.cli.values import workers

if TYPE_CHECKING:
    from lamella.qubes.admin import Admin
    from lamella.qubes.backup import QubesOptions
    from lamella.qubes.restore import QubeResult
    from lamella.qubes.restore_plan import QubeRestore, RestoreWishes
    from lamella.repository.repository import Repository


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions below the command."""
    parser.epilog = SECRETS
    add = add_actions(parser, "action")
    _backup_arguments(add("backup", "back up qubes: their settings, and every volume that outlives a shutdown"))
    _restore_arguments(add("restore", "bring qubes back: create or overwrite them, data and settings"))
    add("list", "show the qubes of this system and of the repository")
    _storage_arguments(add("setup-storage", "print, or install, what a qube needs to store backups"))


def _backup_arguments(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument("--workers", type=workers, metavar="N", help="threads (default: as many as suit the machine)")
    add_dry_run(parser)


def _restore_arguments(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument("--exact", action="store_true", help="also remove settings that the backup does not contain")
    parser.add_argument(
        "--dom0-to", type=Path, metavar="FOLDER", help="write the saved files of dom0 into this new folder"
    )
    parser.add_argument("--workers", type=workers, metavar="N", help="threads (default: as many as suit the machine)")
    add_yes(parser)
    add_dry_run(parser)


def _storage_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("storage_qube", metavar="QUBE", help="the qube that stores the backups; it needs no trust")
    parser.add_argument("--name", default="main", metavar="NAME", help="name of the destination (default: main)")
    parser.add_argument(
        "--place",
        default="/home/user/lamella",
        metavar="PLACE",
        help="a directory in that qube, or a URL it serves",
    )
    parser.add_argument("--append-only", action="store_true", help="the service refuses to delete or replace anything")
    parser.add_argument("--quota", metavar="SIZE", help="store at most SIZE bytes")
    parser.add_argument("--install", action="store_true", help="write the files in the qube, as root, through qvm-run")
    add_yes(parser)
    add_dry_run(parser)


def run(context: Context) -> int:
    """Do it."""
    actions = {"backup": _backup, "restore": _restore, "list": _list, "setup-storage": _setup_storage}
    return actions[context.args.action](context)


def _admin(context: Context) -> Admin:
    """qubesd. Raises UsageError where there is none."""
    from lamella.qubes.admin import INTERNAL_SOCKET, SOCKET, Admin, require_qubesd

    place = Path(context.env.get("LAMELLA_QUBESD_SOCKET") or SOCKET)
    require_qubesd(place)
    internal = place.with_name("qubesd.internal.sock") if place != SOCKET else INTERNAL_SOCKET
    return Admin(place, internal)


# -- backup -----------------------------------------------------------------------------------------------------------


def _backup(context: Context) -> int:
    from lamella.cli.backup_report import plan_shown, result_shown
    from lamella.cli.output import INCOMPLETE
    from lamella.qubes.backup import plan_qubes
    from lamella.qubes.inventory import Inventory, QubeChoice, chosen
    from lamella.qubes.storage import kept_running
    from lamella.run.allocator import keep_freed_memory

    args, out = context.args, context.out
    admin = _admin(context)
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
    from lamella.operations.backup.story import BackupOptions
    from lamella.qubes.backup import QubesOptions

    args, configured = context.args, context.config.backup
    backup = BackupOptions(
        compression=configured.compression, workers=args.workers or configured.workers, lock_wait=args.lock_wait
    )
    root = Path(context.env.get("LAMELLA_DOM0_ROOT") or "/")
    return QubesOptions(not args.committed, args.pause, not args.no_template_roots, root, backup)


# -- restore ----------------------------------------------------------------------------------------------------------


def _restore(context: Context) -> int:
    from lamella.qubes.archive import read_snapshot, saved_qubes
    from lamella.qubes.inventory import Inventory
    from lamella.qubes.names import DOM0, owner_of
    from lamella.qubes.powers import read_policies
    from lamella.qubes.restore_plan import RestorePlanner
    from lamella.qubes.storage import kept_running

    args = context.args
    admin = _admin(context)
    inventory = Inventory(admin)
    with kept_running(admin, context.place, context.out.report), context.sound_repository() as repository:
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
            kept = "The old state of each volume stays as a revision."
            context.confirm(f"Will overwrite {names} with {shown_bytes(size)} of volumes. {kept}")
        _grant(context, rows)
        results = _execute(context, repository, admin, rows, wishes)
        laid_out = [line for one in dom0 for line in _lay_out(context, repository, one.volumes.get("config"))]
    return _report(context, results, laid_out)


def _wishes(args: argparse.Namespace) -> RestoreWishes:
    from lamella.qubes.restore_plan import RestoreWishes

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
    )


def _tell(context: Context, row: QubeRestore) -> None:
    show = context.out.line if context.args.dry_run else context.out.say
    show(row.line())
    for power in row.powers:
        show(f"    {power.line()}" + (": only with --grant-powers" if power in row.withheld else ""))


def _grant(context: Context, rows: Sequence[QubeRestore]) -> None:
    """Ask a person for the consent that powers need; nobody else gives it, and --yes does not."""
    if context.asks and any(row.withheld for row in rows):
        from lamella.cli.terminal import confirm

        if confirm("Policies of this system name some of these settings. Will set them, too?"):
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
    from lamella.qubes.restore import QubesRestore
    from lamella.run.allocator import keep_freed_memory

    keep_freed_memory()
    count = context.args.workers or context.config.backup.workers
    return QubesRestore(repository, admin, rows, wishes).execute(context.out.report, count)


def _lay_out(context: Context, repository: Repository, selected: object) -> list[str]:
    """dom0's files into the folder named; returns how the system differs from them."""
    from lamella.base.durable import make_private
    from lamella.operations.restore.restore import RestoreOptions, plan_restore
    from lamella.operations.shared.selection import Selected
    from lamella.qubes.dom0 import differences, lay_out

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


# -- list -------------------------------------------------------------------------------------------------------------


def _list(context: Context) -> int:
    from lamella.qubes.archive import saved_qubes
    from lamella.qubes.inventory import Inventory
    from lamella.qubes.names import owner_of
    from lamella.qubes.settings import SETTINGS

    admin = _admin(context)
    present = Inventory(admin).qubes
    by_owner = {owner_of(admin, qube, context.host.machine): qube for qube in present.values()}
    with context.repository() as repository:
        rows: list[dict[str, Any]] = []
        for qube in saved_qubes(repository):
            settings = qube.volumes.get(SETTINGS)
            newest = settings.snapshots[-1].name if settings is not None and settings.snapshots else ""
            here = by_owner.pop(qube.owner, None)
            rows.append(
                {
                    "qube": qube.name,
                    "uuid": qube.owner,
                    "latest": newest,
                    "volumes": sorted(qube.volumes),
                    "here": "" if here is None else here.name,
                    "state": "" if here is None else here.state,
                }
            )
        code = context.warn_of_problems(repository)
    rows += [
        {"qube": one.name, "uuid": one.uuid, "latest": "", "volumes": [], "here": one.name, "state": one.state}
        for one in sorted(by_owner.values(), key=lambda qube: qube.name)
        if one.name != "dom0"
    ]
    heading = ("QUBE", "LAST SAVED", "VOLUMES", "HERE AS", "STATE")
    cells = [
        (row["qube"], row["latest"] or "never", ", ".join(row["volumes"]), row["here"] or "not here", row["state"])
        for row in rows
    ]
    context.out.table([heading, *cells])
    context.out.document({"qubes": rows})
    return code


# -- storage qube -----------------------------------------------------------------------------------------------------


def _setup_storage(context: Context) -> int:
    from lamella.qubes.inventory import Inventory
    from lamella.qubes.storage_qube import check_storage, example_policy, install, storage_files

    args, out = context.args, context.out
    admin = _admin(context)
    qube = check_storage(admin, Inventory(admin), args.storage_qube, out.report)
    options = [*(["--append-only"] if args.append_only else []), *([f"--quota={args.quota}"] if args.quota else [])]
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
