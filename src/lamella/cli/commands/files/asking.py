"""What the actions of `lamella files` share: options, the guest's kernel, the open snapshot, the answer's notes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lamella.base.durable import make_private
from lamella.base.errors import LamellaError, NothingMatched
from lamella.cli.arguments import SECRETS
from lamella.cli.chosen import chosen, shown_snapshot
from lamella.cli.context import Context
from lamella.cli.output import INCOMPLETE
from lamella.cli.values import seconds
from lamella.operations.access.files import GuestAnswer, How
from lamella.operations.access.guest_kernel import find_kernel
from lamella.operations.access.view import Reading
from lamella.operations.shared.selection import Selected


class Asked(NamedTuple):
    """A snapshot that can be asked for its files."""

    reading: Reading
    selected: Selected
    how: How


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every action."""
    parser.epilog = SECRETS
    parser.add_argument(
        "volume",
        metavar="VOLUME[@SNAPSHOT]",
        help="SNAPSHOT is any unique beginning of its name, ^TAG, or latest (default)",
    )
    parser.add_argument(
        "--partition", metavar="NUMBER", default="", help="the partition that is meant, `disk` for the whole disk"
    )
    parser.add_argument(
        "--kernel", metavar="FILE", type=Path, help="the kernel of the guest (default: the one that runs here)"
    )
    parser.add_argument(
        "--seconds", metavar="N", type=seconds, default=600.0, help="end the guest after this time (default 600)"
    )


@contextmanager
def asked(context: Context) -> Iterator[Asked]:
    """The snapshot. Raises LamellaError."""
    args = context.args
    kernel = find_kernel(args.kernel)
    state = context.host.state_dir
    try:
        make_private(state)
    except OSError as error:
        raise LamellaError(f"cannot make {state}: {error.strerror}", obj=str(state)) from error
    folder = Path(context.env.get("TMPDIR") or "/var/tmp")
    cache = context.host.cache_dir / "guest-kernel"
    how = How(kernel, state / "guest-without-kvm", cache, folder, args.partition, max(1, int(args.seconds)))
    with context.repository() as repository:
        selected = chosen(repository, args.volume)
        context.warn_of_problems(repository)
        context.out.say(f"reading {shown_snapshot(repository, selected)}")
        reading = Reading(repository)
        try:
            yield Asked(reading, selected, how)
        finally:
            reading.close()


def facts(asked: Asked, answer: GuestAnswer) -> dict[str, object]:
    """What every document says."""
    return {
        "volume": asked.selected.volume_name,
        "snapshot": asked.selected.snapshot.name,
        "partition": answer.partition,
        "file_system": answer.file_system,
        "journal": answer.state,
        "absent": answer.absent,
        "trouble": answer.trouble,
    }


def concluded(context: Context, answer: GuestAnswer) -> int:
    """Say which state was shown and what is missing. Returns the exit code: 4 if nothing was there, 3 if a part."""
    context.out.say(answer.shown)
    for path in answer.absent:
        context.out.warn(f"there is no {path}")
    if answer.trouble:
        context.out.warn(f"incomplete: {answer.trouble}")
        return INCOMPLETE
    something = answer.rows or answer.taken.files or answer.taken.left_out_count
    return NothingMatched.exit_code if answer.absent and not something else INCOMPLETE if answer.absent else 0
