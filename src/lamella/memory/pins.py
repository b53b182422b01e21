"""The history that this host saw and expects to see again (FORMAT 9): pins, places, first sights."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, NamedTuple

from lamella.base.errors import RepositoryError
from lamella.base.ids import WriterId
from lamella.format.commit import Head
from lamella.memory.host import HostMemory, Table


class SeenCommit(NamedTuple):
    """The newest commit that was seen of a writer."""

    seq: Annotated[int, range(1, 1 << 64)]
    sha256: Annotated[bytes, 32]


SeenHeads = dict[WriterId, SeenCommit]
_NEVER = SeenCommit(0, b"")


def _newest(known: SeenHeads, heads: Iterable[Head]) -> SeenHeads:
    """The newest commit of each writer; of several with one number the first."""
    found = dict(known)
    for head in heads:
        if found.get(head.writer, _NEVER).seq < head.seq:
            found[head.writer] = SeenCommit(head.seq, head.sha256)
    return found


def _heads(seen: SeenHeads) -> Iterable[Head]:
    return [Head(writer, *commit) for writer, commit in seen.items()]


# -- pins --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Problem:
    """A way in which the history is not what it should be. `key` names it for ever, so that it can be accepted once.

    `lacks` is the commit that is known and cannot be read, where the problem is that one: FORGO can give it up.
    """

    key: str
    message: str
    lacks: Head | None = None

    @property
    def kind(self) -> str:
        """unreadable, missing, seen, gone, back, other, fork, broken, segment."""
        return self.key.partition(":")[0]

    @property
    def is_lack(self) -> bool:
        """Whether a part of the history is missing, and nothing contradicts what is there."""
        return self.kind in ("unreadable", "missing", "seen")

    @property
    def writer(self) -> WriterId:
        """The writer whose chain has the problem."""
        return WriterId(bytes.fromhex(self.key.split(":")[1]))

    @property
    def remedy(self) -> str:
        """The command that mends or accepts the problem."""
        from lamella.memory.remedies import remedy  # most histories have no problem

        return remedy(self)


@dataclass(frozen=True, slots=True)
class PinnedHistory:
    """The heads this host saw, and the keys of the problems its user accepted: the file `pins.json`."""

    heads: SeenHeads = field(default_factory=dict)
    accepted: tuple[str, ...] = ()


class Pins:
    """The heads this host saw, and the problems its user accepted."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._table = Table(memory, "pins.json", PinnedHistory)
        self._take(self._table.read())

    def _take(self, pinned: PinnedHistory) -> None:
        self.heads, self.accepted = pinned.heads, set(pinned.accepted)

    def remember(self, heads: Iterable[Head]) -> None:
        """Pin these heads where they are newer than what is pinned; write only if something changed.

        Where the state directory cannot be written, that is reported and the work continues.
        """
        newest = _newest(self.heads, heads)
        if newest != self.heads:
            self.heads = newest
            with self._memory.may_fail():
                self.excuse([])

    def accept(self, heads: Iterable[Head], problems: Iterable[Problem]) -> None:
        """Take the present history as the right one from now on. Raises RepositoryError."""
        self.accepted |= {problem.key for problem in problems}
        self.heads = _newest({}, heads)
        self._take(self._table.change(lambda stored: self._merged(stored, self.heads)))

    def excuse(self, problems: Iterable[Problem]) -> None:
        """Accept these problems, and no other history. Raises RepositoryError."""
        self.accepted |= {problem.key for problem in problems}
        # Another process of this host may have seen more meanwhile: nothing that was seen is forgotten.
        self._take(self._table.change(lambda stored: self._merged(stored, _newest(stored.heads, _heads(self.heads)))))

    def _merged(self, stored: PinnedHistory, heads: SeenHeads) -> PinnedHistory:
        return PinnedHistory(heads, tuple(sorted(self.accepted.union(stored.accepted))))


# -- places ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KnownPlace:
    """This host's knowledge of one place of a repository (docs/decisions/0029).

    A place becomes a mirror only by `lamella mirror` on this host, never by anything it says itself, and it stays what
    it is once this host has published there. What was seen at a place must be seen there again, whatever it is.
    """

    mirror: bool = False
    """`lamella mirror` wrote there, and nothing else of this host."""
    wrote: bool = False
    """This host published commits there."""
    own: bool = False
    """Its user took it as a repository to go on with: it has a memory of its own."""
    first: bool = False
    """No other place but mirrors was known before. Others are copies, of whatever make, or the repository has moved:
    what was read whole at one of them proves nothing about another."""
    heads: SeenHeads = field(default_factory=dict)
    """The newest commits seen there."""

    def with_heads(self, heads: Iterable[Head]) -> KnownPlace:
        """With these heads, where they are newer."""
        return replace(self, heads=_newest(self.heads, heads))


class Places:
    """The places of one repository, by the store's url. What changes them raises RepositoryError."""

    def __init__(self, memory: HostMemory) -> None:
        self._table = Table(memory, "places.json", dict[str, KnownPlace], "places")

    def get(self, url: str) -> KnownPlace:
        """The knowledge of a place; an empty value for a place that was never seen."""
        return self._table.read().get(url) or KnownPlace(first=not self.elsewhere(url))

    def known(self, url: str) -> bool:
        """Whether anything is remembered about the place."""
        return url in self._table.read()

    def elsewhere(self, url: str) -> bool:
        """Whether another place is known that is no mirror."""
        return any(other != url and not place.mirror for other, place in self._table.read().items())

    def begun(self, url: str) -> None:
        """`lamella mirror` begins to write there."""
        self._change(url, lambda place: place if place.wrote or place.own else replace(place, mirror=True))

    def seen(self, url: str, heads: Collection[Head]) -> None:
        """These commits are there: the repository was opened and is sound, or `lamella mirror` brought them."""
        self._change(url, lambda place: place.with_heads(heads))

    def wrote_there(self, url: str, heads: Collection[Head]) -> None:
        """This host published there."""
        self._change(url, lambda place: replace(place.with_heads(heads), wrote=True))

    def accepted(self, url: str, heads: Collection[Head], *, own: bool) -> None:
        """The user goes on there with what is there now; with `own` as with a repository of its own."""
        self._change(url, lambda place: replace(place, own=place.own or own, mirror=False, heads=_newest({}, heads)))

    def _change(self, url: str, change: Callable[[KnownPlace], KnownPlace]) -> None:
        before = self._table.read().get(url)
        if before is None or change(before) != before:  # mostly nothing changes, and nobody waits for a lock
            self._table.change(lambda places: {**places, url: change(places.get(url) or self.get(url))})


def suffix(url: str) -> str:
    """16 hex digits that name the memory of a place which has one apart from the repository's."""
    return hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()[:16]


# -- first sights ------------------------------------------------------------------------------------------------------

_MOST_SIGHTINGS = 4096


HOUR_MS = 3_600_000


class Sight(NamedTuple):
    """The look that first showed a commit, and the one before; UTC milliseconds."""

    first_ms: int
    before_ms: int

    def believed_ms(self, said_ms: int) -> int:
        """The time that a commit states, if it can have been published then; else the time of its first sight.

        It was published after the look before, and at the latest at the first one; clocks may differ by an hour.
        """
        earliest = min(self.before_ms, self.first_ms) - HOUR_MS
        return said_ms if earliest <= said_ms <= self.first_ms + HOUR_MS else self.first_ms


class Sighting(NamedTuple):
    """The commits `first` to `last` of a writer were there at a look and not at the look before."""

    writer: WriterId
    first: int
    last: int
    first_ms: int
    before_ms: int


@dataclass(frozen=True, slots=True)
class Looks:
    """The file `looks.json`; before the first look `looked_ms` is 0."""

    looked_ms: int = 0
    known: dict[WriterId, int] = field(default_factory=dict)
    rows: tuple[Sighting, ...] = ()

    def shows_new(self, newest: SeenHeads) -> bool:
        """Whether a look at these heads is worth noting."""
        return not self.looked_ms or any(self.known.get(writer, 0) < seen.seq for writer, seen in newest.items())

    def with_look(self, newest: SeenHeads, now_ms: int) -> Looks:
        """With what is new at this moment. What was there when the memory began has no row."""
        rows = [
            Sighting(writer, self.known.get(writer, 0) + 1, seen.seq, now_ms, self.looked_ms)
            for writer, seen in sorted(newest.items())
            if self.looked_ms and self.known.get(writer, 0) < seen.seq
        ]
        known = {writer: max(seen.seq, self.known.get(writer, 0)) for writer, seen in newest.items()}
        return Looks(now_ms, {**self.known, **known}, (*self.rows, *rows)[-_MOST_SIGHTINGS:])


class Sightings:
    """When this host first saw the commits of others: a memory that no other writer's clock can change (FORMAT 8).

    Losing it, or its oldest rows, means believing what commits say.
    """

    def __init__(self, memory: HostMemory) -> None:
        self._table = Table(memory, "looks.json", Looks)
        self._take(self._table.read())

    def _take(self, looks: Looks) -> None:
        self._looks = looks
        self._index: dict[WriterId, list[Sighting]] | None = None

    def look(self, heads: Iterable[Head], now_ms: int) -> None:
        """Note what is new at this moment. Where nothing can be written, this process alone knows."""
        newest = _newest({}, heads)
        if self._looks.shows_new(newest):
            looks = self._looks.with_look(newest, now_ms)
            with suppress(RepositoryError):
                # Another process of this host may have looked meanwhile.
                looks = self._table.change(lambda stored: stored.with_look(newest, now_ms))
            self._take(looks)

    def of(self, writer: WriterId, seq: int) -> Sight | None:
        """The first sight of a commit; None if it was there before the memory begins, or is not known."""
        if self._index is None:
            self._index = {}
            for row in sorted(self._looks.rows, key=lambda row: row.first):
                self._index.setdefault(row.writer, []).append(row)
        rows = self._index.get(writer, [])
        position = bisect_right(rows, seq, key=lambda row: row.first) - 1
        found = rows[position] if position >= 0 else None
        return Sight(found.first_ms, found.before_ms) if found is not None and seq <= found.last else None
