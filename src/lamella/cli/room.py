"""What gives a full destination room."""

from __future__ import annotations

from lamella.base.errors import LamellaError, StoreFull
from lamella.repository.repository import Repository


def explained(error: LamellaError, repository: Repository) -> LamellaError:
    """The error that ended a run; of a full destination with what helps: without older snapshots no prune does."""
    volumes = repository.catalogue.volumes.values()
    if isinstance(error, StoreFull) and any(sum(one.counts for one in row.snapshots) > 1 for row in volumes):
        error.hint = "make room there, or remove older snapshots (see: lamella prune -n); then run the command again"
    return error
