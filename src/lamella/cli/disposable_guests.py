"""Disposable qubes that mount a snapshot for `lamella files` (decision 0084)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from lamella.cli.commands.qubes.qubesd import admin_of
from lamella.cli.context import Context
from lamella.operations.access.guest import Guest
from lamella.operations.access.guest_start import GuestRequest
from lamella.qubes.inside.guest import started_in
from lamella.qubes.paranoid.disposable import Disposables
from lamella.repository.repository import Repository
from lamella.run.waking import Ending


@contextmanager
def guests(
    context: Context, repository: Repository
) -> Iterator[Callable[[Sequence[str], GuestRequest], AbstractContextManager[Guest]]]:
    """Starts disposables that take the place of small guests. Raises UsageError without a template; SourceError."""
    with Ending() as ending:
        disposables = Disposables(admin_of(context), repository, context.args.inside, ending)
        for name in disposables.end_left_running():
            context.out.say(f"{name}: left by an earlier run, ended")
        yield partial(started_in, disposables)
