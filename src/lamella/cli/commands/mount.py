"""`lamella mount`: every snapshot as a file that can be read."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lamella.base.durable import PRIVATE, make_private
from lamella.base.errors import LamellaError
from lamella.cli import signals
from lamella.cli.arguments import SECRETS
from lamella.cli.context import Context

Ready = Callable[[int], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = (
        "DIR/VOLUME/SNAPSHOT/disk.img is the volume at that moment, with its documents beside; DIR/VOLUME/latest and\n"
        "DIR/VOLUME/^TAG lead to a snapshot. Everything is read-only, and nobody but you sees it. What there was\n"
        "when you mounted it is shown. `fusermount3 -u DIR` ends it, and so does a signal to the process; until then\n"
        "the repository is locked against commands that need it for themselves. Needs the extra `fuse`.\n\n" + SECRETS
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="an empty directory")
    parser.add_argument("--foreground", action="store_true", help="stay, and end with Ctrl-C")


def run(context: Context) -> int:
    """Mount."""
    from lamella.operations.access.mount import check_place, require_fuse

    place = check_place(context.args.directory)
    require_fuse()
    if context.args.foreground:
        return _mounted(context, place, None)
    from lamella.run.background import in_background

    log = _open_log(context)
    return in_background(partial(_in_background, context, place, log))


def _in_background(context: Context, place: Path, log: int, leave: Ready) -> int:
    return _mounted(context, place, lambda: leave(log))


def _mounted(context: Context, place: Path, leave: Callable[[], None] | None) -> int:
    from lamella.operations.access.mount import serve
    from lamella.operations.access.shown import Shown
    from lamella.operations.access.view import Reading

    with context.repository() as repository:
        code = context.warn_of_problems(repository)
        shown = Shown(repository, context.out.report)
        reading = Reading(repository)

        def mounted() -> None:
            _report(context, place, shown.counts)
            if leave is not None:
                leave()

        signals.leave()  # libfuse takes them: Python could not, while the main thread waits in libfuse
        try:
            serve(shown, reading, place, mounted, context.out.report)
        finally:
            reading.close()
    return code


def _report(context: Context, place: Path, counts: tuple[int, int]) -> None:
    out, (volumes, snapshots) = context.out, counts
    program = next((f"{name} -u" for name in ("fusermount3", "fusermount") if shutil.which(name)), "umount")
    end = f"{program} {shlex.quote(str(place))}"
    here = context.args.foreground
    out.line(f"mounted at {place}: volumes: {volumes}, snapshots: {snapshots}; end it with: {end}")
    if not here:
        out.line(f"what goes wrong is written to {_log(context)}")
    log = {} if here else {"log": str(_log(context))}
    out.document(
        {"directory": str(place), "volumes": volumes, "snapshots": snapshots, "end": end, "pid": os.getpid(), **log}
    )
    sys.stdout.flush()


def _log(context: Context) -> Path:
    return context.host.state_dir / "mount.log"


def _open_log(context: Context) -> int:
    path = _log(context)
    try:
        make_private(path.parent)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE)
    except OSError as error:
        raise LamellaError(f"cannot write {path}: {error.strerror}", obj=str(path)) from error
