"""The objects that one place lists and another does not. Packs, perhaps millions, are compared as listings pass.

Both listings ascend (the contract of stores), so two of them are joined in one pass, and no pack that both places have
is held in memory. Commits, slots, segments and text are few.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from lamella.base.ids import WriterId
from lamella.base.names import COMMITS, QUARANTINE, Part, pack_hash, part_of
from lamella.format.commit import parse_name
from lamella.stores.base import Entry, Store

MOST_MISSING = 50_000
"""Missing packs that one pass gathers; what comes behind them is gathered by the next pass, once they are copied."""


@dataclass(slots=True)
class SmallObjects:
    """The objects of one place that are no packs."""

    sizes: dict[str, int] = field(default_factory=dict)
    commits: dict[tuple[WriterId, int], set[bytes]] = field(default_factory=dict)
    ignored: str = ""
    """A name that belongs to no repository, if there is one."""

    def add(self, entry: Entry) -> None:
        """Take an object in."""
        part = part_of(entry.name)
        if not part:
            if not entry.name.startswith(QUARANTINE):  # what a repair, or a mending mirror, set aside
                self.ignored = self.ignored or entry.name
            return
        self.sizes[entry.name] = entry.size
        head = parse_name(entry.name) if part == Part.COMMIT else None
        if head is not None:
            self.commits.setdefault((head.writer, head.seq), set()).add(head.sha256)


@dataclass(slots=True)
class ComparedPlaces:
    """Two places beside each other. Sizes are in bytes."""

    here: SmallObjects = field(default_factory=SmallObjects)
    there: SmallObjects = field(default_factory=SmallObjects)
    missing: list[Entry] = field(default_factory=list)
    """The first packs that are not there, at most MOST_MISSING."""
    missing_packs: int = 0
    missing_pack_bytes: int = 0
    common_packs: int = 0
    extra_packs: int = 0
    first_extra: str = ""
    """The first pack that is there and not here."""
    resized: list[tuple[str, int, int]] = field(default_factory=list)
    """Names that both places have with different sizes: the name, the size there, the size here."""

    @property
    def shared(self) -> int:
        """The number of objects that both places have."""
        return self.common_packs + len(self.here.sizes.keys() & self.there.sizes.keys())

    @property
    def extra(self) -> int:
        """The number of objects that only the other place has."""
        return self.extra_packs + len(self.there.sizes.keys() - self.here.sizes.keys())

    def lacking(self) -> list[Entry]:
        """The objects that are not there and no packs."""
        return [Entry(name, size) for name, size in sorted(self.here.sizes.items()) if name not in self.there.sizes]

    def _pack(self, here: Entry | None, there: Entry | None, without: Collection[str]) -> None:
        if here is None:
            self.extra_packs += 1
            self.first_extra = self.first_extra or ("" if there is None else there.name)
        elif there is not None:
            self.common_packs += 1
            if here.size != there.size:
                self.resized.append((here.name, there.size, here.size))
        elif here.name not in without:
            self.missing_packs += 1
            self.missing_pack_bytes += here.size
            if len(self.missing) < MOST_MISSING:
                self.missing.append(here)


def compare(
    source: Store, target: Store, commits: Sequence[Entry] | None = None, without: Collection[str] = ()
) -> ComparedPlaces:
    """The objects that the target lacks of the source, but for the packs `without`.

    The commits of the source are listed before its packs, so that every pack they need is listed, too: here, or by
    whoever gives them as `commits`. Raises StoreError.
    """
    found = ComparedPlaces()
    for entry in list_commits(source) if commits is None else commits:
        found.here.add(entry)
    for here, there in joined(source.list(""), target.list("")):
        if pack_hash((here or there or Entry("", 0)).name) is not None:
            found._pack(here, there, without)
            continue
        if here is not None and not here.name.startswith(COMMITS):
            found.here.add(here)
        if there is not None:
            found.there.add(there)
    small = found.here.sizes.items()
    found.resized += [(name, found.there.sizes[name], size) for name, size in small if _differs(found, name, size)]
    return found


def list_commits(store: Store) -> list[Entry]:
    """Every commit that a store lists, in order. Raises StoreError."""
    return sorted(store.list(COMMITS), key=lambda entry: entry.name)


def _differs(found: ComparedPlaces, name: str, size: int) -> bool:
    return found.there.sizes.get(name, size) != size


def joined(one: Iterator[Entry], other: Iterator[Entry]) -> Iterator[tuple[Entry | None, Entry | None]]:
    """The entries of two ascending listings, those of one name together."""
    here, there = next(one, None), next(other, None)
    while here is not None or there is not None:
        if there is None or (here is not None and here.name < there.name):
            yield here, None
            here = next(one, None)
        elif here is None or there.name < here.name:
            yield None, there
            there = next(other, None)
        else:
            yield here, there
            here, there = next(one, None), next(other, None)
