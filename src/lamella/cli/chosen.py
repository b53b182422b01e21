"""The snapshot that a reading command was asked for, and how it is shown."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from lamella.base.clock import iso
from lamella.base.errors import NothingMatched, RolledBack
from lamella.cli.arguments import lazy
from lamella.cli.context import Context
from lamella.cli.local_time import shown_time
from lamella.operations.shared.selection import Selected, doubts, select, split_selector
from lamella.repository.repository import Repository
from lamella.sources.base import Consistency


def chosen(repository: Repository, text: str) -> Selected:
    """The snapshot. Raises NothingMatched; RolledBack where that snapshot, or a newer one, may be missing.

    A full name is never in doubt, whatever else is missing.
    """
    try:
        selected = select(repository, [text])[0]
    except NothingMatched as error:
        if not repository.problems:
            raise
        message, hint = f"{error.message}; {repository.problems[0].message}", repository.problems[0].remedy
        raise RolledBack(message, obj=repository.store.url, hint=hint) from error
    doubtful = doubts(repository, selected.volume)
    if doubtful and split_selector(text)[1] != selected.snapshot.name:
        hint = f"to use it nevertheless, name it in full: {selected.text}; {doubtful[0].remedy}"
        raise RolledBack(doubtful[0].message, obj=repository.store.url, hint=hint)
    return selected


def shown_snapshot(repository: Repository, selected: Selected) -> str:
    """The snapshot with its time and its writer, so that a person can see which snapshot it is."""
    ref = selected.snapshot.ref
    writer = repository.catalogue.writers.get(ref.writer)
    by = writer.label if writer is not None and writer.label else ref.writer.hex()[:8]
    return f"{selected.text}, of {shown_time(iso(selected.snapshot.added.time_ms))}, written by {by}"


def warn_of_no_moment(context: Context, selected: Selected) -> None:
    """Warn of a snapshot that mixes several moments, before anybody relies on the disk."""
    if selected.snapshot.added.consistency == Consistency.CHANGED:
        context.out.warn(f"{selected.text} changed while it was read, and may not start")


def add_thaw(parser: ArgumentParser) -> None:
    """Consent to thawing, for commands that read what a service may keep cold."""
    group = parser.add_argument_group("packs in a class from which the service must thaw them (s3: cold-after=)")
    parser.set_defaults(yes=False)
    group.add_argument("--thaw", action="store_true", help="have them thawed, at a charge, and wait")
    group.add_argument(
        "--thaw-tier", choices=("standard", "bulk", "expedited"), default="standard", help="how fast (default standard)"
    )
    group.add_argument(
        "--thaw-days", type=lazy("days"), default=7, metavar="N", help="keep the thawed copies for N days (default 7)"
    )


def thaw_first(context: Context, repository: Repository, selected: Sequence[Selected]) -> dict[str, object]:
    """Have what must be thawed before it can be read thawed first; for the document, what that was."""
    if not repository.store.url.startswith("s3:"):
        return {}
    from lamella.cli.thawing import thaw_first as ask_and_wait  # only services have such classes

    return ask_and_wait(context, repository, selected)
