"""What a checkpoint need not repeat, because it has no effect any more (FORMAT 8, CHECKPOINT): pure.

Both sides use the same rules: the writer to leave records out, the auditor to judge what was left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lamella.base.ids import WriterId
from lamella.format.commit import ChainEntry
from lamella.format.deletion import Audited, Remove, RemoveLast, Revive
from lamella.format.inner import Origin
from lamella.format.known import Known
from lamella.format.labels import Pin, Tag
from lamella.format.lost import Lost
from lamella.format.records import UNSIGNED, AddSnap, Confirm, RawRecord, Ref, Run, raw
from lamella.format.sessions import Abandon, Session
from lamella.history.history import AUDITS_KEPT, Chain, History
from lamella.history.open_sessions import open_sessions
from lamella.history.order import Clock
from lamella.history.records import decoded

COPIES_REMEMBERED_MS = 400 * 86_400_000
"""How long removed copies are remembered, from their moment; an auditor allows for a month less."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Which snapshots are no more, as far as it matters to checkpoints."""

    removed: Collection[Ref] = frozenset()
    """Those that validly signed records in the history remove."""
    begins: Mapping[WriterId, int] = field(default_factory=dict)
    """By writer, the seq of the audited checkpoint with which its chain begins."""
    live: Collection[Ref] = frozenset()
    """Those that are there."""
    buried: Collection[Ref] = frozenset()
    """Those whose tombstones may go, too."""
    revivable: Collection[Ref] = frozenset()
    """Removed ones that the writer of a checkpoint still carries, so that REVIVE can bring them back."""
    forget_ms: int = 0
    """Removed copies of moments since then are remembered, so that `copy` does not bring them back."""

    def is_gone(self, ref: Ref) -> bool:
        """Whether nothing that is said about a snapshot matters any more."""
        return ref in self.removed or (ref not in self.live and ref.seq < self.begins.get(ref.writer, 0))


def begins_of(history: History) -> dict[WriterId, int]:
    """Where chains begin with an audited checkpoint."""
    return {chain.writer: chain.begin.seq for chain in history.chains.values() if chain.begin is not None}


class InForce:
    """Tells which records of one chain are in force, among all its records up to a checkpoint."""

    def __init__(self, writer: WriterId, entries: Sequence[ChainEntry], ended: Ended) -> None:
        self._writer = writer
        self._ended = ended
        self._entries = entries
        known = [(entry, decoded(entry)) for entry in entries]
        self._confirmed = {
            ref for _, one in known if isinstance(one, Confirm) for ref in one.refs if ref.writer == writer
        }
        self._names = {
            added.name
            for entry, one in known
            if (added := _snapshot(one)) is not None and not ended.is_gone(Ref(writer, entry.seq, added.snap_id))
        }
        self._open = {session.session_id for session in open_sessions([Chain(writer, entries=list(entries))])}
        audits = [one.head for _, one in known if isinstance(one, Audited)]
        self._audits = {
            head
            for head in audits
            if sum(head.seq < other.seq for other in {*audits} if other.writer == head.writer) < AUDITS_KEPT
        }

    def kept(self) -> list[ChainEntry]:
        """The entries a checkpoint must carry, in order, without what is superfluous in them."""
        found = (self._kept(entry) for entry in self._entries)
        return [entry for entry in found if entry is not None]

    def _kept(self, entry: ChainEntry) -> ChainEntry | None:
        rule = _RULES.get(entry.record.type)
        known = None if rule is None else decoded(entry)
        if rule is None or known is None:
            return entry  # unknown and malformed records are none of ours to drop
        record = rule(self, entry, known)
        return None if record is None else entry if record == entry.record else entry._replace(record=record)

    # Each rule returns the record as it is kept, None if it is not.

    def _add_snap(self, entry: ChainEntry, known: Known) -> RawRecord | None:
        assert isinstance(known, AddSnap)
        ref = Ref(self._writer, entry.seq, known.snap_id)
        if self._ended.is_gone(ref):
            remembered = known.time_ms >= self._ended.forget_ms and Origin.of(known) is not None
            remembered = remembered or ref in self._ended.revivable
            return raw(known.without_packs()) if remembered else None
        return raw(known.without_packs()) if known.packs and ref in self._confirmed else entry.record

    def _revive(self, entry: ChainEntry, known: Known) -> RawRecord | None:
        """Its signature covers all of it: it goes, or stays as it is."""
        assert isinstance(known, Revive)
        ref = Ref(self._writer, entry.seq, known.added.snap_id)
        return None if self._ended.is_gone(ref) and ref not in self._ended.revivable else entry.record

    def _confirm(self, entry: ChainEntry, known: Known) -> RawRecord | None:
        assert isinstance(known, Confirm)
        refs = tuple(ref for ref in known.refs if ref.writer == self._writer and not self._ended.is_gone(ref))
        return raw(Confirm(refs)) if refs else None

    def _label(self, entry: ChainEntry, known: Known) -> RawRecord | None:
        assert isinstance(known, Tag | Pin | Lost)
        return None if self._ended.is_gone(known.ref) else entry.record

    def _run(self, entry: ChainEntry, known: Known) -> RawRecord | None:
        assert isinstance(known, Run)
        return entry.record if known.name in self._names else None

    def _session(self, entry: ChainEntry, known: Known) -> RawRecord | None:
        assert isinstance(known, Session | Abandon)
        return entry.record if isinstance(known, Session) and known.session_id in self._open else None

    def _audited(self, entry: ChainEntry, known: Known) -> RawRecord | None:
        assert isinstance(known, Audited)
        return entry.record if known.head in self._audits else None

    def _remove(self, entry: ChainEntry, known: Known) -> RawRecord | None:
        """A tombstone goes as a whole: its signature covers all it names. Without one it is a mark on what is there."""
        assert isinstance(known, Remove)
        if entry.record.value[-64:] == UNSIGNED:
            refs = tuple(ref for ref in known.refs if not self._ended.is_gone(ref))
            return raw(Remove(refs)) if refs else None
        return None if all(ref in self._ended.buried for ref in known.refs) else entry.record


_Rule = Callable[[InForce, ChainEntry, Known], RawRecord | None]
_RULES: dict[int, _Rule] = {
    AddSnap.TYPE: InForce._add_snap,
    Confirm.TYPE: InForce._confirm,
    Tag.TYPE: InForce._label,
    Pin.TYPE: InForce._label,
    Lost.TYPE: InForce._label,
    Run.TYPE: InForce._run,
    Session.TYPE: InForce._session,
    Abandon.TYPE: InForce._session,
    Audited.TYPE: InForce._audited,
    Remove.TYPE: InForce._remove,
    RemoveLast.TYPE: InForce._remove,
    Revive.TYPE: InForce._revive,
}


def _snapshot(known: Known | None) -> AddSnap | None:
    return known if isinstance(known, AddSnap) else known.added if isinstance(known, Revive) else None


Atom = tuple[object, ...]
"""The smallest thing a checkpoint can leave out: a record, or one snapshot of a CONFIRM or an unsigned REMOVE."""


def atoms(entries: Iterable[ChainEntry]) -> Counter[Atom]:
    """The meaning of entries, however it is divided into records."""
    found: Counter[Atom] = Counter()
    for entry in entries:
        known = decoded(entry)
        if isinstance(known, Confirm):
            found.update({(Confirm.TYPE, ref): 1 for ref in known.refs})
            continue
        if isinstance(known, Remove) and entry.record.value[-64:] == UNSIGNED:
            found.update({(entry.seq, Remove.TYPE, ref): 1 for ref in known.refs})
            continue
        value = entry.record.value
        if isinstance(known, AddSnap):
            value = known.without_packs().encode_value()
        found[entry.seq, entry.prev, entry.time_ms, entry.record.type, value] += 1
    return found


def differences(
    carried: Iterable[ChainEntry], kept: Iterable[ChainEntry], every: Iterable[ChainEntry]
) -> tuple[int, int]:
    """(what a checkpoint leaves out though it is in force, what it says though no commit said it)."""
    said = atoms(carried)
    lacking = sum(1 for atom in atoms(kept) if atom not in said)
    known = atoms(every)
    invented = sum(1 for atom in said if atom not in known)
    return lacking, invented


def differing_clocks(seqs: Iterable[int], carried: Mapping[int, Clock], true: Mapping[int, Clock | None]) -> int:
    """Commits of which a checkpoint says that they had seen something else than they had."""
    count = 0
    for seq in set(seqs):
        known, said = true.get(seq), carried.get(seq)
        count += said is not None and known is not None and dict(said) != dict(known)
    return count
