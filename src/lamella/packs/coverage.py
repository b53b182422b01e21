"""How much of the stored packs this host has read whole, run after run. Loaded by verify alone."""

from __future__ import annotations

from typing import NamedTuple

from lamella.base.ids import DomainId
from lamella.packs.cache import Cache


class PackCoverage(NamedTuple):
    """What was found sound of some packs: bytes, in how many runs, and when the part that is longest unread was."""

    read_bytes: int
    total_bytes: int
    runs: int
    oldest_ms: int
    """UTC; 0 if nothing was read."""

    @property
    def whole(self) -> bool:
        """Whether every pack was read."""
        return 0 < self.total_bytes == self.read_bytes


def coverage(cache: Cache, domains: set[DomainId] | None, now_ms: int) -> PackCoverage:
    """What of the packs of these domains (None: of all) was read; a time that lies in the future counts as never."""
    among = "" if domains is None else f" AND p.domain IN ({','.join('?' * len(domains))})"
    query = (
        "SELECT coalesce(sum(iif(c.time IS NULL, 0, p.length)), 0), coalesce(sum(p.length), 0),"
        " count(DISTINCT c.time), coalesce(min(c.time), 0) FROM packs p"
        f" LEFT JOIN proved c ON c.pack = p.name AND c.time <= ? WHERE p.trouble IS NULL{among}"
    )
    return PackCoverage(*map(int, cache.row(query, (now_ms, *sorted(domains or ())))))
