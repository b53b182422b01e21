"""Reading chains of commits, and comparing them with what this host saw before (FORMAT 8, 9).

A chain is read from its newest checkpoint, or from the pinned commit if that is older, so that every step from what
this host saw to what is there now is checked. Read whole it begins with its newest audited checkpoint, else with its
first commit. Forked chains are read whole: the union of their branches counts. What lies before an audited checkpoint
says nothing any more, whether it is there or not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from lamella.base.errors import IntegrityError, ObjectNotFound
from lamella.base.ids import WriterId
from lamella.base.signed import TRAILER_SIZE
from lamella.base.trust import Opened
from lamella.crypto.derive import Keys
from lamella.format.commit import CHECKPOINT_EVERY, PREFIX, ChainEntry, Head, parse_name
from lamella.format.container import MAX_OBJECT
from lamella.format.known import ADMIT, AUDITED, FORGO
from lamella.format.records import Checkpoint, SegmentPlace
from lamella.history.commits import CommitReader
from lamella.history.history import Chain, Commit, Forgone, Gap, History, clocks_of
from lamella.history.missing import Judge
from lamella.memory.pins import Pins, Problem
from lamella.packs.cache import Cache
from lamella.stores.base import Store

if TYPE_CHECKING:
    from lamella.history.carried import CarriedReader

_LOOKS = 4
ReadSegment = Callable[[SegmentPlace], Opened]
Names = dict[int, list[Head]]
"""The commits of one writer that are listed, by seq."""
Listed = dict[WriterId, Names]
"""The commits that are listed, by writer."""


class HistoryReader:
    """Reads w/ of one repository."""

    def __init__(self, store: Store, keys: Keys, cache: Cache, read_segment: ReadSegment) -> None:
        self._store = store
        self._keys = keys
        self._read_segment = read_segment
        # A run reads its history several times; what verified under its hash need not be verified again.
        self._commits = CommitReader(store, keys, cache)

    def read(self, pins: Pins, *, whole: bool = False, stored: bool = False, listed: Listed | None = None) -> History:
        """All chains. Damage and gaps become `damaged` and `problems`, never exceptions; a store that fails raises.

        `stored`: from now on each commit is read from the store once, whatever the cache has. `listed`: the commits
        that were listed just now.
        """
        self._commits.stored |= stored
        names = listed or self.names("")
        history = self._read(names, pins, whole)
        for _ in range(_LOOKS):
            if not any(problem.lacks and problem.key not in pins.accepted for problem in history.problems):
                break
            # Backups went on while w/ was listed: who was listed late may have seen what others were listed without.
            before, names = names, self.names("")
            if names == before:
                break
            history = self._read(names, pins, whole)
        return history

    def _read(self, names: Listed, pins: Pins, whole: bool) -> History:
        newest = (some[seq] for some in names.values() for seq in sorted(some)[-CHECKPOINT_EVERY:])
        self._commits.ahead(head for heads in newest for head in heads)
        read = {writer: self._chain(writer, names[writer], pins, False, ()) for writer in sorted(names)}
        # Where a chain may begin is said in other chains, or in its own.
        history = History()
        history.audits, history.forgone = self._named(names, [chain for _, chain in read.values()])
        for writer in sorted(names):
            audits = history.audits.get(writer, [])
            if whole:
                begin = audits[-1].seq if audits else 1
                self._commits.ahead(head for seq, heads in names[writer].items() if seq >= begin for head in heads)
            if whole or audits:
                read[writer] = self._chain(writer, names[writer], pins, whole, audits)
        for writer, (attempt, chain) in read.items():
            history.chains[writer] = chain
            history.problems += attempt.problems
            history.damaged += attempt.damaged
            history.unreadable += attempt.unreadable
        self._admit(names, history)
        Judge(history, pins, self._commits.speaks_of).judge()
        return history

    def _named(self, names: Listed, chains: Iterable[Chain]) -> tuple[dict[WriterId, list[Head]], Forgone]:
        """The commits that prune-signed AUDITED records name, and the prune-signed FORGO records."""
        said = [
            (one.writer, row) for one in chains for row in self._said(names, one) if row.record.type in (AUDITED, FORGO)
        ]
        if not said:
            return {}, {}
        from lamella.history.vouched import vouched  # young repositories have nothing of that

        return vouched(self._keys, said)

    def _said(self, names: Listed, chain: Chain) -> Iterable[ChainEntry]:
        if not chain.lacking:
            return chain.entries
        from lamella.history.salvage import salvaged  # rarely needed

        return salvaged(self, names[chain.writer])

    def _admit(self, names: Listed, history: History) -> None:
        chains = history.chains.values()
        said = [(one.writer, row) for one in chains for row in self._said(names, one) if row.record.type == ADMIT]
        if said:
            from lamella.history.admission import admission  # few repositories have any

            history.admission = admission(self._keys, history, said, self.content)

    def read_own(self, writer: WriterId, pins: Pins, history: History) -> tuple[Chain, History]:
        """One chain as it is now, with its problems. `history` says where it may begin and what is given up."""
        names = self.names(writer.hex() + "/")
        audits = history.audits.get(writer, [])
        attempt, chain = self._chain(writer, names.get(writer, {}), pins, False, audits)
        attempt.audits, attempt.forgone = history.audits, history.forgone
        attempt.chains[writer] = chain
        Judge(attempt, pins, self._commits.speaks_of).chains()
        return chain, attempt

    def names(self, below: str) -> Listed:
        """The commits that are listed: of all writers, or of `<writer>/`. Raises StoreError."""
        names: Listed = defaultdict(lambda: defaultdict(list))
        for entry in self._store.list(PREFIX + below):
            head = parse_name(entry.name)
            if head is not None and head.seq > 0 and entry.size <= MAX_OBJECT + TRAILER_SIZE:
                names[head.writer][head.seq].append(head)
        return names

    def _chain(
        self, writer: WriterId, names: Names, pins: Pins, whole: bool, audits: Sequence[Head]
    ) -> tuple[History, Chain]:
        """A chain, with its problems. An audited checkpoint that cannot be read gives way to the one before."""
        for begin in [*(head for head in reversed(audits) if head in names.get(head.seq, [])), None]:
            if whole and begin is not None and not self._has_checkpoint(begin):
                continue
            attempt, chain = self._from(writer, names, pins, whole, begin)
            lost = any(one.head == begin for one in attempt.unreadable)
            lacks = begin is not None and f"segment:{writer.hex()}:{begin.seq}" in {one.key for one in attempt.problems}
            if begin is None or not (lost or lacks):
                break
        return attempt, chain

    def _has_checkpoint(self, head: Head) -> bool:
        commit = self.load(History(), head)
        return commit is not None and commit.checkpoint is not None

    def _from(
        self, writer: WriterId, names: Names, pins: Pins, whole: bool, begin: Head | None
    ) -> tuple[History, Chain]:
        first = 1 if begin is None else begin.seq
        present = {seq: heads for seq, heads in names.items() if seq >= first}
        whole = whole or any(len(heads) > 1 for heads in present.values())
        attempt = History()
        chain = _Reading(self, attempt, writer, present, begin).chain(first if whole else None, pins)
        newest = chain.checkpoint[0]
        if chain.lacking and newest > first and all(seq in present for seq in range(first, newest)):
            # The checkpoint only repeats what is said before it, and that is there.
            lacking, attempt = chain.lacking, History()
            chain = _Reading(self, attempt, writer, present, begin).chain(first, pins)
            attempt.damaged.append((Head(writer, *chain.checkpoint).name, lacking))
            chain.lacking = chain.lacking or lacking
        return attempt, chain

    def remember(self, head: Head, content: bytes) -> None:
        """Keep a commit that this process has published: it need not be fetched."""
        self._commits.remember(head, content)

    def content(self, head: Head) -> bytes | None:
        """The bytes of a commit that was read; None if they cannot be read now."""
        return self._commits.content(head)

    def load(self, history: History, head: Head) -> Commit | None:
        """One commit, from the cache or the store; None, and a row in `unreadable`, if it does not open."""
        return self._commits.load(history, head)

    @cached_property
    def carried(self) -> CarriedReader:
        """Reads what checkpoints carry."""
        from lamella.history.carried import CarriedReader  # a chain has no checkpoint at first

        return CarriedReader(self._read_segment)


class _Reading:
    """The state of reading one chain."""

    def __init__(
        self, reader: HistoryReader, history: History, writer: WriterId, names: Names, begin: Head | None
    ) -> None:
        self._reader = reader
        self._history = history
        self._names = names
        self._first = 1 if begin is None else begin.seq
        self._chain = Chain(writer, begin=begin)
        self._loaded: dict[int, list[Commit]] = {}

    def chain(self, start: int | None, pins: Pins) -> Chain:
        """Read it from `start`; None: from its newest checkpoint."""
        chain = self._chain
        top = self._newest()
        if top is None:
            return chain
        base = max(self._first, top.head.seq if top.checkpoint is not None else top.body.checkpoint[0])
        if start is None:
            # Without its checkpoint a chain is read from wherever its commits begin.
            start = base if any(commit.checkpoint is not None for commit in self._load(base)) else self._first
        pinned = pins.heads.get(chain.writer, (0, b""))[0]
        # The pinned commit may be older than the checkpoint: then the steps in between are read and checked too.
        first = max(self._first, min(start, pinned) if 0 < pinned <= top.head.seq else start)
        for seq in sorted(self._names):  # not every number up to the newest: a commit may have any
            if first <= seq <= top.head.seq:
                self._load(seq)
        chain.commits = [commit for seq in sorted(self._loaded) for commit in self._loaded[seq]]
        chain.whole = first == self._first
        self._check_links(first)
        self._collect(self._first if chain.whole else base)
        self._fill_gaps()
        chain.clocks = clocks_of(chain)
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
        for before, seq in zip([self._first - 1, *there], there, strict=False):
            if seq > before + 1:
                named = {Head(chain.writer, seq - 1, one.body.prev) for one in self._loaded.get(seq, [])}
                chain.gaps.append(Gap(before + 1, seq - 1, tuple(sorted(named))))
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

    def _collect(self, base: int) -> None:
        chain = self._chain
        chain.base = base
        for commit in chain.commits:
            carried = commit.checkpoint
            if carried is not None:
                chain.checkpoint, chain.carried = (commit.head.seq, commit.head.sha256), carried
            if commit.head.seq < base:
                continue
            if commit.head.seq == base and base > 1:
                self._from_checkpoint(carried, commit)
            chain.entries += [
                ChainEntry(commit.head.seq, commit.body.prev, commit.body.time_ms, record)
                for record in commit.body.records
                if record.type != Checkpoint.TYPE
            ]

    def _fill_gaps(self) -> None:
        chain = self._chain
        gaps = [gap for gap in chain.gaps if chain.base <= gap.last < chain.checkpoint[0]]
        if chain.carried is None or not gaps or chain.forked_at:
            return
        from lamella.history.salvage import fill_gaps  # rarely needed

        try:
            fill_gaps(self._reader, chain, gaps)
        except (IntegrityError, ObjectNotFound) as error:
            self._lack(chain.checkpoint[0], error.message)

    def _from_checkpoint(self, carried: Checkpoint | None, commit: Commit) -> None:
        if carried is None:
            if self._chain.begin is not None:
                self._lack(commit.head.seq, "it is not there")
            return
        why = self._reader.carried.take_up(self._chain, carried, commit.head.name)
        if why:
            self._lack(commit.head.seq, why)

    def _lack(self, seq: int, why: str) -> None:
        self._chain.lacking = f"the checkpoint in commit {seq}: {why}"
        self._problem("segment", seq, self._chain.lacking)
