"""Packs that no commit names: a run may be writing them right now (FORMAT 12)."""

from __future__ import annotations

from collections.abc import Sequence

from lamella.base.errors import IntegrityError
from lamella.format.known import understood
from lamella.format.records import AddSnap
from lamella.format.sessions import Session
from lamella.memory.pins import FirstSeen
from lamella.operations.prune.options import DAY_MS
from lamella.operations.prune.usage import PackUse
from lamella.repository.repository import Repository

ORPHAN_MS = 7 * DAY_MS
"""How long this host must have known a pack that nobody named before it is condemned."""


class OldEnough:
    """Tells packs of runs that are over from those of runs that may not be."""

    def __init__(self, repo: Repository, first_seen: FirstSeen) -> None:
        self._first_seen = first_seen
        self._named: set[bytes] = set()
        for chain in repo.history.chains.values():
            for entry in chain.entries:
                if entry.record.type in (AddSnap.TYPE, Session.TYPE):
                    try:
                        known = understood(entry.record)
                    except IntegrityError:
                        continue
                    if isinstance(known, AddSnap | Session):
                        self._named.update(known.packs)

    def among(self, packs: Sequence[PackUse]) -> list[PackUse]:
        """Those that were named once, or have been here long enough."""
        unnamed = [use for use in packs if use.pack not in self._named]
        young = {use.pack for use in unnamed if self._first_seen.age_ms("orphans", use.pack) < ORPHAN_MS}
        self._first_seen.save("orphans", [use.pack for use in unnamed])
        return [use for use in packs if use.pack not in young]
