"""`lamella copy`: a second copy of snapshots in another repository."""

from __future__ import annotations

import argparse

from lamella.base.errors import UsageError
from lamella.cli.actions import add_moved
from lamella.cli.arguments import SECRETS, add_dry_run
from lamella.cli.context import Context
from lamella.cli.destination import SecondContext
from lamella.cli.output import INCOMPLETE
from lamella.cli.shown import shown_bytes, shown_seconds
from lamella.cli.values import compression, workers
from lamella.operations.copy.copy import CopyOptions, CopyPlan, CopyResult, plan_copy
from lamella.operations.copy.plan import CopyRow, State
from lamella.run.allocator import keep_freed_memory

_OWN_SECRETS = """\
The secret of the repository to copy to comes, by the same rules, from one of LAMELLA_TO_PASSPHRASE, _FILE, _COMMAND,
_FD, --to-keyfile, --to-recovery-key-file or LAMELLA_TO_RECOVERY_KEY_FILE, the systemd credential
lamella.to-passphrase. Without any of these it comes from the configuration, and else the command asks at the terminal.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = f"{SECRETS}\n\n{_OWN_SECRETS}"
    parser.add_argument(
        "volume",
        nargs="*",
        default=[],
        metavar="VOLUME[@SNAPSHOT]",
        help="all snapshots of this volume, or only SNAPSHOT (default: everything)",
    )
    parser.add_argument("--to", required=True, metavar="REPO", help="the repository to copy to; it must exist")
    parser.add_argument("--to-keyfile", metavar="FILE", help="open the repository to copy to with this key file")
    parser.add_argument("--to-recovery-key-file", metavar="FILE", help="open it with the recovery key in this file")
    parser.add_argument(
        "--compression", metavar="HOW", type=compression, help="auto, 1 to 19 (zstd), off, or portable (zlib)"
    )
    parser.add_argument(
        "--workers", type=workers, metavar="N", help="number of threads (default: suited to this machine)"
    )
    parser.add_argument(
        "--transfer-last",
        type=_count,
        metavar="N",
        help="of each volume only the newest N snapshots, unless a snapshot is named",
    )
    add_moved(parser, "--mirror", "lamella mirror")
    add_dry_run(parser)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"not a number of snapshots: {text!r}")
    return int(text)


def run(context: Context) -> int:
    """Do it."""
    keep_freed_memory()
    args, out = context.args, context.out
    if not args.to:
        raise UsageError("--to names no repository")
    other = SecondContext(context)
    other.given_secret()
    configured = context.config.backup
    options = CopyOptions(
        args.compression or configured.compression,
        args.workers or configured.workers,
        transfer_last=args.transfer_last,
    )
    with context.sound_repository() as source, other.sound_repository(read_only=args.dry_run) as target:
        plan = plan_copy(source, target, args.volume, options)
        if args.dry_run:
            return _show_plan(context, plan)
        result = plan.execute(out.report)
    return _report(context, result)


def _show_plan(context: Context, plan: CopyPlan) -> int:
    for row in plan.rows:
        context.out.line(_line(row, {State.WANTED: "would be copied", State.FAILED: "would fail"}))
    context.out.document({"dry_run": True, "snapshots": [_row(row) for row in plan.rows]})
    return INCOMPLETE if any(row.state == State.FAILED for row in plan.rows) else 0


_WORDS = {
    State.COPIED: "copied",
    State.PRESENT: "is there already",
    State.REMOVED: "was removed there; name it to copy it again",
    State.FAILED: "NOT COPIED",
    State.WANTED: "not copied",
}


def _line(row: CopyRow, words: dict[State, str]) -> str:
    named = row.destination.name if row.destination is not None else row.selected.volume_name
    into = f" as {named}" if named != row.selected.volume_name else ""
    reason = f": {row.reason}" if row.reason else ""
    return f"{row.selected.text}: {words.get(row.state, _WORDS[row.state])}{into}{reason}"


def _report(context: Context, result: CopyResult) -> int:
    out = context.out
    for row in result.rows:
        if row.state != State.PRESENT or context.args.verbose:
            out.line(_line(row, {}))
    copied, present, failed = (result.count(state) for state in (State.COPIED, State.PRESENT, State.FAILED))
    counts = f"{copied} copied, {present} there already" + (f", {failed} FAILED" if failed else "")
    stored = f"stored {shown_bytes(result.stored_bytes)} and {shown_bytes(result.metadata_bytes)} of metadata"
    out.line(f"{counts}; read {shown_bytes(result.read_bytes)}, {stored} in {shown_seconds(result.seconds)}")
    out.line(f"fingerprint {result.fingerprint}")
    out.document(
        {
            "result": "complete" if result.complete else "incomplete",
            "copied": copied,
            "present": present,
            "failed": failed,
            "read_bytes": result.read_bytes,
            "stored_bytes": result.stored_bytes,
            "metadata_bytes": result.metadata_bytes,
            "seconds": result.seconds,
            "fingerprint": result.fingerprint,
            "warnings": result.warnings,
            "snapshots": [_row(row) for row in result.rows],
        }
    )
    return 0 if result.complete else INCOMPLETE


def _row(row: CopyRow) -> dict[str, object]:
    return {
        "volume": row.selected.volume_name,
        "snapshot": row.snapshot.name,
        "result": row.state.value,
        "reason": row.reason,
        "to_volume": row.destination.name if row.destination is not None else "",
    }
