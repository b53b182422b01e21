"""The places at which this host knows one repository, and which of them are mirrors (docs/decisions/0029).

Only `lamella mirror` on this host makes a place a mirror, never anything the place says itself, and a place stays what
it is once this host has published there. What was seen at a place must be seen there again, whatever it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from lamella.base.ids import WriterId
from lamella.format.commit import Head
from lamella.history.history import History
from lamella.memory.host import HostMemory
from lamella.memory.pins import Problem

_FILE = "places.json"


@dataclass(frozen=True, slots=True)
class Place:
    """What this host knows of one place."""

    mirror: bool = False
    """`lamella mirror` wrote there, and nothing else of this host."""
    wrote: bool = False
    """This host published commits there."""
    own: bool = False
    """Its user took it as a repository to go on with: it has a memory of its own."""
    heads: dict[WriterId, tuple[int, bytes]] = field(default_factory=dict)
    """The newest commits seen there."""

    def with_heads(self, heads: Iterable[Head]) -> Place:
        """With these heads, where they are newer."""
        found = dict(self.heads)
        for head in heads:
            if found.get(head.writer, (0, b""))[0] < head.seq:
                found[head.writer] = (head.seq, head.sha256)
        return replace(self, heads=found)


class Places:
    """The places of one repository, by the store's url."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory

    def get(self, url: str) -> Place:
        """What is known of a place; nothing is said of one that was never seen, or by a damaged memory."""
        return _place(self._rows().get(url))

    def known(self, url: str) -> bool:
        """Whether anything is remembered about the place."""
        return url in self._rows()

    def elsewhere(self, url: str) -> bool:
        """Whether another place is known that is no mirror."""
        return any(other != url and not _place(row).mirror for other, row in self._rows().items())

    def begun(self, url: str) -> None:
        """`lamella mirror` begins to write there. Raises RepositoryError."""
        self._change(url, lambda place: place if place.wrote or place.own else replace(place, mirror=True))

    def mirrored(self, url: str, heads: Iterable[Head]) -> None:
        """`lamella mirror` brought these commits there. Raises RepositoryError."""
        found = list(heads)
        self._change(url, lambda place: place.with_heads(found))

    def opened(self, url: str, heads: Iterable[Head]) -> None:
        """The repository was opened there, and nothing was wrong. Raises RepositoryError."""
        found = list(heads)
        self._change(url, lambda place: place.with_heads(found))

    def wrote_there(self, url: str, heads: Iterable[Head]) -> None:
        """This host published there. Raises RepositoryError."""
        found = list(heads)
        self._change(url, lambda place: replace(place.with_heads(found), wrote=True))

    def accepted(self, url: str, heads: Iterable[Head], *, own: bool) -> None:
        """The user goes on there with what is there now; with `own` as with a repository of its own."""
        found = list(heads)
        self._change(url, lambda place: replace(place, own=place.own or own, mirror=False, heads={}).with_heads(found))

    def _change(self, url: str, change: Callable[[Place], Place]) -> None:
        before = self.get(url) if self.known(url) else None
        after = change(before or Place())
        if after == before:
            return
        with self._memory.lock():
            rows = self._rows()
            merged = change(_place(rows.get(url)))
            self._memory.write(_FILE, {"places": {**rows, url: _row(merged)}})

    def _rows(self) -> dict[str, Any]:
        rows = self._memory.read(_FILE).get("places")
        return rows if isinstance(rows, dict) else {}


def judge(place: Place, history: History) -> tuple[list[Problem], list[Problem]]:
    """What is wrong with the history that a place shows, and in what a mirror is merely older than another place.

    What `history` was compared with are the pins, which know every place. A mirror may lack commits that were seen
    elsewhere, also by writers, but none that were seen or brought there.
    """
    problems: list[Problem] = []
    older: list[Problem] = []
    told: set[WriterId] = set()
    for problem in history.problems:
        told |= {problem.writer} if problem.kind in ("back", "gone") else set()
        lags = place.mirror and problem.kind in ("back", "gone", "seen")
        merely = lags and _lacking(place, history, problem.writer) is None
        (older if merely else problems).append(problem)
    for writer in sorted(place.heads):
        found = _lacking(place, history, writer)
        if found is not None and writer not in told:
            problems.append(found)
    return problems, older


def _lacking(place: Place, history: History, writer: WriterId) -> Problem | None:
    """What a place lacks of a chain as it was there before."""
    seq, sha256 = place.heads.get(writer, (0, b""))
    chain = history.chains.get(writer)
    newest = 0 if chain is None or chain.head is None else chain.head.seq
    if newest >= seq or any(newest < head.seq and seq <= head.seq for head in history.forgone.get(writer, ())):
        return None
    text = f"writer {writer.hex()[:8]}: the newest commit is {newest}, but {seq} was at this place before"
    return Problem(f"back:{writer.hex()}:{seq}:{sha256.hex()}:{newest}", text, Head(writer, seq, sha256))


def suffix(url: str) -> str:
    """16 hex digits by which the memory of a place of its own is told from the repository's."""
    return hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _row(place: Place) -> dict[str, Any]:
    heads = {writer.hex(): [seq, sha256.hex()] for writer, (seq, sha256) in sorted(place.heads.items())}
    return {"mirror": place.mirror, "wrote": place.wrote, "own": place.own, "heads": heads}


def _place(row: object) -> Place:
    if not isinstance(row, dict):
        return Place()
    flags = {key: row.get(key) is True for key in ("mirror", "wrote", "own")}
    heads: dict[WriterId, tuple[int, bytes]] = {}
    rows = row.get("heads")
    for writer, value in rows.items() if isinstance(rows, dict) else ():
        try:
            heads[WriterId(bytes.fromhex(writer))] = (int(value[0]), bytes.fromhex(value[1]))
        except (ValueError, TypeError, LookupError, OverflowError):
            continue
    return Place(**flags, heads=heads)
