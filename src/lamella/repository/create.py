"""Making a repository: everything else first, the marker last, so that a broken-off `init` leaves none (FORMAT 1)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from lamella.base.clock import Clock
from lamella.base.errors import ObjectNotFound, RepositoryError
from lamella.base.ids import RepoId
from lamella.base.names import README, RESCUE
from lamella.base.trust import Clear, Opened
from lamella.crypto.algorithms import faster_algorithm
from lamella.crypto.derive import Keys
from lamella.crypto.new_slots import DEFAULT_LOG_N, new_keys, wrap
from lamella.crypto.slots import Secret
from lamella.format import commit, keyslot, marker
from lamella.format.records import File
from lamella.history.chains import HistoryReader
from lamella.history.compaction import Ended
from lamella.history.history import History
from lamella.history.publish import Publisher
from lamella.memory.host import Host
from lamella.memory.pins import Pins
from lamella.packs.cache import Cache
from lamella.repository.readme import readme_text, rescue_source
from lamella.stores.base import Store


@dataclass(frozen=True, slots=True)
class Created:
    """A repository that was just made."""

    repo_id: RepoId
    marker: marker.Marker
    rescue_sha256: str


@dataclass(frozen=True, slots=True)
class SlotWanted:
    """A slot to make: who opens it, and whether its holder may authorise deletion."""

    secret: Secret
    admin: bool


def create_repository(
    store: Store, host: Host, slots: Sequence[SlotWanted], clock: Clock, *, log_n: int = DEFAULT_LOG_N, id_alg: int = 0
) -> Created:
    """Make a repository with these key slots. `id_alg` 0 measures which is faster here.

    Raises RepositoryError if something is there already, StoreError.
    """
    with store.lock(exclusive=True):
        _clear_way(store)
        mark, bundle = new_keys(id_alg or faster_algorithm())
        objects: dict[str, Clear] = {README: readme_text(), RESCUE: rescue_source()}
        for wanted in slots:
            slot = wrap(mark, wanted.secret, bundle, admin=wanted.admin, log_n=log_n)
            objects[slot.name] = slot.encode()
        for name, content in objects.items():
            store.put(name, content)
        objects[marker.NAME] = mark.encode()
        _first_commit(store, host, Keys(mark, bundle), objects, clock)
        store.put(marker.NAME, mark.encode())
        store.sync()
    return Created(mark.repo_id, mark, hashlib.sha256(objects[RESCUE]).hexdigest())


def file_record(name: str, content: bytes) -> File:
    """The record that says what a clear object must be."""
    return File(name, len(content), hashlib.sha256(content).digest())


def _first_commit(store: Store, host: Host, keys: Keys, objects: dict[str, Clear], clock: Clock) -> None:
    memory = host.memory(keys.marker.repo_id)
    files = [file_record(name, content) for name, content in sorted(objects.items())]
    with closing(Cache.open(None)) as cache:
        reader = HistoryReader(store, keys, cache, lambda place: Opened(b""))
        Publisher(store, keys, memory, Pins(memory), reader).publish(History(), files, clock, Ended)


def _clear_way(store: Store) -> None:
    """Remove what a broken-off init left; refuse where anything else is."""
    try:
        store.stat(marker.NAME)
    except ObjectNotFound:
        pass
    else:
        raise RepositoryError(f"there is already a repository at {store.url}", obj=store.url)
    leftovers: list[str] = []
    for entry in store.list(""):
        head = commit.parse_name(entry.name)
        ours = entry.name in (README, RESCUE) or (entry.name.startswith(keyslot.PREFIX) and entry.size == keyslot.SIZE)
        if not ours and not (head is not None and head.seq == 1):
            hint = "choose an empty or new directory"
            raise RepositoryError(f"{store.url} holds something else: {entry.name}", obj=store.url, hint=hint)
        leftovers.append(entry.name)
    for name in leftovers:
        store.delete(name)
