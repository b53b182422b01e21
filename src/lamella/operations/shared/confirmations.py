"""Snapshots whose packs were seen after publication: only the author's own word counts (FORMAT 8, CONFIRM)."""

from __future__ import annotations

from collections.abc import Iterable

from lamella.base.ids import SnapId, WriterId
from lamella.format.records import Ref
from lamella.repository.repository import Repository

_CONFIRMED = "confirmed.json"


class Confirmations:
    """This host's snapshots whose packs were seen after publication, not yet said so in a commit."""

    def __init__(self, repo: Repository) -> None:
        self._memory = repo.memory
        self._known = {snapshot.ref for snapshot in repo.catalogue.snapshots if snapshot.confirmed}
        self._own = repo.own_writer

    def waiting(self) -> list[Ref]:
        """What is remembered; a damaged memory is a lost one."""
        rows = self._memory.read(_CONFIRMED).get("snapshots")
        refs: list[Ref] = []
        for row in rows if isinstance(rows, list) else []:
            try:
                ref = Ref(WriterId(bytes.fromhex(row[0])), int(row[1]), SnapId(bytes.fromhex(row[2])))
            except (ValueError, TypeError, LookupError, OverflowError):
                continue
            if (len(ref.writer), len(ref.snap_id)) == (16, 16) and 0 < ref.seq < 1 << 64:
                refs.append(ref)
        return refs

    def take(self) -> list[Ref]:
        """What the next commit should confirm: only the author's own word counts."""
        return [ref for ref in self.waiting() if ref not in self._known and ref.writer == self._own]

    def add(self, refs: Iterable[Ref]) -> None:
        """Remember that these are whole."""
        with self._memory.lock():
            self._write({*self.waiting(), *refs})

    def drop(self, refs: Iterable[Ref]) -> None:
        """Forget these: a commit says it now."""
        with self._memory.lock():
            self._write({*self.waiting()} - {*refs})

    def _write(self, refs: set[Ref]) -> None:
        rows = [[ref.writer.hex(), ref.seq, ref.snap_id.hex()] for ref in sorted(refs)]
        self._memory.write(_CONFIRMED, {"snapshots": rows})
