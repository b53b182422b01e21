"""`lamella backup --scrub`: which files are left out, and the guest that takes them out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from lamella.base.durable import make_private
from lamella.base.errors import LamellaError
from lamella.base.events import silent
from lamella.cli.context import Context
from lamella.operations.access.files import How
from lamella.operations.access.guest_kernel import find_kernel
from lamella.operations.access.scrub import Scrubber, scrub_patterns

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
