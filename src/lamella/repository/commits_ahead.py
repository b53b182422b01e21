"""Fetching commits together, where each of them alone would cost a round trip."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from lamella.errors import StoreError
from lamella.format.commit import CHECKPOINT_EVERY, Head
from lamella.pipeline import ordered_map
from lamella.repository.cache import Cache
from lamella.stores.base import Store

_AT_ONCE = 8


def fetch_ahead(store: Store, cache: Cache, chains: Iterable[Mapping[int, list[Head]]]) -> None:
    """Put the newest commits of each chain into the cache, unless they are there or the store is near.

    What fails is left out: whoever needs it asks again, and says what is wrong. Nothing is checked here.
    """
    if not store.abilities.distant:
        return
    newest = (head for chain in chains for seq in sorted(chain)[-CHECKPOINT_EVERY:] for head in chain[seq])
    missing = [head for head in newest if cache.commit(head.name) is None]

    def fetched(head: Head) -> None:
        try:
            cache.remember_commits([(head.name, store.get(head.name))])
        except StoreError:
            return

    deque(ordered_map(fetched, missing, workers=min(_AT_ONCE, max(1, len(missing)))), maxlen=0)
