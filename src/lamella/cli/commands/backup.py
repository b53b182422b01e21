"""`lamella backup`: back up volumes into one snapshot."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.base.errors import Absent, LamellaError, NothingMatched, SourceError
from lamella.cli.arguments import SECRETS, add_dry_run, lazy
from lamella.cli.backup_details import say_plan
from lamella.cli.backup_report import reporting, result_shown
from lamella.cli.context import Context
from lamella.cli.destination import DestinationContext, named_destinations
from lamella.cli.output import INCOMPLETE
from lamella.cli.sources import keeping, may_be_several, named_source
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

_chunk_log2, _compression, _rate, _seconds, _size, _workers = map(
    lazy, ("chunk_log2", "compression", "rate", "seconds", "size", "workers")
)

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
        help="an image file, device, directory or pattern, lvm:VG/LV, zfs:POOL/VOL, rbd:POOL/IMAGE, qmp:SOCKET, "
        "libvirt:DOMAIN, qcow2:FILE (the disk in an image), nbd+unix:///EXPORT?socket=PATH or nbd://HOST:PORT/EXPORT, "
        "- for standard input, or '!COMMAND' for its output; NAME is what the volume is called in the repository",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out files that match PATTERN; without a slash PATTERN matches the name of the file alone",
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
        type=_chunk_log2,
        metavar="SIZE",
        help="64K to 4M, a power of two (first backup of a volume only)",
    )
    parser.add_argument(
        "--compression", metavar="HOW", type=_compression, help="auto, 1 to 19 (zstd), off, or portable (zlib)"
    )
    parser.add_argument(
        "--adopt", action="store_true", help="continue a volume of that name although it came from another source"
    )
    parser.add_argument("--source-driver", metavar="DRIVER", help="read all sources with this driver")
    parser.add_argument(
        "--check-compression",
        choices=("all", "sample"),
        help="decompress chunks and compare them before they are stored (default: sample)",
    )
    parser.add_argument(
        "--reread",
        type=_size,
        metavar="SIZE",
        help="also re-read this much of what the change map calls unchanged, the longest unread first",
    )
    parser.add_argument(
        "--before", metavar="COMMAND", help="run before the sources are frozen; a failure ends the backup"
    )
    parser.add_argument("--after", metavar="COMMAND", help="run after the sources are frozen, also after a failure")
    parser.add_argument(
        "--hook-timeout",
        type=_seconds,
        metavar="SECONDS",
        help="end each of these commands after SECONDS (default 60)",
    )
    parser.add_argument(
        "--changes-from", metavar="FILE", help="read only the ranges in FILE, a change map of another tool"
    )
    parser.add_argument("--changes-base", metavar="SNAPSHOT", help="the snapshot that the change map starts from")
    parser.add_argument("--size", type=_size, metavar="SIZE", help="fail unless the stream has exactly SIZE bytes")
    parser.add_argument("--time", metavar="TIME", help="the streams show the state of TIME, such as 2026-11-28T18:30")
    parser.add_argument(
        "--read-rate",
        type=_rate,
        metavar="RATE",
        help="read at most RATE bytes a second from the sources, for example 50M",
    )
    parser.add_argument(
        "--scrub",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave files out that match PATTERN inside the volumes, or what @caches stands for: a small guest removes "
        "them from a clone of each image or thin volume (Btrfs, XFS, LVM-thin), never from the volume itself",
    )
    parser.add_argument(
        "--kernel", metavar="FILE", type=Path, help="the kernel of that guest (default: the running one)"
    )
    # For those who try out what a broken link costs: how much is read between two points to continue from.
    parser.add_argument("--point-every", type=_size, help=argparse.SUPPRESS)
    parser.add_argument(
        "--workers", type=_workers, metavar="N", help="number of threads (default: suited to this machine)"
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="afterwards remove the snapshots of these volumes that no rule of the configuration keeps",
    )
    parser.add_argument(
        "--require-consistent",
        action=argparse.BooleanOptionalAction,
        help="save only volumes that did not change while they were read (else exit code 3)",
    )
    parser.add_argument(
        "--deltas",
        action=argparse.BooleanOptionalAction,
        help="store of a changed chunk only the blocks that changed, where the last state was kept",
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


def run(context: Context) -> int:
    """Back up the sources that the command names."""
    return back_up(context, _options(context), _requests(context))


def back_up(context: Context, options: BackupOptions, requests: list[Request | FailedRequest]) -> int:
    """Back up to every destination from one frozen moment; a destination that fails stops no other."""
    keep_freed_memory()
    secrets: dict[str, Secret] = {}
    names = named_destinations(context)
    if context.config.media:
        from lamella.cli.media import all_here  # few have media that take turns

        names = all_here(context, names)
    destinations = [BackupDestination(text, DestinationContext(context, text, secrets)) for text in names]
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
            one.context.out.warn("; ".join(filter(None, (f"{one.text}: {_word(error)}: {error.message}", error.hint))))


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
                from lamella.cli.room import explained

                raise explained(outcome.error, outcome.plan.repo)


def _shown(one: BackupDestination, several: bool) -> dict[str, object]:
    """Say what became of one destination, and prune there if that is wanted; returns its document."""
    out, said = one.context.out, {}
    if several:
        out.line(f"{one.text}:")
    with _failing(one, several):
        if one.result is not None:
            said = result_shown(out, one.result)
            if one.code == 0 and one.committed and one.context.settings is not None:
                from lamella.cli.media import note_saved  # where a medium may be one of several

                note_saved(one.context, one.text)
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
        check_all=(args.check_compression or configured.check_compression) == "all",
        lock_wait=args.lock_wait,
        reread_bytes=configured.reread if args.reread is None else args.reread,
        hook_seconds=args.hook_timeout or configured.hook_seconds,
        read_rate=args.read_rate or configured.read_rate,
        require_consistent=configured.require_consistent
        if args.require_consistent is None
        else args.require_consistent,
        deltas=configured.deltas if args.deltas is None else args.deltas,
        pace=Pace() if args.point_every is None else Pace(bytes=args.point_every, least_bytes=1),
    )
    if scrub := (*args.scrub, *configured.scrub):
        from lamella.cli.scrubbing import scrubber  # loaded by few backups

        options = replace(options, scrub=scrubber(context, scrub, args.kernel))
    words = (args.document, args.changes_from, args.changes_base, args.before, args.after, args.time)
    if args.size is not None or any(words) or configured.before or configured.after:
        from lamella.cli.backup_extras import with_extras  # loaded by few backups

        return with_extras(options, args, configured)
    return options


def _requests(context: Context) -> list[Request | FailedRequest]:
    """The requests of the command line. Raises NothingMatched or LamellaError when not one source can be opened."""
    requests: list[Request | FailedRequest] = []
    errors: list[LamellaError] = []
    found, configured = _sources(context, requests, errors), context.config.backup
    domain, log2 = configured.domain, configured.chunk_size
    missing = not any(isinstance(error, SourceError) for error in errors)
    for text, names in found:
        name, place = (None, text) if names else split_name(text)
        try:
            source = named_source(context, place, context.args.source_driver, name)
        except SourceError as error:
            errors.append(error)
            missing = missing and not Path(place).exists()
            requests.append(FailedRequest(name or (*names, name_from(Path(place).stem))[0], error.message))
        else:
            requests.append(
                Request(name, source, None if context.args.domain else domain, names=names, chunk_log2=log2)
            )
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

    args, exclude = context.args, context.config.backup.exclude
    return all_files(args.source, [*args.exclude, *exclude], requests, errors, context.out.say, keeping(context))
