"""Fetching commits together, from a store whose round trips cost more than the data in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lamella.base.errors import StoreError
from lamella.format.commit import Head
from lamella.run.pipeline import ordered_map
from lamella.stores.base import Store

_AT_ONCE = 8


def fetch_ahead(store: Store, heads: Iterable[Head]) -> Iterator[tuple[Head, bytes]]:
    """Fetch commits together where each alone would cost a round trip. Nothing is checked.

    Commits that cannot be fetched are left out: the reader asks for them again and reports the error.
    """
    wanted = list(heads)

    def fetched(head: Head) -> tuple[Head, bytes] | None:
        try:
            return head, store.get(head.name)
        except StoreError:
            return None

    for found in ordered_map(fetched, wanted, workers=min(_AT_ONCE, max(1, len(wanted)))):
        if found is not None:
            yield found
