"""`lamella verify`: prove that snapshots can be restored."""

from __future__ import annotations

import argparse

from lamella.base.clock import iso
from lamella.base.errors import IntegrityError, NothingMatched, SourceError, UsageError
from lamella.cli.amounts import budget, percent
from lamella.cli.arguments import SECRETS
from lamella.cli.context import Context
from lamella.cli.local_time import shown_time
from lamella.cli.shown import shown_bytes, shown_seconds
from lamella.cli.sources import named_source
from lamella.cli.values import workers
from lamella.operations.shared.findings import NOTE, Finding, VerifyResult
from lamella.operations.shared.selection import Selected, select
from lamella.operations.verify.verify import DEFAULT_PERCENT, LEVELS, VerifyOptions, verify
from lamella.repository.repository import Repository
from lamella.run.allocator import keep_freed_memory
from lamella.sources.base import Source

_DEFAULTS = VerifyOptions()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = (
        "levels: structure compares every reference with the listing of the repository; sample also reads a share of\n"
        "the chunks, or with --budget the packs unread for the longest time; full reads every pack of the volumes;\n"
        "restore fetches and compares every byte as a restore does, without a target; source compares with the live\n"
        "source, and reports differences, which are no damage. The repository records every place that does not open\n"
        "for its other hosts, and every level but structure reads these places again. `lamella list` shows a verdict\n"
        "for each volume: damage, until a verification that covers the damaged place finds none; else the deepest\n"
        "verification.\n\n"
    ) + SECRETS
    parser.add_argument(
        "volume",
        nargs="*",
        metavar="VOLUME[@SNAPSHOT]",
        help="a volume's latest snapshot, or this one (default: all snapshots)",
    )
    parser.add_argument(
        "--level", choices=LEVELS, default=_DEFAULTS.level, help=f"how thorough (default: {_DEFAULTS.level})"
    )
    parser.add_argument(
        "--percent",
        type=percent,
        metavar="N",
        help=f"share of the chunks to read at level sample (default: {DEFAULT_PERCENT:g})",
    )
    parser.add_argument(
        "--budget",
        type=budget,
        metavar="SIZE",
        help="at level sample read SIZE bytes of packs instead, those unread for the longest time first: repeated runs "
        "read everything in turn",
    )
    parser.add_argument(
        "--new-packs",
        action="store_true",
        help="at level full read only the packs that no verification on this host read to the end before",
    )
    parser.add_argument(
        "--source",
        metavar="SOURCE",
        help="compare with this source at level source (default: where the volume came from)",
    )
    parser.add_argument(
        "--against",
        metavar="FILE",
        help="compare every byte with FILE, such as what another tool restored; any difference ends with 20",
    )
    parser.add_argument(
        "--workers", type=workers, metavar="N", help="number of threads (default: suited to this machine)"
    )


def run(context: Context) -> int:
    """Verify, and print the findings."""
    keep_freed_memory()
    args, out = context.args, context.out
    options = _options(context)
    with context.repository(read_only=False) as repository:
        selected = _selected(repository, args.volume, options.source)
        result = verify(repository, selected, options, out.report)
        code = context.warn_of_problems(repository)
        problems = [problem.message for problem in repository.problems]
    # Of a volume without data every level but a sample looks at everything.
    _print(context, selected, result, checked=options.level != "sample" or result.checked_chunks > 0)
    _say_coverage(context, result)
    out.document(
        {
            "level": options.level,
            "snapshots": [one.text for one in selected],
            "checked_bytes": result.checked_bytes,
            "checked_chunks": result.checked_chunks,
            "checked_objects": result.checked_objects,
            "findings": [_row(finding) for finding in result.findings],
            "unrestorable": result.unrestorable,
            "recorded": result.recorded,
            "cold_packs": len(result.cold),
            "cold_bytes": sum(result.cold.values()),
            "problems": problems,
            "seconds": result.seconds,
            **_coverage(result),
        }
    )
    if args.against is not None and result.findings:
        return code or IntegrityError.exit_code
    if code or not result.damaged:
        return code or (SourceError.exit_code if result.incomplete else 0)
    return IntegrityError.exit_code


def _options(context: Context) -> VerifyOptions:
    args = context.args
    if args.against is not None:
        if args.source is not None or args.level not in ("sample", "source"):
            raise UsageError("--against goes with no level and no --source")
        args.level, args.source = "source", args.against
    if args.level != "sample" and (args.percent is not None or args.budget is not None):
        raise UsageError("--percent and --budget belong to --level sample")
    if args.level != "source" and args.source is not None:
        raise UsageError("--source belongs to --level source")
    source: Source | None = None
    if args.source is not None:
        is_file = not args.source.startswith(("lvm:", "rbd:", "zfs:", "nbd", "qcow2:"))
        source = named_source(context, args.source, "file" if is_file else None)
    threads = args.workers or context.config.backup.workers
    return VerifyOptions(args.level, args.percent, args.budget, source, threads, new_packs=args.new_packs)


def _selected(repository: Repository, texts: list[str], source: Source | None) -> list[Selected]:
    selected = select(repository, texts)
    if not selected:
        raise NothingMatched(
            "there is no snapshot to verify", obj=repository.store.url, hint="make one: lamella backup"
        )
    if source is not None and len(selected) != 1:
        raise UsageError(
            "--source and --against compare one volume", hint="name it: lamella verify VOLUME --against FILE"
        )
    return selected


def _print(context: Context, selected: list[Selected], result: VerifyResult, *, checked: bool) -> None:
    out = context.out
    for finding in result.findings:
        affects = f" (needed by {', '.join(finding.affects)})" if finding.affects else ""
        tell = out.line if finding.severity == NOTE else out.answer
        tell(": ".join(filter(None, (finding.severity, finding.obj, finding.message))) + affects)
    for text in result.unrestorable:
        out.answer(f"cannot be restored: {text}")
    if result.recorded:
        out.line(f"recorded for other hosts: {result.recorded} places that do not open")
    if result.damaged:
        out.say("repair what can be repaired with: lamella repair")
    count, volumes = len(selected), len({one.volume.volume_id for one in selected})
    of = f" of {volumes} volumes" if volumes > 1 else ""  # a snapshot of three volumes counts three times here
    against = context.args.against is not None
    differs = against and bool(result.findings)
    tell = out.answer if result.damaged or result.incomplete or differs else out.line
    tell(
        f"verified {count} snapshot{'' if count == 1 else 's'}{of}: {result.checked_chunks} chunks checked, "
        f"{shown_bytes(result.checked_bytes)} read, in {shown_seconds(result.seconds)}: "
        + (f"{len(result.cold)} packs are cold, not read; " if result.cold else "")
        + _verdict(result, checked, against=against)
    )


def _coverage(result: VerifyResult) -> dict[str, object]:
    found = result.coverage
    if found is None:
        return {}
    oldest = iso(found.oldest_ms) if found.oldest_ms else ""
    return {"coverage": {**found._asdict(), "oldest": oldest}}


def _say_coverage(context: Context, result: VerifyResult) -> None:
    """How far the budgets of many runs have come."""
    found = result.coverage
    if found is None or context.args.budget is None or not found.total_bytes:
        return
    since = shown_time(iso(found.oldest_ms))[:10] if found.oldest_ms else "never"
    if found.whole:
        runs = "one run" if found.runs == 1 else f"{found.runs} runs"
        context.out.say(f"everything was read in {runs}, the oldest part on {since}")
    else:
        share = 100 * found.read_bytes // found.total_bytes
        left = -(-(found.total_bytes - found.read_bytes) // context.args.budget)
        runs = "one more run" if left == 1 else f"{left} more runs"
        context.out.say(f"{share} % of the packs were read so far, since {since}; the rest takes about {runs}")


def _verdict(result: VerifyResult, checked: bool, *, against: bool) -> str:
    if result.damaged:
        return "DAMAGED"
    if against:
        return "DIFFERENT" if result.findings else "no difference found"
    found = "no damage found" if checked else "nothing was checked"
    return f"{found}, but INCOMPLETE: a volume was not saved" if result.incomplete else found


def _row(finding: Finding) -> dict[str, object]:
    return {
        "kind": finding.kind,
        "severity": finding.severity,
        "object": finding.obj,
        "message": finding.message,
        "affects": list(finding.affects),
    }
