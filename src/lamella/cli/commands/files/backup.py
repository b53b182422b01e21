"""`lamella files backup`: back up directories file by file."""

from __future__ import annotations

import argparse
from pathlib import Path

from lamella.base.errors import NothingMatched, SourceError, UsageError
from lamella.cli.arguments import SECRETS, add_dry_run, lazy
from lamella.cli.commands.backup import back_up
from lamella.cli.context import Context
from lamella.cli.files import read_file
from lamella.cli.output import INCOMPLETE
from lamella.operations.backup.story import BackupOptions, FailedRequest, Request
from lamella.run.limits import allow_files
from lamella.sources.names import name_from
from lamella.sources.tree.patterns import lines_of
from lamella.sources.tree.source import TreeSource

_PATTERNS_MOST = 1 << 20
_chunk_log2, _compression, _rate, _workers = map(lazy, ("chunk_log2", "compression", "rate", "workers"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's own arguments."""
    parser.epilog = (
        "Each DIR becomes a volume that holds its files, with rights, owners, times, links and attributes.\n"
        "Only files that are new or changed are read. `lamella restore NAME --to DIR/` writes the files back;\n"
        "`lamella files list`, find, get and diff look into such a snapshot without a guest.\n\n" + SECRETS
    )
    parser.add_argument("directory", nargs="+", metavar="DIR", help="a directory, with everything below it")
    parser.add_argument("--name", metavar="NAME", help="what the volume is called (default: the directory's name)")
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave such files and directories out; without a slash PATTERN is about the name, with one about the path "
        "below DIR; a slash at its end means directories alone",
    )
    parser.add_argument(
        "--exclude-from", action="append", default=[], metavar="FILE", help="patterns, one a line; # begins a comment"
    )
    parser.add_argument(
        "--exclude-caches", action="store_true", help="leave out what is in directories with a CACHEDIR.TAG"
    )
    parser.add_argument(
        "--exclude-inside",
        default="",
        metavar="NAME",
        help="directories may say themselves what is left out below them: patterns in a file of this name there",
    )
    parser.add_argument("--one-file-system", action="store_true", help="do not enter other file systems mounted in DIR")
    parser.add_argument(
        "--domain",
        metavar="NAME",
        help="deduplicate across all volumes of this domain, which share keys (first backup of a volume only)",
    )
    parser.add_argument(
        "--chunk-size", type=_chunk_log2, metavar="SIZE", help="64K to 4M, a power of two (first backup only)"
    )
    parser.add_argument(
        "--compression", metavar="HOW", type=_compression, help="auto, 1 to 19 (zstd), off, or portable (zlib)"
    )
    parser.add_argument(
        "--adopt", action="store_true", help="go on with a volume of that name although it came from another source"
    )
    parser.add_argument("--read-rate", type=_rate, metavar="RATE", help="read at most so many bytes a second")
    parser.add_argument("--workers", type=_workers, metavar="N", help="threads (default: as many as suit the machine)")
    parser.add_argument(
        "--prune",
        action="store_true",
        help="afterwards remove the snapshots of these volumes that no rule of the configuration keeps",
    )
    parser.add_argument(
        "--ticket",
        type=Path,
        metavar="FILE",
        help="in a store that the key of `lamella key export-domain --inside` opens: write to FILE what the host that "
        "lent the key needs for `lamella files publish` (mode 0600, replaced)",
    )
    add_dry_run(parser)


def run(context: Context) -> int:
    """Back up; 3 if a file could not be read."""
    args, configured = context.args, context.config.backup
    allow_files()  # a directory is open while what is below it is looked at
    sources = _sources(context)
    options = BackupOptions(
        compression=args.compression or configured.compression,
        chunk_log2=args.chunk_size,
        domain=args.domain or configured.domain,
        adopt=args.adopt,
        workers=args.workers or configured.workers,
        check_all=configured.check_compression == "all",
        lock_wait=args.lock_wait,
        read_rate=args.read_rate or configured.read_rate,
    )
    requests = [one if isinstance(one, FailedRequest) else Request(args.name, one) for one in sources]
    if args.ticket is not None:
        from lamella.cli.tickets import require_one_store  # where a qube saves its files itself

        require_one_store(context, requests)
    code = back_up(context, options, requests)
    if args.ticket is not None and code == 0 and not args.dry_run:
        from lamella.cli.tickets import write_ticket

        write_ticket(context, next(one.identity for one in sources if isinstance(one, TreeSource)))
    missing = any(isinstance(one, FailedRequest) or one.missing for one in sources)
    return code or (INCOMPLETE if missing else 0)


def _sources(context: Context) -> list[TreeSource | FailedRequest]:
    """The directories. Raises UsageError; NothingMatched if not one of them is there."""
    args = context.args
    if "/" in args.exclude_inside:
        raise UsageError("--exclude-inside takes the name of a file, not a path", obj=args.exclude_inside)
    patterns = list(args.exclude)
    for file in args.exclude_from:
        patterns += lines_of(read_file(file, _PATTERNS_MOST))
    found: list[TreeSource | FailedRequest] = []
    errors: list[SourceError] = []
    for text in args.directory:
        path = Path(text)
        if path.is_dir():
            switches = (args.exclude_caches, args.one_file_system, args.exclude_inside)
            found.append(TreeSource(path, context.host.machine, tuple(patterns), *switches))
            continue
        why = "is no directory: lamella backup saves images and devices" if path.exists() else "is not there"
        errors.append(SourceError(f"{text} {why}", obj=text))
        found.append(FailedRequest(name_from(path.name), errors[-1].message))
    if len(errors) == len(found):
        raise NothingMatched(errors[0].message, obj=errors[0].obj)
    if args.name is not None and len(args.directory) > 1:
        raise UsageError("--name is for one directory", obj=args.name)
    return found
