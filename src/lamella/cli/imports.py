"""The common part of `lamella import`: choosing, listing, the plan, and the result."""

from __future__ import annotations

import argparse

from lamella.base.clock import iso
from lamella.base.events import Reporter
from lamella.cli.arguments import add_dry_run, lazy
from lamella.cli.backup_report import reporting
from lamella.cli.context import Context
from lamella.cli.local_time import shown_time
from lamella.cli.output import INCOMPLETE, Output
from lamella.cli.shown import shown_bytes
from lamella.imports.choosing import Choice, chosen
from lamella.imports.history import ForeignHistory, ForeignSession
from lamella.imports.importing import ImportOptions, ImportResult, ImportRow, ImportState, plan_import
from lamella.operations.backup.story import BackupOptions
from lamella.run.allocator import keep_freed_memory

NOTE = """\
Every session of the archive becomes a snapshot, the oldest first, and only what is new is stored. The times that the
archive claims are shown, and select snapshots (VOLUME@DATE). The rules of prune do not believe them: what is imported
is pinned, unless --trust-times makes these times the snapshots' own. A second run imports what is new.

The command ends with 3 if a session or a volume could not be read or was left out (the others are imported), with 4 if
the archive has nothing of that name, with 10 if there is no archive, and with 12 if its passphrase or key is wrong."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every kind of archive takes, after its own arguments."""
    parser.add_argument(
        "volume",
        nargs="*",
        default=[],
        metavar="[NAME=]VOLUME",
        help="only this volume of the archive, or those that match a pattern; NAME is what it is called here",
    )
    parser.add_argument(
        "--session", action="append", default=[], metavar="PATTERN", help="only the sessions that match PATTERN"
    )
    parser.add_argument("--list", action="store_true", help="show what the archive holds, and open no repository")
    parser.add_argument(
        "--trust-times",
        action="store_true",
        help="make the times that the archive claims the times of the snapshots, by which prune counts",
    )
    parser.add_argument(
        "--domain", metavar="NAME", help="deduplicate across all volumes of this domain (new volumes only)"
    )
    parser.add_argument(
        "--chunk-size", type=lazy("chunk_log2"), metavar="SIZE", help="64K to 4M, a power of two (new volumes only)"
    )
    parser.add_argument(
        "--compression", metavar="HOW", type=lazy("compression"), help="auto, 1 to 19 (zstd), off, or portable (zlib)"
    )
    parser.add_argument(
        "--workers", type=lazy("workers"), metavar="N", help="number of threads (default: suited to this machine)"
    )
    add_dry_run(parser)


def run_import(context: Context, history: ForeignHistory) -> int:
    """List a history, or import what the command line chose of it."""
    args, out = context.args, context.out
    for warning in (*history.warnings, *history.lacks):
        out.warn(warning)
    part, names = chosen(history, Choice(tuple(args.volume), tuple(args.session)))
    if args.list:
        return _listed(out, part)
    keep_freed_memory()
    with context.sound_repository(read_only=args.dry_run) as repository:
        plan = plan_import(repository, part, names, _options(context))
        result = (
            ImportResult(plan.rows, part.lacks) if args.dry_run else plan.execute(lambda session: _began(out, session))
        )
    return _reported(context, result)


def _options(context: Context) -> ImportOptions:
    args, configured = context.args, context.config.backup
    backup = BackupOptions(
        compression=args.compression or configured.compression,
        chunk_log2=args.chunk_size,
        domain=args.domain,
        workers=args.workers or configured.workers,
        check_all=configured.check_compression == "all",
        lock_wait=args.lock_wait,
    )
    return ImportOptions(backup, args.trust_times)


def _began(out: Output, session: ForeignSession) -> Reporter:
    of = "" if session.claimed_ms is None else f", of {shown_time(iso(session.claimed_ms))}"
    out.line(f"session {session.id}{of}:")
    return reporting(out)


def _listed(out: Output, history: ForeignHistory) -> int:
    rows = []
    for session in history.sessions:
        time = "" if session.claimed_ms is None else shown_time(iso(session.claimed_ms))
        sizes = [
            volume.name if volume.size is None else f"{volume.name} ({shown_bytes(volume.size)})"
            for volume in session.volumes
        ]
        rows.append((session.id, time, ", ".join(sizes), " ".join(session.tags)))
    out.table([("SESSION", "LOCAL TIME", "VOLUMES", "TAGS"), *rows])
    out.document(
        {"kind": history.kind, "archive": history.archive, "sessions": [_document(one) for one in history.sessions]}
    )
    return INCOMPLETE if history.lacks else 0


def _document(session: ForeignSession) -> dict[str, object]:
    return {
        "session": session.id,
        "claimed_time": _claimed(session),
        "tags": list(session.tags),
        "volumes": [{"volume": volume.name, "size": volume.size} for volume in session.volumes],
    }


def _claimed(session: ForeignSession) -> str:
    return "" if session.claimed_ms is None else iso(session.claimed_ms)


_PLANNED = {
    ImportState.WANTED: "would be imported",
    ImportState.PRESENT: "is here already",
    ImportState.LATE: "would be left out: a later state is here already, and this one would be taken for the latest",
}
_DONE = {
    ImportState.PRESENT: "is here already",
    ImportState.LATE: "LEFT OUT: a later state is here already, and this one would be taken for the latest",
    ImportState.FAILED: "NOT IMPORTED",
}


def _reported(context: Context, result: ImportResult) -> int:
    out, args = context.out, context.args
    words = _PLANNED if args.dry_run else _DONE
    for row in result.rows:
        quiet = row.standing is ImportState.PRESENT and not (args.verbose or args.dry_run)
        if row.standing in words and not quiet:
            out.line(
                f"{row.volume}, session {row.session.id}: {': '.join(filter(None, (words[row.standing], row.error)))}"
            )
    counts = {one: sum(row.standing is one for row in result.rows) for one in ImportState}
    verb = "to import" if args.dry_run else "imported"
    said = f"{counts[ImportState.WANTED]} {verb}, {counts[ImportState.PRESENT]} here already"
    said += f", {counts[ImportState.LATE]} left out" * bool(counts[ImportState.LATE])
    said += f", {counts[ImportState.FAILED]} FAILED" * bool(counts[ImportState.FAILED])
    if not args.dry_run:
        read = sum(row.read_bytes for row in result.rows)
        said += f"; read {shown_bytes(read)}, stored {shown_bytes(result.stored_bytes + result.metadata_bytes)}"
    out.line(said)
    if counts[ImportState.WANTED] and not args.trust_times and not args.dry_run:
        out.say("what was imported is pinned: no rule of prune removes it (see: lamella tag --unpin)")
    out.document(
        {
            "dry_run": args.dry_run,
            "result": "complete" if result.complete else "incomplete",
            "stored_bytes": result.stored_bytes,
            "metadata_bytes": result.metadata_bytes,
            "sessions": [_row(row, args.dry_run) for row in result.rows],
        }
    )
    return 0 if result.complete else INCOMPLETE


def _row(row: ImportRow, dry_run: bool) -> dict[str, object]:
    planned = dry_run and row.standing is ImportState.WANTED
    return {
        "session": row.session.id,
        "claimed_time": _claimed(row.session),
        "volume": row.volume,
        "snapshot": row.snapshot,
        "result": "planned" if planned else row.standing.value,
        "error": row.error,
        "read_bytes": row.read_bytes,
        "stored_bytes": row.stored_bytes,
        "sampled_bytes": row.sampled_bytes,
    }
