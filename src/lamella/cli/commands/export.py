"""`lamella export`: a snapshot as a disk that other programs use, or as an image in a format of theirs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from socket import socket

from lamella.base.errors import LamellaError, UsageError
from lamella.cli.arguments import SECRETS
from lamella.cli.chosen import add_thaw, chosen, shown_snapshot, thaw_first, warn_of_no_moment
from lamella.cli.context import Context
from lamella.cli.shown import shown_bytes
from lamella.operations.access import listening
from lamella.operations.access.disk import Disk
from lamella.operations.access.nbd_server import NbdServer, Served
from lamella.operations.access.view import Reading, SnapshotView
from lamella.operations.shared.selection import Selected
from lamella.repository.repository import Repository
from lamella.run.allocator import keep_freed_memory

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FIRST_HANDED_OVER = 3
"""The number of the first socket of socket activation, from sd_listen_fds(3)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = (
        "The first line on standard output is the URI of the server, for qemu, nbdcopy, nbd-client and others. The\n"
        "server runs until Ctrl-C or SIGTERM. Started by socket activation it needs neither --socket nor --listen.\n"
        "NBD knows no passwords: whoever can connect can read the volume.\n\n" + SECRETS
    )
    parser.add_argument(
        "volume",
        nargs="?",
        metavar="VOLUME[@SNAPSHOT]",
        help="SNAPSHOT is any unique beginning of its name, ^TAG, or latest (default)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--socket", type=Path, metavar="PATH", help="serve at this socket file, to which only its owner can connect"
    )
    where.add_argument(
        "--listen", metavar="ADDR:PORT", help="serve at this address of this machine; port 0 takes any free port"
    )
    where.add_argument("--to", metavar="FILE|-", help="write an image to this new file, or to standard output")
    where.add_argument(
        "--all",
        type=Path,
        metavar="DIR",
        help="write every snapshot of every volume into DIR, with documents and checksums, unless it is there already",
    )
    parser.add_argument(
        "--format",
        choices=("raw", "qcow2", "tar"),
        help="the format of the image: raw, qcow2, or a tar with the documents of the snapshot (default: by the "
        "suffix of FILE, else raw)",
    )
    parser.add_argument(
        "--allow-network", action="store_true", help="let --listen take an address that other machines can reach"
    )
    parser.add_argument("--once", action="store_true", help="end when the last client has left")
    written = parser.add_mutually_exclusive_group()
    written.add_argument(
        "--overlay",
        type=Path,
        metavar="FILE",
        help="let clients write; what they write is kept in FILE, for this snapshot only",
    )
    written.add_argument(
        "--throw-away", action="store_true", help="let clients write, and forget what they wrote at the end"
    )
    add_thaw(parser)


def run(context: Context) -> int:
    """Serve, or write."""
    keep_freed_memory()
    if _is_image(context.args):
        from lamella.cli.commands._images import run as write_images

        return write_images(context)
    # First the place, before anybody is asked for a secret; whoever connects early waits.
    with _listener(context) as place, context.repository() as repository:
        selected = chosen(repository, context.args.volume)
        code = context.warn_of_problems(repository)
        if context.args.allow_network:
            context.out.warn("whoever can reach this address can read the volume", context.args.listen or "")
        context.out.say(f"exporting {shown_snapshot(repository, selected)}")
        warn_of_no_moment(context, selected)
        thaw_first(context, repository, [selected])
        _serve(context, repository, selected, place)
    return code


def _is_image(args: argparse.Namespace) -> bool:
    """Whether images are to be written. Raises UsageError for options that do not go together."""
    if bool(args.volume) == bool(args.all):
        raise UsageError("name one volume, or --all DIR", hint="see: lamella export --help")
    if not (args.to or args.all):
        if args.format:
            raise UsageError("--format is for images: add --to FILE, or --all DIR")
        return False
    serving = ("--overlay", args.overlay), ("--throw-away", args.throw_away), ("--once", args.once)
    for option, given in (*serving, ("--allow-network", args.allow_network)):
        if given:
            raise UsageError(f"{option} is for a server: add --socket PATH or --listen ADDR:PORT")
    return True


def _listener(context: Context) -> AbstractContextManager[tuple[socket, str]]:
    """Where to listen. Raises UsageError."""
    args = context.args
    if args.socket is not None:
        return listening.at_path(args.socket)
    if args.listen is not None:
        return listening.at_address(args.listen, from_anywhere=args.allow_network)
    if context.env.get("LISTEN_PID") == str(os.getpid()) and context.env.get("LISTEN_FDS") == "1":
        return listening.handed_over(_FIRST_HANDED_OVER)
    hint = "add --socket PATH or --listen ADDR:PORT; or write an image with --to FILE"
    raise UsageError("an export needs a place to serve the volume at", hint=hint)


def _serve(context: Context, repository: Repository, selected: Selected, place: tuple[socket, str]) -> None:
    listener, uri = place
    reading = Reading(repository)
    try:
        with _disk(context, repository, selected, reading.view(selected)) as disk:
            served = Served(disk, selected.text, f"Lamella: {shown_snapshot(repository, selected)}")
            server = NbdServer(listener, served, context.out.report, once=context.args.once)
            try:
                _announce(context, selected, disk, uri)
                server.run()
            except KeyboardInterrupt:
                context.out.say("ending")
            finally:
                server.close()
    finally:
        reading.close()


@contextmanager
def _disk(context: Context, repository: Repository, selected: Selected, view: SnapshotView) -> Iterator[Disk]:
    """The snapshot, or the overlay over it, which is flushed and closed at the end. Raises LamellaError."""
    args = context.args
    if not (args.overlay or args.throw_away):
        yield view
        return
    from lamella.operations.access.kept_file import Owner  # most exports are only read
    from lamella.operations.access.overlay import kept_overlay, thrown_away

    snapshot = selected.snapshot
    owner = Owner(repository.repo_id, snapshot.added.volume_id, snapshot.ref.snap_id, selected.text)
    folder = Path(context.env.get("TMPDIR") or "/var/tmp")
    shown = str(args.overlay or folder)
    try:
        overlay = (
            kept_overlay(view, args.overlay, owner, _BOOT_ID.read_text("ascii").strip())
            if args.overlay
            else thrown_away(view, folder)
        )
    except OSError as error:
        raise LamellaError(f"cannot keep what is written in {shown}: {error.strerror}", obj=shown) from error
    try:
        yield overlay
    finally:
        try:
            overlay.close()
        except OSError as error:
            message = f"what was written last may be missing in {shown}: {error.strerror}"
            raise LamellaError(message, obj=shown) from error


def _announce(context: Context, selected: Selected, disk: Disk, uri: str) -> None:
    """The first line, at once: scripts wait for it."""
    out = context.out
    out.answer(uri)
    facts = {"volume": selected.volume_name, "snapshot": selected.snapshot.name, "size": disk.size}
    out.document({"uri": uri, **facts})
    with suppress(OSError):
        sys.stdout.flush()
    out.detail(
        f"{shown_bytes(disk.size)}, {'writable' if context.args.overlay or context.args.throw_away else 'read-only'}"
    )
