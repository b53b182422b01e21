"""Adding up what few records say, and what it changes: removals, handovers, expulsions, losses (FORMAT 8, State).

Most of them count only with the prune key's signature.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from lamella.base.ids import WriterId
from lamella.crypto.derive import Keys
from lamella.crypto.sign import verified
from lamella.format.commit import ChainEntry, writer_id
from lamella.format.deletion import Audited, Condemn, Forgo, Reaped, Remove, RemoveLast, Rescue, Retire, Revive
from lamella.format.lost import BAD_BYTES, Bad, Lost
from lamella.format.owners import Admit, Expel, Give, Join, Readmit, Succeeds, succession_message
from lamella.format.records import AddSnap, Ref
from lamella.history.catalogue import Catalogue, Removal, Series, Snapshot
from lamella.history.history import Chain, History
from lamella.history.order import RecordPlace, Row
from lamella.history.records import prune_signed
from lamella.history.state import Builder

BAD_COUNTED = 65_536
"""Addresses in BAD records that count of each writer, the newest: as many as one verification publishes."""
_SIGNED = (Condemn, Rescue, Reaped, Retire, Audited, Forgo, Revive, Join, Give, Expel, Readmit, Admit)


class FullBuilder(Builder):
    """Adds up everything."""

    def __init__(self, keys: Keys, history: History, own: WriterId | None) -> None:
        super().__init__(keys, history, own)
        self._revived: dict[Ref, Ref] = {}
        self._counting: dict[WriterId, Callable[[ChainEntry], bool]] = {}
        self._void: set[RecordPlace] = set()

    def build(self) -> Catalogue:
        """Add everything up."""
        chains = self._history.chains
        if any(entry.record.type == Expel.TYPE for chain in chains.values() for entry in chain.entries):
            self._expel(list(chains.values()))
        result = super().build()
        result.bad = frozenset(one for _, known in self._of(Bad) for one in known.addresses)
        heads = result.expelled
        result.sessions = [
            row for row in result.sessions if row.writer not in heads or row.seq <= heads[row.writer].seq
        ]
        return result

    # -- reading -------------------------------------------------------------------------------------------------------

    def _expel(self, chains: list[Chain]) -> None:
        from lamella.history.expelled import counts_in, expelled, expulsions  # few repositories have any

        self._result.expulsions = expulsions(self._keys, chains)
        self._result.expelled = expelled(self._result.expulsions, chains)
        for chain in chains:
            if chain.writer in self._result.expelled:
                self._counting[chain.writer] = counts_in(chain, self._result.expelled[chain.writer])

    def _left_out(self, chain: Chain) -> Collection[int]:
        found = _old_bad(chain.entries)
        for position, entry in enumerate(chain.entries if chain.writer in self._counting else ()):
            if self._is_void(chain, entry):
                # The data of a snapshot stays needed until somebody deletes that.
                if entry.record.type == AddSnap.TYPE:
                    self._void.add(RecordPlace(chain.writer, entry.seq, position))
                else:
                    found.add(position)
        return found

    def _is_void(self, chain: Chain, entry: ChainEntry) -> bool:
        """Whether an expelled writer said it when its word did not count any more."""
        return not self._counting[chain.writer](entry) and not prune_signed(self._keys, chain.writer, entry)

    # -- writers and owners --------------------------------------------------------------------------------------------

    def _writers(self) -> None:
        super()._writers()
        for row, gone in self._of(Retire):
            if self._is_signed(row):
                self._result.retired[gone.head.writer] = gone.head
        self._result.retired |= self._result.expelled
        for kind in _SIGNED:
            for row in self._rows[kind]:
                if not self._is_signed(row):
                    word = kind.__name__.upper()
                    self._result.notes.append(f"{row.where}: {word} without the prune key's signature: not believed")

    def _handovers(self) -> Iterable[tuple[WriterId, WriterId]]:
        handovers = [(known.new, known.old) for row, known in self._of(Join) if self._is_signed(row)]
        for row, said in self._of(Succeeds):
            message = succession_message(self._keys.root, row.place.writer)
            if row.place.seq == 1 and verified(said.public, said.signature, message):
                handovers.append((row.place.writer, writer_id(said.public)))
            else:
                self._result.notes.append(f"{row.where}: SUCCEEDS without the other writer's signature: not believed")
        return handovers

    def _owners(self) -> None:
        super()._owners()
        for row, given in self._of(Give):
            if self._is_signed(row):
                self._created[given.volume_id].add(given.writer)

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def _of_removes(self) -> list[tuple[Row, Remove]]:
        return [*self._of(Remove), *self._of(RemoveLast)]

    def _added(self) -> list[tuple[Row, AddSnap]]:
        """Every snapshot that was ever published: by its author, or anew by who holds the prune key."""
        revived = [(row, known.added) for row, known in self._of(Revive) if self._is_signed(row)]
        return [*super()._added(), *revived]

    def _removals(self) -> None:
        added = {Ref(row.place.writer, row.place.seq, known.snap_id): known for row, known in self._added()}
        commits: dict[Ref, set[tuple[WriterId, int]]] = defaultdict(set)
        times: dict[Ref, int] = defaultdict(int)
        last: set[Ref] = set()
        for row, known in self._of_removes():
            if self._is_signed(row):
                for ref in known.refs:
                    commits[ref].add((row.place.writer, row.place.seq))
                    times[ref] = max(row.entry.time_ms, times[ref])
                last |= {*known.refs} if isinstance(known, RemoveLast) else set()
        for row, revive in self._of(Revive):
            if self._is_signed(row):
                self._revived[Ref(row.place.writer, row.place.seq, revive.added.snap_id)] = revive.removed
        revived = {*self._revived.values()}
        for ref in sorted(commits):
            said, was = tuple(sorted(commits[ref])), added.get(ref)
            removal = Removal(ref, was, said, times[ref], ref in last, ref in revived)
            if was is not None:
                removal = replace(removal, series=self._series(was.volume_id, self._first(ref).writer))
            self._result.removed[ref] = removal

    def _snapshots(self) -> dict[Ref, Snapshot]:
        found = super()._snapshots()
        for row, known in self._of_removes():
            marked = [found[ref] for ref in known.refs if ref in found]
            if self._is_signed(row) or not marked:
                continue
            for snapshot in marked:
                snapshot.marked_removed = True
            count = f"{len(marked)} snapshot{'' if len(marked) == 1 else 's'}"
            self._result.notes.append(f"{row.where} marks {count} as removed; without the prune key they stay")
        return found

    def _place(self, made: Snapshot, row: Row) -> None:
        made.revived = made.ref in self._revived
        super()._place(made, row)
        if row.place in self._void:
            made.expelled, made.counts = True, False
            made.series = Series(made.added.volume_id, made.ref.writer)

    def _first(self, ref: Ref) -> Ref:
        """The snapshot as its author published it, before any REVIVE."""
        passed = {ref}
        while (before := self._revived.get(ref, ref)) not in passed:
            passed.add(before)
            ref = before
        return ref

    def _label(self, snapshots: Mapping[Ref, Snapshot]) -> None:
        super()._label(snapshots)
        if self._rows[Lost]:
            self._labels(snapshots).losses(self._of(Lost))


def _old_bad(entries: Sequence[ChainEntry]) -> set[int]:
    """The BAD records before the newest addresses of a writer that count: a flood costs its reader no more."""
    found: set[int] = set()
    left = BAD_COUNTED
    for position in range(len(entries) - 1, -1, -1):
        if entries[position].record.type == Bad.TYPE:
            left -= len(entries[position].record.value) // BAD_BYTES
            if left < 0:
                found.add(position)
    return found
