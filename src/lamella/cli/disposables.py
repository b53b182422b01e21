"""`--in QUBE`, `--paranoid`: a repository whose volumes and documents are opened in disposables (decision 0060)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lamella.cli.commands.qubes.qubesd import admin_of
from lamella.cli.context import Context
from lamella.qubes.paranoid.disposable import decoded_in_disposables
from lamella.repository.repository import Repository


@contextmanager
def decoding(context: Context, repository: Repository) -> Iterator[None]:
    """While this lasts. Raises UsageError outside dom0, and without a template for disposables; SourceError."""
    with decoded_in_disposables(admin_of(context), repository, context.args.inside) as left:
        for name in left:
            context.out.say(f"{name}: left by an earlier run, ended")
        yield
