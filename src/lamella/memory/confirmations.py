"""Snapshots that this host saw whole after it had published them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from lamella.base.ids import WriterId
from lamella.format.records import Ref
from lamella.memory.host import HostMemory, Table


class Confirmations:
    """This host's snapshots whose packs were seen after publication, and no commit says so yet (FORMAT 8, CONFIRM)."""

    def __init__(self, memory: HostMemory) -> None:
        self._table = Table(memory, "confirmed.json", tuple[Ref, ...], "snapshots")

    def waiting(self) -> list[Ref]:
        """The snapshots that wait for a commit to confirm them."""
        return list(self._table.read())

    def unsaid(self, author: WriterId | None, said: Collection[Ref]) -> list[Ref]:
        """The snapshots that the author's next commit should confirm: only the author's own word counts."""
        return [ref for ref in self._table.read() if ref.writer == author and ref not in said]

    def add(self, refs: Iterable[Ref]) -> None:
        """Remember that these are whole. Raises RepositoryError."""
        news = set(refs)
        self._table.change(lambda stored: tuple(sorted(news.union(stored))))

    def drop(self, refs: Iterable[Ref]) -> None:
        """Forget these: a commit says it now. Raises RepositoryError."""
        said = set(refs)
        self._table.change(lambda stored: tuple(ref for ref in stored if ref not in said))
