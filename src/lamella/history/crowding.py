"""How many hosts may write to one repository (FORMAT, Bounds). Readers refuse none: a flood must stop nobody."""

from __future__ import annotations

from lamella.base.errors import RepositoryError
from lamella.history.log import Log

MAX_WRITERS = 256


def active_writers(log: Log) -> int:
    """How many there are, those that an admin retired or expelled left out."""
    return len(log.history.chains.keys() - log.catalogue.retired.keys())


def require_room(log: Log) -> None:
    """Raises RepositoryError where a new writer is one too many, unless an admin's secret is there."""
    if active_writers(log) >= MAX_WRITERS and log.keys.prune_seed is None:
        hint = "an admin removes writers that are not needed with: lamella check --expel"
        raise RepositoryError(f"{MAX_WRITERS} hosts write here, and no more may", obj=log.store.url, hint=hint)
