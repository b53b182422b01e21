"""A store as the configuration wants it: the very repository that was configured, and no faster than is allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.base.errors import Absent, LamellaError, NoRepository
from lamella.repository.slots import read_marker
from lamella.stores.base import Store

if TYPE_CHECKING:
    from lamella.cli.context import Context


def settled(context: Context, store: Store) -> Store:
    """The store with the settings of its repository. Raises RepositoryError if another repository is in its place."""
    settings, rate = context.settings, context.args.limit_rate
    if settings is not None:
        rate = rate or settings.limit_rate
        if settings.id is not None:
            try:
                _require_id(context, store, settings.id)
            except LamellaError:
                store.close()
                raise
    if rate is None:
        return store
    from lamella.stores.wrap.limited import LimitedStore, TokenBucket  # only where a rate was given

    return LimitedStore(store, TokenBucket(rate if isinstance(rate, int) else rate.now))


def _require_id(context: Context, store: Store, wanted: str) -> None:
    try:
        found = read_marker(store).repo_id.hex()
    except NoRepository:
        return  # whoever needs a repository finds that out by itself
    if found != wanted:
        from lamella.cli.media import stranger  # only for what should not be there

        kind = Absent if context.args.if_available else NoRepository
        raise stranger(context, store.url, found, kind)
