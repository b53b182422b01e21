"""Who owns volumes (FORMAT 8, Owners): creators, whom they were given to, and the writers that act for those."""

from __future__ import annotations

from collections.abc import Iterable

from lamella.base.ids import WriterId


class Owners:
    """Who acts for whom, by JOIN and SUCCEEDS."""

    def __init__(self, handovers: Iterable[tuple[WriterId, WriterId]] = ()) -> None:
        """Each handover: the writer that acts, and the one for whom it does."""
        self._acting: dict[WriterId, set[WriterId]] = {}
        self._for: dict[WriterId, set[WriterId]] = {}
        for new, old in handovers:
            self._acting.setdefault(old, set()).add(new)
            self._for.setdefault(new, set()).add(old)

    def acting_for(self, writers: Iterable[WriterId]) -> frozenset[WriterId]:
        """These writers, and all that own what they own."""
        return _reached(writers, self._acting)

    def line(self, writer: WriterId) -> frozenset[WriterId]:
        """A writer, and all for whom it acts."""
        return _reached([writer], self._for)

    def root(self, writer: WriterId) -> WriterId:
        """The same for a writer and those that act for it, unless they also act for others."""
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
