"""`lamella backup --scrub` and `lamella qubes backup --scrub`: which files are left out, and who takes them out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

from lamella.base.durable import make_private
from lamella.base.errors import LamellaError
from lamella.base.events import silent
from lamella.cli.context import Context
from lamella.format.records import RawRecord
from lamella.operations.access.files import How
from lamella.operations.access.guest_kernel import find_kernel
from lamella.operations.access.scrub import Scrubber, scrub_patterns
from lamella.repository.repository import Repository
from lamella.sources.base import FrozenVolume

_SECONDS = 600
"""Longer than removing takes on a slow machine without KVM; then the volume is saved with everything in it."""


def scrubber(context: Context, texts: Sequence[str], kernel: Path | None) -> Scrubber:
    """What takes the files out that these patterns fit. Raises UsageError, LamellaError."""
    patterns = scrub_patterns(list(texts))
    state = context.host.state_dir
    try:
        make_private(state)
    except OSError as error:
        raise LamellaError(f"cannot make {state}: {error.strerror}", obj=str(state)) from error
    folder = Path(context.env.get("TMPDIR") or "/var/tmp")
    find = cache(lambda: find_kernel(kernel))
    if kernel is not None:  # a wrong name is said before anything is frozen
        find()
    how = How(
        find,
        state / "guest-without-kvm",
        context.host.cache_dir / "guest-kernel",
        folder,
        seconds=_SECONDS,
    )
    return Scrubber(patterns, how, silent, context.out.say)


Scrub = Callable[..., "tuple[FrozenVolume, tuple[RawRecord, ...]]"]


@contextmanager
def qubes_scrubber(context: Context, repository: Repository, texts: Sequence[str]) -> Iterator[Scrub | None]:
    """The same in dom0 of Qubes OS, where a disposable qube takes them out of each volume; None for a dry run.

    Raises UsageError for patterns that are none, in a dry run, too.
    """
    if context.args.dry_run:
        scrub_patterns(list(texts))
        yield None
        return
    from lamella.cli.disposable_guests import guests
    from lamella.qubes.sources import QubeSource

    with guests(context, repository) as elsewhere:
        found = scrubber(context, texts, None)
        scrub = replace(found, how=replace(found.how, elsewhere=elsewhere))
        # Settings and dom0's own files are sources, too, and have no files to leave out.
        yield (
            lambda held, source, frozen, warn: (
                scrub(held, source, frozen, warn) if isinstance(source, QubeSource) else (frozen, ())
            )
        )
