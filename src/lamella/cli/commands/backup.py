"""`lamella backup`: back up volumes into one snapshot."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.base.errors import Absent, LamellaError, NothingMatched, SourceError
from lamella.cli.arguments import SECRETS, add_dry_run
from lamella.cli.backup_details import say_plan
from lamella.cli.backup_report import reporting, result_shown
from lamella.cli.context import Context
from lamella.cli.destination import DestinationContext, named_destinations
from lamella.cli.output import INCOMPLETE
from lamella.cli.sources import may_be_several, named_source
from lamella.cli.values import compression, rate, seconds, size, workers
from lamella.operations.backup.story import (
    BackupOptions,
    BackupPlan,
    BackupResult,
    FailedRequest,
    Pace,
    Request,
    VolumePlan,
    execute_together,
    plan_backup,
)
from lamella.run.allocator import keep_freed_memory
from lamella.sources.names import name_from, split_name

_CHUNK_LOG2S = range(16, 23)

_Named = tuple[str, tuple[str, ...]]

if TYPE_CHECKING:
    from lamella.crypto.slots import Secret


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = SECRETS
    parser.add_argument(
        "source",
        nargs="+",
        metavar="[NAME=]SOURCE",
        help="an image file, a block device, a directory or pattern of such files, lvm:VG/LV, or an NBD address "
        "(nbd+unix:///EXPORT?socket=PATH, nbd://HOST:PORT/EXPORT); NAME is what the volume is called in the repository",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave such files out of directories and patterns; without a slash PATTERN is about the file's name",
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
        help="deduplicate across all volumes of this domain, which share keys; without it a volume shares no data with "
        "others (first backup of a volume only)",
    )
    parser.add_argument(
        "--chunk-size",
        type=chunk_log2,
        metavar="SIZE",
        help="64K to 4M, a power of two (first backup of a volume only)",
    )
    parser.add_argument(
        "--compression", metavar="HOW", type=compression, help="auto, 1 to 19 (zstd), off, or portable (zlib)"
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
    parser.add_argument(
        "--require-consistent", action="store_true", help="save no volume that shows no single moment (exit code 3)"
    )
    add_dry_run(parser)


@dataclass(slots=True)
class BackupDestination:
    """A repository to back up to, and what became of the backup there."""

    text: str
    context: DestinationContext
    plan: BackupPlan | None = None
    result: BackupResult | None = None
    error: LamellaError | None = None
    prune_code: int = 0

    @property
    def code(self) -> int:
        """The exit code for this destination alone."""
        if self.error is not None:
            return self.error.exit_code
        incomplete = self.result is not None and not self.result.complete
        return INCOMPLETE if incomplete else self.prune_code

    @property
    def committed(self) -> bool:
        """Whether there is a new snapshot."""
        return self.result is not None and bool(self.result.snapshot)


def chunk_log2(text: str) -> int:
    """The binary logarithm of a chunk size from 64K to 4M. Raises ArgumentTypeError."""
    found = size(text)
    if found.bit_count() != 1 or found.bit_length() - 1 not in _CHUNK_LOG2S:
        raise argparse.ArgumentTypeError(f"not a chunk size: {text!r}; it is a power of two from 64K to 4M")
    return found.bit_length() - 1


def run(context: Context) -> int:
    """Back up to every destination from one frozen moment; a destination that fails stops no other."""
    keep_freed_memory()
    options, requests = _options(context), _requests(context)
    secrets: dict[str, Secret] = {}
    destinations = [
        BackupDestination(text, DestinationContext(context, text, secrets)) for text in named_destinations(context)
    ]
    several, dry_run = len(destinations) > 1, context.args.dry_run
    with ExitStack() as held:
        for one in destinations:
            with _failing(one, several):
                one.plan = _opened(one.context, held, requests, options)
        if dry_run:
            documents = [_shown(one, several) for one in destinations]
        else:
            _execute(context, destinations, several)
    if not dry_run:
        documents = [_shown(one, several) for one in destinations]
    if not several:
        only = destinations[0]
        if only.error is not None:
            raise only.error
        context.out.document(documents[0])
        missing = dry_run and any(isinstance(request, FailedRequest) for request in requests)
        return INCOMPLETE if missing else only.code
    from lamella.cli.commands import _several

    context.out.document({"result": _several.word(destinations), "repositories": documents})
    return _several.exit_code(destinations, dry_run=dry_run)


@contextmanager
def _failing(one: BackupDestination, several: bool) -> Iterator[None]:
    """An error is this destination's; among several it is said at once."""
    try:
        yield
    except LamellaError as error:
        one.error = error
        if several:
            hint = f"; {error.hint}" if error.hint else ""
            one.context.out.warn(f"{one.text}: {_word(error)}: {error.message}{hint}")


def _word(error: LamellaError) -> str:
    return "skipped" if isinstance(error, Absent) else "failed"


def _opened(
    context: Context, held: ExitStack, requests: list[Request | FailedRequest], options: BackupOptions
) -> BackupPlan:
    """The plan for one repository, which stays open until `held` ends. What would fail after the backup fails here."""
    with ExitStack() as opened:
        repository = opened.enter_context(context.sound_repository(read_only=context.args.dry_run))
        if context.args.prune:
            from lamella.cli.commands.prune import check_after_backup

            check_after_backup(context, repository)
        plan = plan_backup(repository, requests, options)
        held.push(opened.pop_all())
    return plan


def _execute(context: Context, destinations: Sequence[BackupDestination], several: bool) -> None:
    opened = {one.plan: one for one in destinations if one.plan is not None}
    context.out.rounds = len(opened)

    def tell(plan: BackupPlan, rows: Sequence[VolumePlan]) -> None:
        if several:
            context.out.say(f"to {opened[plan].text}:")
        say_plan(context.out, plan, rows)

    for outcome in execute_together(list(opened), reporting(context.out), tell) if opened else ():
        one = opened[outcome.plan]
        one.result = outcome.result
        with _failing(one, several):
            if outcome.error is not None:
                raise outcome.error


def _shown(one: BackupDestination, several: bool) -> dict[str, object]:
    """Say what became of one destination, and prune there if that is wanted; returns its document."""
    out, said = one.context.out, {}
    if several:
        out.line(f"{one.text}:")
    with _failing(one, several):
        if one.result is not None:
            said = result_shown(out, one.result)
            said.update(_pruned(one, one.result))
        elif one.plan is not None and one.error is None:
            from lamella.cli.dry_run import plan_shown

            said = plan_shown(out, one.plan)
    if one.error is not None and several:
        error = one.error
        fields = {"exit": error.exit_code, "kind": error.kind, "object": error.obj, "hint": error.hint}
        said = {"result": _word(error), "error": {**fields, "message": error.message}}
        out.line(f"{said['result']}: {error.message}")
    return {"repository": one.text, **said} if several else said


def _pruned(one: BackupDestination, result: BackupResult) -> dict[str, object]:
    """Remove what no rule keeps of the volumes that were saved, if that is wanted."""
    volumes = [row.volume for row in result.volumes if row.result == "complete"]
    if not (one.context.args.prune and volumes):
        return {}
    from lamella.cli.commands.prune import prune_after_backup

    pruned = prune_after_backup(one.context, volumes)
    one.prune_code = pruned.exit_code
    return {"prune": pruned.document}


def _options(context: Context) -> BackupOptions:
    args, configured = context.args, context.config.backup
    options = BackupOptions(
        compression=args.compression or configured.compression,
        chunk_log2=args.chunk_size,
        domain=args.domain,
        adopt=args.adopt,
        workers=args.workers or configured.workers,
        check_all=args.check_compression == "all",
        lock_wait=args.lock_wait,
        reread_bytes=args.reread,
        hook_seconds=args.hook_timeout or configured.hook_seconds,
        read_rate=args.read_rate or configured.read_rate,
        require_consistent=args.require_consistent,
        pace=Pace() if args.point_every is None else Pace(bytes=args.point_every, least_bytes=1),
    )
    words = (args.document, args.changes_from, args.changes_base, args.before, args.after)
    if any(words) or configured.before or configured.after:
        from lamella.cli.backup_extras import with_extras  # loaded by few backups

        return with_extras(options, args, configured)
    return options


def _requests(context: Context) -> list[Request | FailedRequest]:
    """What is to be backed up. Raises NothingMatched or LamellaError when not one source can be opened."""
    requests: list[Request | FailedRequest] = []
    errors: list[LamellaError] = []
    missing = True
    for text, names in _sources(context, requests, errors):
        name, place = (None, text) if names else split_name(text)
        try:
            source = named_source(context, place, context.args.source_driver)
        except SourceError as error:
            errors.append(error)
            missing = missing and not Path(place).exists()
            requests.append(FailedRequest(name or (*names, name_from(Path(place).stem))[0], error.message))
        else:
            domain = None if context.args.domain else context.config.backup.domain
            requests.append(Request(name, source, domain, names=names))
    if len(errors) == len(requests):
        kind = NothingMatched if missing else LamellaError
        more = f" (and {len(errors) - 1} more like it)" if len(errors) > 1 else ""
        raise kind(errors[0].message + more, obj=errors[0].obj, hint=errors[0].hint) from errors[0]
    return requests


def _sources(context: Context, requests: list[Request | FailedRequest], errors: list[LamellaError]) -> Sequence[_Named]:
    """Each source, and what a new volume of it may be called if a pattern or a directory meant it: see `all_files`."""
    if not any(may_be_several(split_name(text)[1]) for text in context.args.source):
        return [(text, ()) for text in context.args.source]
    from lamella.cli.found_sources import all_files  # most backups name their sources

    return all_files(context.args.source, context.args.exclude, requests, errors, context.out.say)
