"""Having a repository to oneself: for the few commands that delete or move objects."""

from __future__ import annotations

from contextlib import suppress

from lamella.base.errors import IntegrityError
from lamella.repository.repository import Repository


def lock_exclusively(repository: Repository, wait_seconds: float = 0.0) -> None:
    """Exchange the shared lock for the exclusive one, and look at everything again. Raises Locked, StoreError.

    In between others may have written; when it fails, no lock is held any more.
    """
    repository.hold(exclusive=True, wait_seconds=wait_seconds)
    look_again(repository)


def look_again(repository: Repository) -> None:
    """Read the whole history and the listing of packs again, whatever was known. Raises StoreError."""
    repository.packs.fresh = False
    repository.reload(whole=True)
    with suppress(IntegrityError):  # no packs at all: the snapshots will show it
        repository.refresh_map()
