"""What of a history is known and cannot be read (FORMAT 8 "What cannot be read", and 9): judged once chains are read.

A commit is known to have been made if what is left of it proves so, or if a pin, a `seen`, a `prev` or an AUDITED names
it. FORGO excuses its absence. Everything else under a commit's name is junk, and worth a note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from lamella.base.ids import WriterId
from lamella.format.commit import Head
from lamella.history.history import Chain, Commit, Gap, History, Unreadable
from lamella.memory.pins import Pins, Problem

if TYPE_CHECKING:
    from lamella.history.evidence import Evidence

SpeaksOf = Callable[["Evidence", Iterable[Head]], bool]
"""Whether what a damaged object proves is one of these sound commits."""


class Judge:
    """Turns what was read into problems, damage and notes."""

    def __init__(self, history: History, pins: Pins, speaks_of: SpeaksOf) -> None:
        self._history = history
        self._pins = pins
        self._speaks_of = speaks_of

    def judge(self) -> None:
        """Judge a history of which every chain was read. Chains of which nothing could be read are none."""
        self.chains()
        history = self._history
        history.problems += [*self._gone(), *self._unseen()]
        there = {writer: chain for writer, chain in history.chains.items() if chain.commits}
        history.chains = {writer: chain for writer, chain in there.items() if history.counts(writer)}
        history.strangers = {writer: chain for writer, chain in there.items() if not history.counts(writer)}

    def chains(self) -> None:
        """Judge the chains that are there, each by itself."""
        history = self._history
        chains = list(history.chains.values())
        gaps = [problem for chain in self._counting() for gap in chain.gaps for problem in self._gap(chain, gap)]
        pinned = [problem for chain in chains for problem in self._pinned(chain)]
        history.problems = [*self._unreadable(), *gaps, *history.problems, *pinned]
        for writer, heads in history.forgone.items():
            self._known(writer, heads[-1].seq)
        for writer, (seq, _) in self._pins.heads.items():
            self._known(writer, seq)

    def _known(self, writer: WriterId, seq: int) -> None:
        self._history.known[writer] = max(seq, self._history.known.get(writer, 0))

    # -- excuses -------------------------------------------------------------------------------------------------------

    def _excused(self, head: Head) -> bool:
        """Whether FORGO names it, or a commit of which it is one of those that are missing right before."""
        there = {commit.head.seq for commit in self._commits(head.writer)}
        return any(
            head == given_up or (head.seq < given_up.seq and not any(head.seq <= seq < given_up.seq for seq in there))
            for given_up in self._history.forgone.get(head.writer, ())
        )

    def _counting(self) -> Iterator[Chain]:
        """The chains whose word counts; what the others wrote is still there for those that name it."""
        return (chain for chain in self._history.chains.values() if self._history.counts(chain.writer))

    def _commits(self, writer: WriterId) -> list[Commit]:
        chain = self._history.chains.get(writer)
        return [] if chain is None else chain.commits

    # -- objects that do not open --------------------------------------------------------------------------------------

    def _unreadable(self) -> Iterator[Problem]:
        history = self._history
        witnessed = self._witnessed() if history.unreadable else set()
        for one in {row.head: row for row in history.unreadable}.values():
            if self._excused(one.head):
                history.notes.append(f"{one.head.name} cannot be read, and is given up: {one.reason}")
            elif one.head in witnessed or self._is_proven(one):
                self._known(one.head.writer, one.head.seq)
                history.damaged.append((one.head.name, one.reason))
                name, writer = one.head.name, one.head.writer.hex()
                text = f"commit {one.head.seq} of writer {writer[:8]} cannot be read: {name}: {one.reason}"
                yield Problem(f"unreadable:{writer}:{one.head.seq}:{one.head.sha256.hex()}", text, one.head)
            else:
                history.unexplained.append(one.head.name)
                history.notes.append(f"{one.head.name} is no commit, and nothing shows that it was: {one.reason}")

    def _is_proven(self, one: Unreadable) -> bool:
        """What a store cannot give cannot prove anything either: nobody but the store can have made it so."""
        if one.evidence is None:
            return one.withheld
        if not self._history.counts(one.head.writer):
            return False
        intact = [commit.head for commit in self._commits(one.head.writer) if commit.head.seq == one.head.seq]
        return not self._speaks_of(one.evidence, intact)

    def _witnessed(self) -> set[Head]:
        found = {Head(writer, *pinned) for writer, pinned in self._pins.heads.items()}
        found |= {head for heads in self._history.audits.values() for head in heads}
        for chain in self._counting():
            for commit in chain.commits:
                found |= set(commit.body.seen)
                found.add(Head(chain.writer, commit.head.seq - 1, commit.body.prev))
                earlier = () if commit.checkpoint is None else commit.checkpoint.earlier
                found |= {Head(chain.writer, *place) for place in (commit.body.checkpoint, *earlier)}
        return found

    # -- commits that are not there ------------------------------------------------------------------------------------

    def _gap(self, chain: Chain, gap: Gap) -> Iterator[Problem]:
        lacking = [head for head in gap.named if not self._excused(head)]
        given_up = any(head.seq == gap.last for head in self._history.forgone.get(chain.writer, ()))
        if not lacking and (gap.named or given_up):
            return
        one = gap.first == gap.last
        where = f"{gap.last}" if one else f"{gap.first}-{gap.last}"
        word = f"commit {gap.last} is missing or damaged" if one else f"commits {gap.first} to {gap.last} are missing"
        writer = chain.writer.hex()
        text = f"writer {writer[:8]}: {word}"
        yield Problem(f"missing:{writer}:{where}", text, lacking[0] if lacking else None)

    def _pinned(self, chain: Chain) -> Iterator[Problem]:
        seq, sha256 = self._pins.heads.get(chain.writer, (0, b""))
        # Before an audited checkpoint the prune key's word takes the place of the commits.
        if not seq or (chain.begin is not None and seq < chain.begin.seq):
            return
        # The commit that was seen is part of the key: what was accepted once must not hide the next time.
        pinned, writer = Head(chain.writer, seq, sha256), chain.writer.hex()
        newest = chain.head.seq if chain.head is not None else 0
        if any(commit.head == pinned for commit in chain.commits) or self._excused(pinned):
            return
        if newest < seq:
            text = f"the newest commit is {newest}, but {seq} was seen before: an older state is shown"
            problem = Problem(f"back:{writer}:{seq}:{sha256.hex()}:{newest}", f"writer {writer[:8]}: {text}", pinned)
        else:
            lacks = None if any(commit.head.seq == seq for commit in chain.commits) else pinned
            text = f"commit {seq} is not the one that was seen before"
            problem = Problem(f"other:{writer}:{seq}:{sha256.hex()}", f"writer {writer[:8]}: {text}", lacks)
        yield problem

    def _unseen(self) -> Iterator[Problem]:
        """What a writer or an audit saw of a chain, beyond all that is there of it: of several commits the newest."""
        rows = [
            (chain.writer.hex(), head)
            for chain in self._counting()
            for head in _newest(head for commit in chain.commits for head in commit.body.seen)
        ]
        there = {row.head for row in self._history.unreadable}
        rows += [("an audit", heads[-1]) for heads in self._history.audits.values() if heads[-1] not in there]
        for by, head in rows:
            newest = self._history.newest(head.writer)
            if newest < head.seq and not self._excused(head):
                self._known(head.writer, head.seq)
                of = head.writer.hex()
                text = f"{by if ' ' in by else 'writer ' + by[:8]} saw commit {head.seq} of writer {of[:8]}"
                text += f", whose newest commit here is {newest}: history is missing"
                yield Problem(f"seen:{of}:{head.seq}:{head.sha256.hex()}:{by}", text, head)

    def _gone(self) -> Iterator[Problem]:
        for writer, (seq, sha256) in sorted(self._pins.heads.items()):
            head = Head(writer, seq, sha256)
            if writer not in self._history.chains and not self._excused(head):
                text = f"the chain of writer {writer.hex()[:8]} is gone; commit {seq} was seen before"
                yield Problem(f"gone:{writer.hex()}:{seq}:{sha256.hex()}", text, head)


def _newest(heads: Iterable[Head]) -> Iterable[Head]:
    """Of each writer's the newest."""
    found: dict[WriterId, Head] = {}
    for head in heads:
        found[head.writer] = max(head, found.get(head.writer, head))
    return found.values()
