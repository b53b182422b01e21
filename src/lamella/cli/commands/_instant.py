"""`lamella restore --instant`: the volume is used at once, while it is restored."""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from socket import socket

from lamella.base.errors import Interrupted, LamellaError, NothingMatched, UsageError
from lamella.cli.chosen import chosen, shown_snapshot, warn_of_no_moment
from lamella.cli.context import Context
from lamella.cli.shown import shown_bytes
from lamella.operations.access import listening
from lamella.operations.access.instant.journal import owner_of
from lamella.operations.access.instant.restore import (
    InstantOptions,
    InstantRestore,
    clear_up,
    instant_restore,
    journal_beside,
    owner_for,
)
from lamella.operations.access.nbd_server import NbdServer, Served
from lamella.operations.access.view import Reading
from lamella.operations.restore.restore import data_bytes
from lamella.operations.shared.selection import Selected, select, split_selector
from lamella.repository.repository import Repository
from lamella.sources.served_target import unfinished

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def run(context: Context) -> int:
    """Serve and restore."""
    args = context.args
    journal = _journal(args)
    # First the place, before anybody is asked for a secret; whoever connects early waits.
    with listening.at_path(args.socket) as place, context.repository() as repository:
        selected = _selected(repository, args.volume[0], journal)
        code = context.warn_of_problems(repository)
        warn_of_no_moment(context, selected)
        reading = Reading(repository)
        try:
            return _restore(context, reading, selected, journal, place) or code
        finally:
            reading.close()


def _journal(args: Namespace) -> Path:
    """Where the journal is. Raises UsageError for options that do not go together."""
    if not args.instant:
        option = "--socket" if args.socket else "--journal"
        raise UsageError(f"{option} is for a volume that is used while it is restored: add --instant")
    if args.all or len(args.volume) != 1 or args.to.is_dir():
        raise UsageError("--instant is for one volume, and a TARGET that is no directory", obj=str(args.to))
    if not args.to.resolve().parent.is_dir():
        raise LamellaError(f"there is no directory {args.to.resolve().parent}", obj=str(args.to), hint="make it first")
    if args.socket is None:
        raise UsageError("an instant restore needs a place to serve the volume at", hint="add --socket PATH")
    for option in ("document", "in_place", "pool", "trust_local", "inside"):
        if getattr(args, option):
            name = option.replace("_", "-").replace("inside", "in")
            raise UsageError(f"--{name} does not go with --instant", hint="see: lamella restore --help")
    if args.journal is not None:
        return Path(args.journal)
    if args.to.is_block_device():
        hint = "add --journal FILE, a file on a disk that keeps it"
        raise UsageError("what the guest writes cannot be kept beside a device", obj=str(args.to), hint=hint)
    return journal_beside(args.to)


def _selected(repository: Repository, text: str, journal: Path) -> Selected:
    """The snapshot; of a volume alone the one that was begun with. Raises NothingMatched, RolledBack."""
    known = owner_of(journal)
    if known is None or split_selector(text)[1] is not None:
        return chosen(repository, text)
    ours = [one for one in select(repository, []) if one.snapshot.ref.snap_id == known[0].snap_id]
    volume = select(repository, [text])[0].volume.volume_id
    found = next((one for one in ours if one.volume.volume_id == volume), None)
    if found is None:
        hint = "name another --to, or remove that file and its target to begin anew"
        raise NothingMatched(f"{journal} belongs to a snapshot that {text} does not have", obj=str(journal), hint=hint)
    return found


def _restore(context: Context, reading: Reading, selected: Selected, journal: Path, place: tuple[socket, str]) -> int:
    args, out, repository = context.args, context.out, reading.repo
    total = data_bytes(repository, selected)
    say = out.line if args.dry_run else out.say
    say(f"restoring {shown_snapshot(repository, selected)}, at most {shown_bytes(total)} of data, while it is used")
    say(f"what the guest writes goes to {args.to if args.to.is_block_device() else unfinished(args.to)}")
    facts = {"volume": selected.volume_name, "snapshot": selected.snapshot.name, "target": str(args.to)}
    if args.dry_run:
        out.document({"dry_run": True, **facts, "data_bytes": total, "journal": str(journal)})
        return 0
    if clear_up(args.to, journal) == owner_for(reading, selected):
        out.line(f"{args.to} was complete already")
        out.document({**facts, "result": "complete"})
        return 0
    if args.overwrite and args.to.exists() and owner_of(journal) is None:
        context.confirm(f"Will replace the content of {args.to} by {selected.text}.")
    boot = _BOOT_ID.read_text("ascii").strip()
    workers = args.workers or context.config.backup.workers
    options = InstantOptions(journal, boot, args.overwrite, workers, total)
    with instant_restore(reading, selected, args.to, options, out.report) as restore:
        _serve(context, restore, selected, place, {**facts, "size": restore.disk.size, "journal": str(journal)})
    return 0


def _serve(
    context: Context, restore: InstantRestore, selected: Selected, place: tuple[socket, str], facts: dict[str, object]
) -> None:
    """Until it is complete and nobody uses it. Raises Interrupted before that."""
    out, (listener, uri) = context.out, place
    out.answer(uri)  # at once: scripts wait for it
    out.document({"uri": uri, **facts, "resumed": restore.is_resumed})
    with suppress(OSError):
        sys.stdout.flush()
    if restore.is_resumed:
        out.say(f"going on with what is in {restore.target.working_path}")
    server = NbdServer(listener, Served(restore.disk, selected.text, f"Lamella: {selected.text}"), out.report)
    with suppress(KeyboardInterrupt):
        restore.serve(server)
    if restore.is_complete:
        out.say(f"restored {selected.text} to {restore.target.path}: compared, complete, and no longer served")
        return
    why = f": {restore.arrival.trouble}" if restore.arrival.trouble else ""
    hint = f"everything written is in {restore.target.working_path}; go on with the same command"
    raise Interrupted(f"{selected.text} is not complete yet{why}", hint=hint)
