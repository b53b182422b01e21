"""Fetching commits together, where each of them alone would cost a round trip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lamella.base.errors import StoreError
from lamella.format.commit import Head
from lamella.run.pipeline import ordered_map
from lamella.stores.base import Store

_AT_ONCE = 8


def fetch_ahead(store: Store, heads: Iterable[Head]) -> Iterator[tuple[Head, bytes]]:
    """These commits as the store gives them; nothing is checked.

    What fails is left out: whoever needs it asks again, and says what is wrong.
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
