"""`lamella backup`: back up volumes into one snapshot."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.base.errors import LamellaError, NothingMatched, SourceError, UsageError
from lamella.cli.arguments import SECRETS, add_dry_run
from lamella.cli.context import Context
from lamella.cli.destination import DestinationContext
from lamella.cli.files import read_file
from lamella.cli.output import INCOMPLETE, Output
from lamella.cli.values import chunk_log2, rate, seconds, shown_bytes, shown_seconds, size, workers
from lamella.format.encoder import check_setting
from lamella.operations.backup.change_map import MAX_FILE, ChangeMap, read_map
from lamella.operations.backup.pacing import Pace
from lamella.operations.backup.plan import MAX_DOCUMENT, PlanRow
from lamella.operations.backup.story import (
    BackupOptions,
    BackupPlan,
    BackupResult,
    FailedRequest,
    Request,
    VolumeResult,
    plan_backup,
)
from lamella.repository.repository import Repository
from lamella.run.allocator import keep_freed_memory
from lamella.run.spawn import shell_words
from lamella.sources.registry import name_from, split_name

if TYPE_CHECKING:
    from lamella.cli.commands.prune import Pruned


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = SECRETS
    parser.add_argument(
        "source",
        nargs="+",
        metavar="[NAME=]SOURCE",
        help="path of an image file or block device, or lvm:VG/LV; NAME is what the volume is called in the repository",
    )
    parser.add_argument(
        "--document",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="keep FILE with the snapshot (at most 1 MiB each, 16 MiB together)",
    )
    parser.add_argument(
        "--domain",
        metavar="NAME",
        help="share chunks and keys with the volumes of this domain (first backup of a volume only)",
    )
    parser.add_argument(
        "--chunk-size",
        type=chunk_log2,
        metavar="SIZE",
        help="64K to 4M, a power of two (first backup of a volume only)",
    )
    parser.add_argument(
        "--compression", metavar="HOW", type=_compression, help="auto, 1 to 19 (zstd), off, or portable (zlib)"
    )
    parser.add_argument(
        "--adopt", action="store_true", help="go on with a volume of that name although it came from another source"
    )
    parser.add_argument("--source-driver", metavar="DRIVER", help="read all sources with this driver")
    parser.add_argument(
        "--check-compression",
        choices=("all", "sample"),
        default="sample",
        help="decode what was compressed and compare, before it is stored (default: sample)",
    )
    parser.add_argument(
        "--reread",
        type=size,
        default=0,
        metavar="SIZE",
        help="also re-read this much of what the change map calls unchanged, the longest unseen first",
    )
    parser.add_argument(
        "--before", metavar="COMMAND", help="run before the sources are frozen; if it fails, nothing is"
    )
    parser.add_argument("--after", metavar="COMMAND", help="run after the sources are frozen, whatever happened")
    parser.add_argument(
        "--hook-timeout", type=seconds, metavar="SECONDS", help="let each of these commands run so long (default 60)"
    )
    parser.add_argument("--changes-from", metavar="FILE", help="read only what this change map of another tool names")
    parser.add_argument("--changes-base", metavar="SNAPSHOT", help="the snapshot that the change map starts from")
    parser.add_argument(
        "--read-rate",
        type=rate,
        metavar="RATE",
        help="read at most so many bytes a second, such as 50M, of the sources",
    )
    # For those who try out what a broken link costs: how much is read between two points to go on from.
    parser.add_argument("--point-every", type=size, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=workers, metavar="N", help="threads (default: as many as suit the machine)")
    parser.add_argument(
        "--prune",
        action="store_true",
        help="afterwards remove the snapshots of these volumes that no rule of the configuration keeps",
    )
    add_dry_run(parser)


def _compression(text: str) -> str:
    try:
        return check_setting(text)
    except LamellaError as error:
        raise argparse.ArgumentTypeError(f"{error.message}: {error.hint}") from error


def run(context: Context) -> int:
    """Do it."""
    keep_freed_memory()
    options = _options(context)
    requests = _requests(context)
    places = context.destinations
    if len(places) == 1:
        return _run_to_one(DestinationContext(context, places[0], {}), requests, options)
    from lamella.cli import several_destinations

    return several_destinations.run(context, places, requests, options)


def _run_to_one(context: Context, requests: list[Request | FailedRequest], options: BackupOptions) -> int:
    args, out = context.args, context.out
    with context.sound_repository(read_only=args.dry_run) as repository:
        plan = planned(context, repository, requests, options)
        if args.dry_run:
            return show_plan(context, plan)
        say_plan(out, plan)
        result = plan.execute(out.report)
    pruned = pruned_after(context, result)
    code = report(context, result, None if pruned is None else {"prune": pruned.document})
    return code or (0 if pruned is None else pruned.exit_code)


def planned(
    context: Context, repository: Repository, requests: list[Request | FailedRequest], options: BackupOptions
) -> BackupPlan:
    """The plan for one repository. What would fail at its end fails here."""
    if context.args.prune:
        from lamella.cli.commands.prune import check_after_backup  # most backups prune nothing

        check_after_backup(context, repository)
    return plan_backup(repository, requests, options)


def say_plan(out: Output, plan: BackupPlan) -> None:
    """Say beforehand what is going to be done."""
    for row in plan.rows:
        out.say(_planned(row))
    for failed in plan.failed:
        out.say(f"{failed.name}: will be missing, {failed.message}")
    out.expect("backup", sum(row.source_bytes for row in plan.rows))


def pruned_after(context: Context, result: BackupResult) -> Pruned | None:
    """Remove what no rule keeps of the volumes that were saved, if that is wanted."""
    saved = [row.volume for row in result.volumes if row.result == "complete"]
    if not (context.args.prune and saved):
        return None
    from lamella.cli.commands.prune import prune_after_backup  # most backups prune nothing

    return prune_after_backup(context, saved)


def _options(context: Context) -> BackupOptions:
    args, configured = context.args, context.config.backup
    return BackupOptions(
        compression=args.compression or configured.compression,
        chunk_log2=args.chunk_size,
        domain=args.domain,
        adopt=args.adopt,
        documents=_documents(args.document),
        workers=args.workers or configured.workers,
        check_all=args.check_compression == "all",
        lock_wait=args.lock_wait,
        reread_bytes=args.reread,
        changes=_changes(args),
        changes_base=args.changes_base or "",
        before=_command(args.before or configured.before),
        after=_command(args.after or configured.after),
        hook_seconds=args.hook_timeout or configured.hook_seconds,
        read_rate=args.read_rate or configured.read_rate,
        pace=Pace() if args.point_every is None else Pace(bytes=args.point_every, least_bytes=1),
    )


def _command(text: str | None) -> tuple[str, ...]:
    return tuple(shell_words(text)) if text else ()


def _changes(args: argparse.Namespace) -> ChangeMap | None:
    if (args.changes_from is None) != (args.changes_base is None):
        raise UsageError("--changes-from and --changes-base go together")
    if args.changes_from is None:
        return None
    return read_map(read_file(args.changes_from, MAX_FILE), args.changes_from)


def _documents(texts: list[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise UsageError(f"not a document: {text!r}", hint="write --document NAME=FILE")
        if name in found:
            raise UsageError(f"two documents are called {name}", obj=name)
        found[name] = read_file(path, MAX_DOCUMENT)
    return found


def _requests(context: Context) -> list[Request | FailedRequest]:
    """What is to be backed up. Raises NothingMatched or LamellaError when not one source can be opened."""
    requests: list[Request | FailedRequest] = []
    errors: list[SourceError] = []
    missing = True
    for text in context.args.source:
        name, place = split_name(text)
        try:
            source = context.source(place, context.args.source_driver)
        except SourceError as error:
            errors.append(error)
            missing = missing and not Path(place).exists()
            requests.append(FailedRequest(name or name_from(Path(place).stem), error.message))
        else:
            requests.append(Request(name, source))
    if len(errors) == len(requests):
        kind = NothingMatched if missing else LamellaError
        more = f" (and {len(errors) - 1} more like it)" if len(errors) > 1 else ""
        raise kind(errors[0].message + more, obj=errors[0].obj, hint=errors[0].hint) from errors[0]
    return requests


def _planned(row: PlanRow) -> str:
    text = f"{row.volume}: {row.mode}, {row.reason}" if row.reason else f"{row.volume}: {row.mode} ({row.driver})"
    if row.resume is not None:
        done = min(row.resume.done << row.resume.chunk_log2, row.resume.size)
        text += f"; goes on after {shown_bytes(done)} of {shown_bytes(row.resume.size)}"
    return text


def show_plan(context: Context, plan: BackupPlan) -> int:
    """Say what would be done."""
    context.out.document(plan_shown(context.out, plan))
    return INCOMPLETE if plan.failed else 0


def plan_shown(out: Output, plan: BackupPlan) -> dict[str, object]:
    """The document of a plan, which is also said in lines."""
    for row in plan.rows:
        out.line(f"would be backed up: {_planned(row)}")
    for failed in plan.failed:
        out.line(f"{failed.name}: would fail: {failed.message}")
    rows = [
        {
            "volume": row.volume,
            "driver": row.driver,
            "mode": row.mode,
            "reason": row.reason,
            "source_bytes": row.source_bytes,
            "result": "planned",
        }
        for row in plan.rows
    ]
    lost = [{"volume": one.name, "result": "failed", "error": one.message} for one in plan.failed]
    return {"dry_run": True, "volumes": [*rows, *lost]}


def report(context: Context, result: BackupResult, further: Mapping[str, object] | None = None) -> int:
    """Say what was done; `further` are more keys of the document."""
    context.out.document({**result_shown(context.out, result), **(further or {})})
    return 0 if result.complete else INCOMPLETE


def result_shown(out: Output, result: BackupResult) -> dict[str, object]:
    """The document of a result, which is also said in lines."""
    for row in result.volumes:
        if row.result != "complete":
            out.warn(f"{row.volume} was not saved: {row.error}")
        else:
            figures = f"{shown_bytes(row.source_bytes)}, read {shown_bytes(row.read_bytes)}"
            figures += f" ({shown_bytes(row.sampled_bytes)} as a sample)" if row.sampled_bytes else ""
            figures += f", {shown_bytes(row.resumed_bytes)} from the run before" if row.resumed_bytes else ""
            changed = f"{row.changed_chunks} chunks changed, stored {shown_bytes(row.stored_bytes)}"
            out.line(f"{row.volume}: {row.mode}: {figures}, {changed}")
    written = f"stored {shown_bytes(result.stored_bytes)} and {shown_bytes(result.metadata_bytes)} of metadata"
    state = "complete" if result.complete else "INCOMPLETE"
    if result.snapshot:
        out.line(f"snapshot {result.snapshot}: {state}, {written} in {shown_seconds(result.seconds)}")
    else:
        out.line("nothing was saved, so there is no snapshot")
    out.line(f"fingerprint {result.fingerprint}")
    return {
        "snapshot": result.snapshot,
        "result": "complete" if result.complete else "incomplete",
        "seconds": result.seconds,
        "metadata_bytes": result.metadata_bytes,
        "stored_bytes": result.stored_bytes,
        "fingerprint": result.fingerprint,
        "warnings": result.warnings,
        "volumes": [_row(row) for row in result.volumes],
    }


def _row(row: VolumeResult) -> dict[str, object]:
    return {name: getattr(row, name) for name in VolumeResult.__slots__}
