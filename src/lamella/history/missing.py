"""Finding commits that are known and cannot be read (FORMAT 8 "What cannot be read", and 9), in chains that were read.

A commit is known to have been made if what is left of it proves so, or if a pin, a `seen`, a `prev` or an AUDITED names
it. FORGO excuses its absence. Everything else under a commit's name is junk, and worth a note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from lamella.base.ids import WriterId
from lamella.format.commit import Head
from lamella.history.history import Chain, Commit, History
from lamella.memory.pins import Pins, Problem

if TYPE_CHECKING:
    from lamella.history.evidence import Evidence

SpeaksOf = Callable[["Evidence", Iterable[Head]], bool]
"""Whether what a damaged object proves is one of these sound commits."""


class Judge:
    """Turns a history that was read into problems, damage and notes."""

    def __init__(self, history: History, pins: Pins, speaks_of: SpeaksOf) -> None:
        self.history = history
        self.pins = pins
        self.speaks_of = speaks_of

    def judge(self) -> None:
        """Judge a history of which every chain was read. A chain without a readable commit is left out."""
        self.chains()
        history = self.history
        history.problems += [*self._gone(), *self._unseen()]
        history.chains = {writer: chain for writer, chain in history.chains.items() if chain.commits}
        if history.admission is not None:
            from lamella.history.admission import part

            part(history, history.admission)

    def chains(self) -> None:
        """Judge the chains that are there, each by itself."""
        history = self.history
        pinned = [problem for chain in history.chains.values() for problem in self._pinned(chain)]
        history.problems += pinned
        if history.unreadable or any(chain.gaps for chain in history.chains.values()):
            from lamella.history.holes import judged  # rarely needed

            history.problems = [*judged(self), *history.problems]
        for writer, rows in history.forgone.items():
            self.knows(writer, rows[-1].head.seq)
        for writer, (seq, _) in self.pins.heads.items():
            self.knows(writer, seq)

    def knows(self, writer: WriterId, seq: int) -> None:
        """Remember that the writer made a commit of this number."""
        self.history.known[writer] = max(seq, self.history.known.get(writer, 0))

    # -- excuses -------------------------------------------------------------------------------------------------------

    def is_excused(self, head: Head) -> bool:
        """Whether a FORGO record gives this commit up."""
        return any(row.excuses(head) for row in self.history.forgone.get(head.writer, ()))

    def left(self) -> Iterator[Head]:
        """The commits that were there when what came after them was given up."""
        return (row.there for rows in self.history.forgone.values() for row in rows if row.there)

    def counting(self) -> list[Chain]:
        """The chains whose word counts."""
        return [chain for chain in self.history.chains.values() if self.history.counts(chain.writer)]

    def commits(self, writer: WriterId) -> list[Commit]:
        """The commits of a writer that are there."""
        chain = self.history.chains.get(writer)
        return [] if chain is None else chain.commits

    # -- commits that are not there ------------------------------------------------------------------------------------

    def _pinned(self, chain: Chain) -> Iterator[Problem]:
        seq, sha256 = self.pins.heads.get(chain.writer, (0, b""))
        # Before an audited checkpoint the prune key's word takes the place of the commits.
        if not seq or (chain.begin is not None and seq < chain.begin.seq):
            return
        # The commit that was seen is part of the key: what was accepted once must not hide the next time.
        pinned, writer = Head(chain.writer, seq, sha256), chain.writer.hex()
        newest = chain.head.seq if chain.head is not None else 0
        if any(commit.head == pinned for commit in chain.commits) or self.is_excused(pinned):
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
        """Commits that were seen beyond the end of their chain: of each chain the newest that a writer saw."""
        rows = [
            (chain.writer.hex(), head)
            for chain in self.counting()
            for head in _newest(head for commit in chain.commits for head in commit.body.seen)
        ]
        there = {row.head for row in self.history.unreadable}
        rows += [("an audit", heads[-1]) for heads in self.history.audits.values() if heads[-1] not in there]
        rows += [("an admin", head) for head in self.left() if head not in there]
        for by, head in rows:
            other = self.history.chains.get(head.writer)
            newest = 0 if other is None or other.head is None else other.head.seq
            if newest < head.seq and not self.is_excused(head):
                self.knows(head.writer, head.seq)
                of = head.writer.hex()
                text = f"{by if ' ' in by else 'writer ' + by[:8]} saw commit {head.seq} of writer {of[:8]}"
                text += f", whose newest commit here is {newest}: history is missing"
                yield Problem(f"seen:{of}:{head.seq}:{head.sha256.hex()}:{by}", text, head)

    def _gone(self) -> Iterator[Problem]:
        for writer, (seq, sha256) in sorted(self.pins.heads.items()):
            head = Head(writer, seq, sha256)
            if writer not in self.history.chains and not self.is_excused(head):
                text = f"the chain of writer {writer.hex()[:8]} is gone; commit {seq} was seen before"
                yield Problem(f"gone:{writer.hex()}:{seq}:{sha256.hex()}", text, head)


def _newest(heads: Iterable[Head]) -> Iterable[Head]:
    """Of each writer's the newest."""
    found: dict[WriterId, Head] = {}
    for head in heads:
        found[head.writer] = max(head, found.get(head.writer, head))
    return found.values()
