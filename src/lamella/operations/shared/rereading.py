"""Reading again what was found bad: only a successful reading clears an address (docs/decisions/0036)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lamella.base.errors import IntegrityError, ObjectCold, StoreError, UnknownFormat
from lamella.base.names import pack_name
from lamella.format.container import Blob
from lamella.format.lost import Address
from lamella.packs.blobmap import Place
from lamella.packs.containers import PackHead
from lamella.packs.heads import genuine_head
from lamella.packs.reach import require_alive
from lamella.repository.repository import Repository
from lamella.run.pipeline import default_workers, ordered_map

MOST_HEADS = 1 << 15
"""Heads that are read where there is a budget: 1 GiB of first reads."""


@dataclass(frozen=True, slots=True)
class Reread:
    """The result of reading again.

    `unread` were beyond the budget, or could not be had for the moment; `read_bytes` are sealed bytes of blobs.
    `reasons` says what is wrong with each bad one.
    """

    bad: frozenset[Address]
    unread: frozenset[Address]
    sound: frozenset[Address]
    read_bytes: int
    reasons: dict[Address, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Pack:
    """One pack on its way: its addresses, its head, what of it is read, and what that showed."""

    pack: bytes
    wanted: set[Address]
    head: PackHead | None = None
    blobs: list[Blob] = field(default_factory=list)
    reasons: dict[Address, str] = field(default_factory=dict)
    unread: set[Address] = field(default_factory=set)


def reread(repo: Repository, addresses: Iterable[Address], budget_bytes: int | None = None) -> Reread:
    """Read these addresses from the store, heads first, and at most `budget_bytes` of blobs (None: all).

    What is bad or sound is bad or sound to the blob map from then on. Everything in a pack that is gone, or whose head
    does not open, is bad. What a head that opens does not name is sound: nobody looks for it there. Raises
    StoreUnavailable when the store as a whole is out of reach.
    """
    return _Rereading(repo, budget_bytes).run(addresses)


class _Rereading:
    def __init__(self, repo: Repository, budget_bytes: int | None) -> None:
        self._repo = repo
        self._left = budget_bytes
        self._read_bytes = self._heads = 0

    def run(self, addresses: Iterable[Address]) -> Reread:
        packs: dict[bytes, set[Address]] = {}
        for one in addresses:
            packs.setdefault(one.pack, set()).add(one)
        sound: set[Address] = set()
        unread: set[Address] = set()
        reasons: dict[Address, str] = {}
        workers = default_workers()
        rows = (_Pack(pack, packs[pack]) for pack in sorted(packs))
        heads = ordered_map(self._head, map(self._counted, rows), workers=workers)
        for row in ordered_map(self._read, self._afforded(heads), workers=workers):
            good = row.wanted - row.reasons.keys() - row.unread
            self._remember(row, good)
            sound |= good
            unread |= row.unread
            reasons |= row.reasons
        return Reread(frozenset(reasons), frozenset(unread), frozenset(sound), self._read_bytes, reasons)

    def _counted(self, row: _Pack) -> _Pack:
        """The same pack; with a budget nothing is read beyond a number of heads."""
        self._heads += 1
        if self._left is not None and self._heads > MOST_HEADS:
            row.unread |= row.wanted
        return row

    def _head(self, row: _Pack) -> _Pack:
        if row.unread:
            return row
        name = pack_name(row.pack)
        try:
            row.head = genuine_head(self._repo.store, self._repo.keys, name)
        except (IntegrityError, UnknownFormat, StoreError) as error:
            self._failed(row, row.wanted, error)
        return row

    def _afforded(self, rows: Iterable[_Pack]) -> Iterator[_Pack]:
        """The same packs; what of their blobs the budget allows is to be read."""
        for row in rows:
            wanted = {(one.kind, one.id) for one in row.wanted}
            for blob in [] if row.head is None else row.head.blobs:
                if (blob.kind, blob.id) not in wanted:
                    continue
                if self._left is not None and blob.sealed_length > self._left:
                    row.unread.add(Address(row.pack, blob.kind, blob.id))
                    continue
                self._left = None if self._left is None else self._left - blob.sealed_length
                self._read_bytes += blob.sealed_length
                row.blobs.append(blob)
            yield row

    def _read(self, row: _Pack) -> _Pack:
        for blob in row.blobs if row.head is not None else ():
            assert row.head is not None
            try:
                self._repo.contents.open_at(Place(row.pack, row.head.header, row.head.domain_id, blob, own=False))
            except (IntegrityError, UnknownFormat, StoreError) as error:
                self._failed(row, {Address(row.pack, blob.kind, blob.id)}, error)
        return row

    def _failed(self, row: _Pack, addresses: set[Address], error: IntegrityError | UnknownFormat | StoreError) -> None:
        require_alive(self._repo.store, error)
        if error.retryable or isinstance(error, ObjectCold):
            row.unread |= addresses
        else:
            row.reasons |= dict.fromkeys(addresses, error.message)

    def _remember(self, row: _Pack, good: set[Address]) -> None:
        """Tell the blob map."""
        suspects = self._repo.suspects
        bad = [(one.kind, one.id) for one in row.reasons]
        if row.head is None and bad:
            known = self._repo.blobs.directory(row.pack)
            bad += [] if known is None else [(blob.kind, blob.id) for blob in known.blobs]
        if bad:
            suspects.mark(row.pack, bad)
        opened = {(blob.kind, blob.id) for blob in row.blobs}
        cleared = [(one.kind, one.id) for one in good if (one.kind, one.id) in opened]
        if cleared:
            suspects.clear(row.pack, cleared)
