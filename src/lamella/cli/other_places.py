"""Names on the command line that stand for a repository by way of something else: a host of a fleet, a set of media."""

from __future__ import annotations

from lamella.cli.configuration import RepositorySettings
from lamella.cli.context import Context
from lamella.cli.fleet.hosts import place_of
from lamella.cli.media import served


def other_place(context: Context, text: str) -> tuple[str, RepositorySettings | None]:
    """The URL and the settings of the repository that `fleet:HOST`, or the medium that is present, stands for."""
    return place_of(context.env, text) if text.startswith("fleet:") else context.named_place(served(context, text))
