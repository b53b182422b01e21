"""Chains of commits: reading them, checking them, and comparing them with what this host saw before (FORMAT 8, 9).

A chain is read from its newest checkpoint, or from the pinned commit if that is older, so that every step from what
this host saw to what is there now is checked. Forked chains are read whole: the union of their branches counts.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from lamella.crypto.derive import Keys
from lamella.errors import IntegrityError, ObjectNotFound, StoreError, UnknownFormat
from lamella.format.commit import PREFIX, Body, Entry, Head, decode_entries, decode_segment, parse_name
from lamella.format.container import MAX_OBJECT
from lamella.format.known import understood
from lamella.format.records import Checkpoint, SegmentPlace
from lamella.ids import WriterId
from lamella.repository.cache import Cache
from lamella.repository.containers import open_commit
from lamella.repository.order import Clock
from lamella.repository.pins import Pins, Problem
from lamella.repository.reach import reinstated, require_alive
from lamella.stores.base import Store
from lamella.trust import Opened

_OPENED_KEPT = 1024
ReadSegment = Callable[[SegmentPlace], Opened]


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit that verified, and what it knew of: itself, its chain and what the chain had seen."""

    head: Head
    body: Body

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint it carries, if any."""
        for record in self.body.records:
            if record.type == Checkpoint.TYPE:
                known = understood(record)
                return known if isinstance(known, Checkpoint) else None
        return None


@dataclass(slots=True)
class Chain:
    """One writer's commits as far as they were read."""

    writer: WriterId
    commits: list[Commit] = field(default_factory=list)
    """Ascending by seq; several of one seq only in a fork."""
    entries: list[Entry] = field(default_factory=list)
    """Every record of the chain in force, also those that only a checkpoint still carries. CHECKPOINTs excepted."""
    heads: list[Head] = field(default_factory=list)
    forked_at: int = 0
    checkpoint: tuple[int, bytes] = (0, bytes(32))
    carried: Checkpoint | None = None
    """The newest checkpoint's record."""
    clocks: dict[bytes, Clock] = field(default_factory=dict)
    """By SHA-256 of a commit."""
    whole: bool = True
    """Read from its first commit."""
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
        self.problems: list[Problem] = []
        self.damaged: list[tuple[str, str]] = []
        """Objects in w/ that do not open, with the reason."""
        self.unbacked: list[str] = []
        """What writers saw of other chains that is not there (witnesses of missing history)."""

    @property
    def heads(self) -> list[Head]:
        """The newest commits of all chains and branches."""
        return [head for chain in self.chains.values() for head in chain.heads]

    @property
    def clocks(self) -> dict[tuple[WriterId, int], Clock]:
        """What each commit that was read had seen; of several of one number in a fork, what any of them had."""
        found: dict[tuple[WriterId, int], Clock] = {}
        for chain in self.chains.values():
            for commit in chain.commits:
                clock, place = chain.clocks[commit.head.sha256], (chain.writer, commit.head.seq)
                found[place] = _joined(found[place], clock) if place in found else clock
        return found

    @property
    def whole(self) -> bool:
        """Whether every chain was read from its first commit."""
        return all(chain.whole for chain in self.chains.values())


class HistoryReader:
    """Reads w/ of one repository."""

    def __init__(self, store: Store, keys: Keys, cache: Cache, read_segment: ReadSegment) -> None:
        self._store = store
        self._keys = keys
        self._cache = cache
        self._read_segment = read_segment
        # A run reads its history several times; what verified under its hash need not be verified again.
        self._opened: dict[Head, Commit] = {}

    def read(self, pins: Pins, *, whole: bool = False) -> History:
        """All chains. Damage and gaps become `damaged` and `problems`, never exceptions; a store that fails raises."""
        history = History()
        names = self._names("")
        for writer in sorted(names):
            history.chains[writer] = self._chain(history, writer, names[writer], pins, whole)
        history.unbacked = list(_unbacked(history))
        for writer, (seq, sha256) in sorted(pins.heads.items()):
            if writer not in history.chains:
                text = f"the chain of writer {writer.hex()[:8]} is gone; commit {seq} was seen before"
                history.problems.append(Problem(f"gone:{writer.hex()}:{seq}:{sha256.hex()}", text))
        return history

    def read_own(self, writer: WriterId, pins: Pins) -> tuple[Chain, History]:
        """One chain as it is now."""
        history = History()
        names = self._names(writer.hex() + "/")
        chain = self._chain(history, writer, names.get(writer, {}), pins, False)
        return chain, history

    def _names(self, below: str) -> dict[WriterId, dict[int, list[Head]]]:
        names: dict[WriterId, dict[int, list[Head]]] = defaultdict(lambda: defaultdict(list))
        for entry in self._store.list(PREFIX + below):
            head = parse_name(entry.name)
            if head is not None and head.seq > 0 and entry.size <= MAX_OBJECT + 96:
                names[head.writer][head.seq].append(head)
        return names

    def _chain(
        self, history: History, writer: WriterId, names: dict[int, list[Head]], pins: Pins, whole: bool
    ) -> Chain:
        attempt = History()
        whole = whole or any(len(heads) > 1 for heads in names.values())
        chain = _Reading(self, attempt, writer, names).chain(1 if whole else None, pins)
        if chain.lacking and all(seq in names for seq in range(1, chain.checkpoint[0])):
            # The checkpoint only repeats what the commits say, and they are there.
            lacking, attempt = chain.lacking, History()
            chain = _Reading(self, attempt, writer, names).chain(1, pins)
            chain.lacking = lacking
            attempt.damaged.append((Head(writer, *chain.checkpoint).name, lacking))
        history.problems += attempt.problems
        history.damaged += attempt.damaged
        _compare_with_pin(history, chain, names, pins)
        return chain

    def load(self, history: History, head: Head) -> Commit | None:
        """One commit, from the cache or the store; None, and a line in `damaged`, if it does not open."""
        opened = self._opened.get(head)
        if opened is None:
            opened = self._load(history, head)
            if opened is not None and len(self._opened) < _OPENED_KEPT:
                self._opened[head] = opened
        return opened

    def _load(self, history: History, head: Head) -> Commit | None:
        remembered = self._cache.commit(head.name)
        if remembered is not None:
            try:
                return Commit(head, open_commit(self._keys, head, remembered))
            except IntegrityError:
                remembered = None
        try:
            content = self._store.get(head.name)
            if hashlib.sha256(content).digest() != head.sha256 and reinstated(self._store, head.name):
                content = self._store.get(head.name)
            body = open_commit(self._keys, head, content)
        except (IntegrityError, UnknownFormat, StoreError) as error:
            require_alive(self._store, error)
            history.damaged.append((head.name, error.message))
            return None
        self._cache.remember_commits([(head.name, content)])
        return Commit(head, body)

    def checkpoint_entries(self, checkpoint: Checkpoint, name: str) -> Iterator[Entry]:
        """All entries a checkpoint carries, segments first. Raises IntegrityError, StoreError."""
        for place in checkpoint.segments:
            yield from decode_segment(self._read_segment(place), name)
        yield from decode_entries(checkpoint.entries, name)


class _Reading:
    """The state of reading one chain."""

    def __init__(self, reader: HistoryReader, history: History, writer: WriterId, names: dict[int, list[Head]]) -> None:
        self._reader = reader
        self._history = history
        self._names = names
        self._chain = Chain(writer)
        self._loaded: dict[int, list[Commit]] = {}

    def chain(self, start: int | None, pins: Pins) -> Chain:
        chain = self._chain
        top = self._newest()
        if top is None:
            return chain
        base = top.head.seq if top.checkpoint is not None else top.body.checkpoint[0] or 1
        if start is None:
            # Without its checkpoint a chain is read from wherever its commits begin.
            start = base if any(commit.checkpoint is not None for commit in self._load(base)) else 1
        pinned = pins.heads.get(chain.writer, (0, b""))[0]
        # The pinned commit may be older than the checkpoint: then the steps in between are read and checked too.
        first = min(start, pinned) if 0 < pinned <= top.head.seq else start
        for seq in sorted(self._names):  # not every number up to the newest: a commit may have any
            if first <= seq <= top.head.seq:
                self._load(seq)
        chain.commits = [commit for seq in sorted(self._loaded) for commit in self._loaded[seq]]
        chain.whole = first == 1
        self._check_links(first)
        self._clocks()
        self._collect(1 if chain.whole else base)
        return chain

    def _newest(self) -> Commit | None:
        for seq in sorted(self._names, reverse=True):
            commits = self._load(seq)
            if commits:
                return commits[0]
        return None

    def _load(self, seq: int) -> list[Commit]:
        if seq not in self._loaded:
            found = (self._reader.load(self._history, head) for head in sorted(self._names.get(seq, [])))
            self._loaded[seq] = [commit for commit in found if commit is not None]
        return self._loaded[seq]

    def _problem(self, kind: str, seq: int | str, text: str) -> None:
        writer = self._chain.writer.hex()
        self._history.problems.append(Problem(f"{kind}:{writer}:{seq}", f"writer {writer[:8]}: {text}"))

    def _check_links(self, first: int) -> None:
        chain = self._chain
        there = sorted(seq for seq in self._names if seq < first or self._loaded.get(seq))
        for before, seq in zip([0, *there], there, strict=False):
            if seq == before + 2:
                self._problem("missing", before + 1, f"commit {before + 1} is missing or damaged")
            elif seq > before + 1:
                self._problem("missing", f"{before + 1}-{seq - 1}", f"commits {before + 1} to {seq - 1} are missing")
        for seq in there:
            commits = self._loaded.get(seq, [])
            self._check_step(seq, commits, {commit.head.sha256 for commit in self._loaded.get(seq - 1, [])})
            if len(commits) > 1 and not chain.forked_at:
                chain.forked_at = seq
                self._problem("fork", seq, f"the history forks at commit {seq}: its state was used in two places")
        # Without a fork only the newest commit is a head: what is left before a gap is not.
        followed = {commit.body.prev for commit in chain.commits}
        newest = chain.commits if chain.forked_at else chain.commits[-1:]
        chain.heads = [commit.head for commit in newest if commit.head.sha256 not in followed]

    def _check_step(self, seq: int, commits: list[Commit], previous: set[bytes]) -> None:
        """Commits follow one of the previous number; behind a gap nothing can be compared."""
        for commit in commits:
            if previous and commit.body.prev not in previous:
                self._problem("broken", seq, f"commit {seq} does not follow the one before it")

    def _clocks(self) -> None:
        chain = self._chain
        for commit in chain.commits:
            clock = dict(chain.clocks.get(commit.body.prev, {}))
            for head in commit.body.seen:
                clock[head.writer] = max(head.seq, clock.get(head.writer, 0))
            clock[chain.writer] = commit.head.seq
            chain.clocks[commit.head.sha256] = clock

    def _collect(self, base: int) -> None:
        chain = self._chain
        for commit in chain.commits:
            carried = commit.checkpoint
            if carried is not None:
                chain.checkpoint, chain.carried = (commit.head.seq, commit.head.sha256), carried
            if commit.head.seq < base:
                continue
            if carried is not None and commit.head.seq == base and base > 1:
                self._from_checkpoint(carried, commit)
            chain.entries += [
                Entry(commit.head.seq, commit.body.prev, commit.body.time_ms, record)
                for record in commit.body.records
                if record.type != Checkpoint.TYPE
            ]

    def _from_checkpoint(self, carried: Checkpoint, commit: Commit) -> None:
        try:
            self._chain.entries += self._reader.checkpoint_entries(carried, commit.head.name)
        except (IntegrityError, ObjectNotFound) as error:
            self._chain.lacking = f"the checkpoint in commit {commit.head.seq}: {error.message}"
            self._problem("segment", commit.head.seq, self._chain.lacking)


def _joined(one: Clock, other: Clock) -> Clock:
    return {writer: max(one.get(writer, 0), other.get(writer, 0)) for writer in {*one, *other}}


def _unbacked(history: History) -> Iterator[str]:
    for chain in history.chains.values():
        for commit in chain.commits:
            for head in commit.body.seen:
                other = history.chains.get(head.writer)
                newest = 0 if other is None or other.head is None else other.head.seq
                if newest < head.seq:
                    saw = f"writer {chain.writer.hex()[:8]} saw commit {head.seq} of writer {head.writer.hex()[:8]}"
                    yield f"{saw}, whose newest commit here is {newest}: history is missing"


def _compare_with_pin(history: History, chain: Chain, names: dict[int, list[Head]], pins: Pins) -> None:
    pinned = pins.heads.get(chain.writer)
    if pinned is None:
        return
    # The commit that was seen is part of the key: what was accepted once must not hide the next time.
    seq, sha256 = pinned
    writer = chain.writer.hex()
    newest = chain.head.seq if chain.head is not None else 0
    if newest < seq:
        text = f"writer {writer[:8]}: the newest commit is {newest}, but {seq} was seen before: an older state is shown"
        history.problems.append(Problem(f"back:{writer}:{seq}:{sha256.hex()}:{newest}", text))
    elif not any(commit.head.sha256 == sha256 for commit in chain.commits):
        text = f"writer {writer[:8]}: commit {seq} is not the one that was seen before"
        history.problems.append(Problem(f"other:{writer}:{seq}:{sha256.hex()}", text))
