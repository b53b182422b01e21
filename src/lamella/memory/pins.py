"""What this host has seen of a repository's history, and what it therefore expects to see again (FORMAT 9)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lamella.base.errors import RepositoryError
from lamella.base.ids import WriterId
from lamella.format.commit import Head
from lamella.memory.host import HostMemory

_FILE = "pins.json"


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
        """Whose chain it is about."""
        return WriterId(bytes.fromhex(self.key.split(":")[1]))

    @property
    def remedy(self) -> str:
        """What can be done about it, as a command."""
        accept = "lamella check --accept-rollback"
        if self.lacks is None:
            return "look with: lamella check" if self.is_lack else f"accept with: {accept}"
        give_up = f"lamella check --give-up {self.lacks.name}"
        end = give_up if self.is_lack else f"{give_up}, or for this host alone: {accept}"
        return f"mend it with: lamella repair; if nobody has that commit any more: {end}"


class Pins:
    """The heads this host saw, and the problems its user accepted."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        stored = memory.read(_FILE)
        self.unsaved = ""
        self.heads = _stored(stored)
        accepted = stored.get("accepted")
        rows = accepted if isinstance(accepted, list) else []
        self.accepted: set[str] = {key for key in rows if isinstance(key, str)}

    def remember(self, heads: Iterable[Head]) -> None:
        """Pin these heads where they are newer than what is pinned; write only if something changed.

        Where the state directory cannot be written, `unsaved` says why and the work goes on: an older pin notices less,
        but a full disk must not stand between anybody and a restore.
        """
        changed = False
        for head in heads:
            if self.heads.get(head.writer, (0, b""))[0] < head.seq:
                self.heads[head.writer] = (head.seq, head.sha256)
                changed = True
        if changed:
            # Another process of this host may have seen more meanwhile: nothing that was seen is forgotten.
            for writer, seen in _stored(self._memory.read(_FILE)).items():
                self.heads[writer] = max(seen, self.heads.get(writer, seen))
            try:
                self.save()
            except RepositoryError as error:
                self.unsaved = error.message

    def accept(self, heads: Iterable[Head], problems: Iterable[Problem]) -> None:
        """Take the present history as the right one from now on."""
        self.heads = {}
        for head in heads:
            if self.heads.get(head.writer, (0, b""))[0] < head.seq:
                self.heads[head.writer] = (head.seq, head.sha256)
        self.accepted |= {problem.key for problem in problems}
        self.save()

    def save(self) -> None:
        """Write the pins to the state directory."""
        heads = {writer.hex(): [seq, sha256.hex()] for writer, (seq, sha256) in self.heads.items()}
        self._memory.write(_FILE, {"heads": heads, "accepted": sorted(self.accepted)})


def _stored(memory: dict[str, Any]) -> dict[WriterId, tuple[int, bytes]]:
    """The remembered heads that have the right form; a damaged memory is a lost one."""
    rows = memory.get("heads")
    heads: dict[WriterId, tuple[int, bytes]] = {}
    for writer, value in rows.items() if isinstance(rows, dict) else ():
        try:
            name, seq, sha256 = bytes.fromhex(writer), int(value[0]), bytes.fromhex(value[1])
        except (ValueError, TypeError, LookupError, OverflowError):
            continue
        if (len(name), len(sha256)) == (16, 32) and seq > 0:
            heads[WriterId(name)] = (seq, sha256)
    return heads
