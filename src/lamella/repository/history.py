"""Chains of commits as they were read (FORMAT 8): what lamella.repository.chains finds in w/."""

from __future__ import annotations

from dataclasses import dataclass, field

from lamella.errors import IntegrityError
from lamella.format.commit import Body, Entry, Head
from lamella.format.known import understood
from lamella.format.records import Checkpoint, SegmentPlace
from lamella.ids import WriterId
from lamella.repository.order import Clock
from lamella.repository.pins import Problem


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit that verified, and what it knew of: itself, its chain and what the chain had seen."""

    head: Head
    body: Body

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint it carries, if any; a malformed one is none."""
        for record in self.body.records:
            if record.type == Checkpoint.TYPE:
                try:
                    known = understood(record)
                except IntegrityError:
                    return None
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
    carried_clocks: dict[int, Clock] = field(default_factory=dict)
    """By seq, of commits that only a checkpoint still carries; without those of which it does not say."""
    carried_parts: list[tuple[SegmentPlace, list[Entry]]] = field(default_factory=list)
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
        self.problems: list[Problem] = []
        self.damaged: list[tuple[str, str]] = []
        """Objects in w/ that do not open, with the reason."""
        self.unbacked: list[str] = []
        """What writers saw of other chains that is not there (witnesses of missing history)."""
        self.audits: dict[WriterId, list[Head]] = {}
        """Checkpoint commits that prune-signed AUDITED records name, by the writer they are of, ascending by seq."""

    @property
    def heads(self) -> list[Head]:
        """The newest commits of all chains and branches."""
        return [head for chain in self.chains.values() for head in chain.heads]

    @property
    def clocks(self) -> dict[tuple[WriterId, int], Clock]:
        """What each commit that was read had seen; of several of one number in a fork, what any of them had."""
        found: dict[tuple[WriterId, int], Clock] = {}
        for chain in self.chains.values():
            found.update({(chain.writer, seq): clock for seq, clock in chain.carried_clocks.items()})
            for commit in chain.commits:
                clock, place = chain.clocks[commit.head.sha256], (chain.writer, commit.head.seq)
                found[place] = _joined(found[place], clock) if place in found else clock
        return found

    @property
    def whole(self) -> bool:
        """Whether every chain was read from its beginning."""
        return all(chain.whole for chain in self.chains.values())


def _joined(one: Clock, other: Clock) -> Clock:
    return {writer: max(one.get(writer, 0), other.get(writer, 0)) for writer in {*one, *other}}
