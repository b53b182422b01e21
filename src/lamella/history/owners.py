"""Owners of volumes (FORMAT 8, Owners): creators, writers that received a volume, and writers that act for either."""

from __future__ import annotations

from collections.abc import Iterable

from lamella.base.ids import WriterId


class Owners:
    """The writers that act for other writers, as JOIN and SUCCEEDS say."""

    def __init__(self, handovers: Iterable[tuple[WriterId, WriterId]] = ()) -> None:
        """Each handover is a pair: the writer that acts, and the writer it acts for."""
        self._acting: dict[WriterId, set[WriterId]] = {}
        self._for: dict[WriterId, set[WriterId]] = {}
        for new, old in handovers:
            self._acting.setdefault(old, set()).add(new)
            self._for.setdefault(new, set()).add(old)

    def acting_for(self, writers: Iterable[WriterId]) -> frozenset[WriterId]:
        """These writers, and all writers that act for them."""
        return _reached(writers, self._acting)

    def line(self, writer: WriterId) -> frozenset[WriterId]:
        """A writer, and all writers it acts for."""
        return _reached([writer], self._for)

    def root(self, writer: WriterId) -> WriterId:
        """The writer at the beginning of a line: the same for all that act for it, unless they act for others, too."""
        line = self.line(writer)
        return min([one for one in line if one not in self._for] or line)


def _reached(writers: Iterable[WriterId], steps: dict[WriterId, set[WriterId]]) -> frozenset[WriterId]:
    found: set[WriterId] = set()
    waiting = list(writers)
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += steps.get(one, ())
    return frozenset(found)
