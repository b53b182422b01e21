"""The Store contract: names and sealed bytes, nothing else.

Names are relative, lower-case ASCII, parts of `[a-z0-9._-]` joined by `/`, at most 255 bytes, no part empty or starting
with `.`; they are checked in both directions. `lamella_kit.store_contract` is the contract as a test suite; every
store and every wrapper passes it.

Durability: after `sync` returns, every earlier `put` and `delete` survives a power cut; before that, any subset may.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lamella.base.errors import StoreError, StoreRefused
from lamella.base.trust import Clear, Sealed

if TYPE_CHECKING:
    from lamella.stores.held import Held

MAX_NAME = 255
MOST_PACKS, MOST_OTHERS = 1 << 24, 1 << 20
"""Names in a listing, at most. Whoever may add objects may also add some of invalid names: as many as others."""
_NAME = re.compile(r"[a-z0-9_-][a-z0-9._-]*(?:/[a-z0-9_-][a-z0-9._-]*)*")


@dataclass(frozen=True)
class Abilities:
    """Promises of a store beyond the contract; callers choose their procedure by them (FORMAT 8, 13.11)."""

    exclusive_lock: bool
    """`lock` is released by the kernel when its holder dies, on a file system known to do it right."""
    delete: bool
    """`delete` is allowed."""
    write: bool
    """`put` is allowed."""
    immutable: bool = False
    """The far side enforces that this client can neither replace nor remove an existing object."""
    distant: bool = False
    """A round trip costs more than the data in it: callers ask several things at once, and nothing twice."""
    cold_from: int = 0
    """Packs of so many bytes and more may have to be thawed one day: nothing that a listing, a prune or the next backup
    reads lies in them. 0: nothing has to be (docs/decisions/0100).
    """
    weaker: tuple[str, ...] = ()
    """Where the contract is not kept, in words: what this far side cannot be asked to do."""


class Entry(NamedTuple):
    """One listed object: its name and size in bytes."""

    name: str
    size: int


def checked_name(name: str) -> str:
    """Return `name` if it is a valid object name; raise StoreRefused otherwise."""
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise StoreRefused(f"not a valid object name: {name[:300]!r}", obj=name[:300])
    return name


def range_end(name: str, size: int, offset: int, length: int | None) -> int:
    """Return the offset one past the last byte asked for, in an object of `size` bytes.

    Raises StoreError when the range is negative or does not lie wholly inside the object.
    """
    if offset < 0 or (length is not None and length < 0):
        raise StoreError(f"not a byte range: offset {offset}, length {length}", obj=name)
    end = size if length is None else offset + length
    if offset > size or end > size:
        raise StoreError(f"object ends at byte {size}, before the range asked for ({offset}+{length})", obj=name)
    return end


def checked_prefix(prefix: str) -> str:
    """Return `prefix` if it is empty or a valid name followed by `/`; raise StoreRefused otherwise."""
    if prefix:
        if not prefix.endswith("/"):
            raise StoreRefused(f"a listing prefix ends in '/': {prefix[:300]!r}", obj=prefix[:300])
        checked_name(prefix[:-1])
    return prefix


def most_names(prefix: str) -> int:
    """The number of names that a listing below a prefix may have (FORMAT 1): packs are many, everything else is few."""
    return MOST_PACKS if prefix.startswith("p/") else MOST_PACKS + 2 * MOST_OTHERS if not prefix else MOST_OTHERS


def ascending(entries: Iterable[Entry], prefix: str) -> Iterator[Entry]:
    """The same entries, as a listing must give them: whoever reads it need not remember the names.

    Raises StoreError for a name that is not below the prefix or not behind the one before it, and for too many names.
    """
    before, left = prefix, most_names(prefix)
    for entry in entries:
        left -= 1
        if entry.name <= before or not entry.name.startswith(prefix) or left < 0:
            why = "lists more than a repository has" if left < 0 else "does not list names once and in their order"
            raise StoreError(f"the store {why}", obj=prefix)
        before = entry.name
        yield entry


def put_durable(store: Store, name: str, content: Sealed | Clear) -> None:
    """`put`, then `sync`; with one wait where the store can do so. Raises as they do."""
    at_once = getattr(store, "put_durable", None)
    if at_once is not None:
        at_once(name, content)
    else:
        store.put(name, content)
        store.sync()


class Store(Protocol):
    """A place for immutable objects. All methods may be called from several threads at once."""

    @property
    def url(self) -> str:
        """Where this store is, in the form a user would give it."""

    @property
    def abilities(self) -> Abilities:
        """Promises of this store beyond the contract."""

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store an object, all or nothing.

        An existing object with equal bytes is success; with other bytes StoreRefused. Raises StoreFull,
        StoreUnavailable.
        """

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly `length` bytes from `offset` (all from there when None).

        Raises ObjectNotFound; StoreError when the object ends before `offset + length`.
        """

    def stat(self, name: str) -> int:
        """Return the object's size in bytes. Raises ObjectNotFound."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects whose name starts with `prefix` (whole parts: empty, or ending in `/`), ascending.

        Objects with invalid names are left out; more than MOST_OTHERS of them end the listing with StoreRefused. Sees
        all own synced writes.
        """

    def delete(self, name: str) -> None:
        """Remove an object; no error if there is none."""

    def sync(self) -> None:
        """Return when every earlier put and delete is durable."""

    def lock(self, *, exclusive: bool, wait_seconds: float = 0.0) -> AbstractContextManager[Held | None]:
        """Hold the repository's lock, shared or exclusive, while the context lasts.

        A store whose lock can be lost gives a `Held`.

        Released by the kernel if the holder dies (where `abilities.exclusive_lock`). Raises Locked when not had within
        `wait_seconds`.
        """

    def close(self) -> None:
        """Release connections and descriptors; the store is unusable afterwards."""
