"""Chains of commits as they were read (FORMAT 8): what lamella.history.chains finds in w/."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lamella.base.errors import IntegrityError
from lamella.base.ids import WriterId
from lamella.format.commit import Body, ChainEntry, Head
from lamella.format.known import understood
from lamella.format.records import Checkpoint, SegmentPlace
from lamella.history.order import Clock
from lamella.memory.pins import Problem

if TYPE_CHECKING:
    from lamella.format.deletion import Forgo
    from lamella.history.admission import Admission
    from lamella.history.evidence import Evidence

Forgone = dict[WriterId, list["Forgo"]]

AUDITS_KEPT = 2
"""Audited checkpoints of a chain that stay named: if the newer one cannot be read, it begins with the older one."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit whose signature verified."""

    head: Head
    body: Body

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint that this commit carries; None without one, and for a malformed one."""
        for record in self.body.records:
            if record.type == Checkpoint.TYPE:
                with suppress(IntegrityError):
                    known = understood(record)
                    return known if isinstance(known, Checkpoint) else None
        return None


class Unreadable(NamedTuple):
    """An object under a commit's name that does not open. `withheld`: the store could not give its bytes at all."""

    head: Head
    reason: str
    evidence: Evidence | None
    withheld: bool


class Gap(NamedTuple):
    """Commits `first` to `last` of a chain that are not there; `named` are those that the commit after them names."""

    first: int
    last: int
    named: tuple[Head, ...]


@dataclass(slots=True)
class Chain:
    """One writer's commits as far as they were read."""

    writer: WriterId
    commits: list[Commit] = field(default_factory=list)
    """Ascending by seq; several of one seq only in a fork."""
    entries: list[ChainEntry] = field(default_factory=list)
    """Every record of the chain in force, also those that only a checkpoint still carries. CHECKPOINTs excepted."""
    heads: list[Head] = field(default_factory=list)
    forked_at: int = 0
    gaps: list[Gap] = field(default_factory=list)
    base: int = 0
    """The commit with whose checkpoint the entries begin; 0 or 1: they begin with the first commit's own."""
    checkpoint: tuple[int, bytes] = (0, bytes(32))
    carried: Checkpoint | None = None
    """The newest checkpoint's record."""
    clocks: dict[bytes, Clock] = field(default_factory=dict)
    """By SHA-256 of a commit."""
    carried_clocks: dict[int, Clock] = field(default_factory=dict)
    """By seq, of commits that only a checkpoint still carries; without those of which it does not say."""
    carried_parts: list[tuple[SegmentPlace, list[ChainEntry]]] = field(default_factory=list)
    """The segments of the checkpoint that the reading began with, and what is in them."""
    begin: Head | None = None
    """The audited checkpoint with which the chain begins; None: it begins with its first commit."""
    whole: bool = True
    """Read from its beginning."""
    lacking: str = ""
    """Why the newest checkpoint could not be read to its end."""

    @property
    def head(self) -> Head | None:
        """The newest commit; None if no commit of the chain could be read."""
        return self.heads[-1] if self.heads else None


class History:
    """Everything in w/: chains, problems, and objects that could not be opened."""

    def __init__(self) -> None:
        self.chains: dict[WriterId, Chain] = {}
        """The chains of which a commit could be read."""
        self.problems: list[Problem] = []
        self.unreadable: list[Unreadable] = []
        """Objects that do not open. What follows from them is in `problems`, `damaged` and `notes`."""
        self.damaged: list[tuple[str, str]] = []
        """Commits that do not open, and checkpoints that lack a part, with the reason."""
        self.notes: list[str] = []
        """Objects under commits' names of which nothing shows that they ever were commits, or that are given up."""
        self.unexplained: list[str] = []
        """Names of the former. A commit of which nothing is left would look the same."""
        self.audits: dict[WriterId, list[Head]] = {}
        """Checkpoint commits that prune-signed AUDITED records name, by the writer they are of, ascending by seq."""
        self.forgone: Forgone = {}
        """The prune-signed FORGO records, by the writer whose commits they give up, ascending by seq."""
        self.known: dict[WriterId, int] = {}
        """Writer -> the greatest seq of a commit that was made and is not there: no new commit may take it."""
        self.admission: Admission | None = None
        """The writers that admins admitted; None if no admin ever said so."""
        self.strangers: dict[WriterId, Chain] = {}
        """Chains of writers that count for nothing, because enrolment is closed."""

    @property
    def heads(self) -> list[Head]:
        """The newest commits of all chains and branches."""
        return [head for chain in self.chains.values() for head in chain.heads]

    def counts(self, writer: WriterId) -> bool:
        """Whether a writer may say anything here."""
        return self.admission is None or self.admission.counts(writer)

    def newest(self, writer: WriterId) -> int:
        """The seq of a writer's newest commit that is there, whether it counts or not; 0 without."""
        chain = self.chains.get(writer) or self.strangers.get(writer)
        return 0 if chain is None or chain.head is None else chain.head.seq

    def holds(self, types: Collection[int]) -> bool:
        """Whether any record in force is of one of these types."""
        return any(entry.record.type in types for chain in self.chains.values() for entry in chain.entries)

    @property
    def said_clocks(self) -> dict[tuple[WriterId, int], Clock]:
        """The clock that each commit states. In a fork, commits of one number share one: what any had seen."""
        return _by_seq((chain, chain.carried_clocks, chain.clocks) for chain in self.chains.values())

    @property
    def clocks(self) -> dict[tuple[WriterId, int], Clock]:
        """The same clocks as far as they count: nobody has seen commits that are not there."""
        counting = Counting(self.chains)
        return _by_seq(
            (
                chain,
                {seq: counting.clock(clock, chain.writer) for seq, clock in chain.carried_clocks.items()},
                clocks_of(chain, counting.entry, counting.upto),
            )
            for chain in self.chains.values()
        )

    @property
    def whole(self) -> bool:
        """Whether every chain was read from its beginning."""
        return all(chain.whole for chain in self.chains.values())


class Counting:
    """How far `seen` entries count (FORMAT 8, Latest)."""

    def __init__(self, chains: Mapping[WriterId, Chain]) -> None:
        self._newest = {chain.writer: max((head.seq for head in chain.heads), default=0) for chain in chains.values()}
        self._hashes: dict[tuple[WriterId, int], set[bytes]] = {}
        for chain in chains.values():
            for commit in chain.commits:
                self._hashes.setdefault((chain.writer, commit.head.seq), set()).add(commit.head.sha256)

    def entry(self, head: Head) -> int:
        """Up to which seq an entry says that its writer's chain was seen."""
        there = self._hashes.get((head.writer, head.seq))
        return 0 if there is not None and head.sha256 not in there else self.upto(head.writer, head.seq)

    def upto(self, writer: WriterId, seq: int) -> int:
        """The same of an entry without a hash."""
        return min(seq, self._newest.get(writer, 0))

    def clock(self, clock: Clock, own: WriterId) -> Clock:
        """A clock as far as it counts; what a commit says of its own chain always does."""
        counted = {writer: seq if writer == own else self.upto(writer, seq) for writer, seq in clock.items()}
        return {writer: seq for writer, seq in counted.items() if seq}


def clocks_of(
    chain: Chain,
    entry: Callable[[Head], int] = lambda head: head.seq,
    upto: Callable[[WriterId, int], int] = lambda writer, seq: seq,
) -> dict[bytes, Clock]:
    """SHA-256 of each commit of a chain -> what it had seen, by its own entries and by those before it."""
    before = [item for item in chain.carried_clocks.items() if item[0] < chain.base]
    carried = {writer: upto(writer, seq) for writer, seq in max(before, default=(0, {}))[1].items()}
    found: dict[bytes, Clock] = {}
    last: Clock = {}
    for commit in chain.commits:
        # Across a gap a writer still had seen what it had seen before; in a fork nobody knows which branch it was.
        clock = dict(found.get(commit.body.prev, {} if chain.forked_at else last))
        entries = [(head.writer, entry(head)) for head in commit.body.seen]
        for writer, seq in [*(carried.items() if commit.head.seq == chain.base else ()), *entries]:
            if seq > clock.get(writer, 0):
                clock[writer] = seq
        clock[chain.writer] = commit.head.seq
        found[commit.head.sha256] = last = clock
    return found


def _by_seq(
    rows: Iterable[tuple[Chain, Mapping[int, Clock], Mapping[bytes, Clock]]],
) -> dict[tuple[WriterId, int], Clock]:
    found: dict[tuple[WriterId, int], Clock] = {}
    for chain, carried, clocks in rows:
        found.update({(chain.writer, seq): clock for seq, clock in carried.items()})
        for commit in chain.commits:
            clock, place = clocks[commit.head.sha256], (chain.writer, commit.head.seq)
            found[place] = _joined(found[place], clock) if place in found else clock
    return found


def _joined(one: Clock, other: Clock) -> Clock:
    return {writer: max(one.get(writer, 0), other.get(writer, 0)) for writer in {*one, *other}}
