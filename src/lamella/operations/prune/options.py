"""What a prune may do, and what became of it: values."""

from __future__ import annotations

from dataclasses import dataclass, field

from lamella.base.errors import IntegrityError
from lamella.base.ids import WriterId
from lamella.format.records import Ref

HOUR_MS = 3600 * 1000
DAY_MS = 24 * HOUR_MS


@dataclass(frozen=True, slots=True)
class PruneOptions:
    """How far to go. Percentages are of bytes; times are milliseconds."""

    repack: bool = True
    """Packs that are partly needed may be rewritten. Without it only packs that nothing needs are deleted."""
    repack_below: float = 50.0
    """A pack is rewritten when less than this percentage of it is needed."""
    max_unused: float = 30.0
    """Beyond that, packs are rewritten until unneeded bytes are at most this percentage of the needed ones."""
    batch_bytes: int = 1 << 30
    """Needed bytes rewritten before their old packs go: an interruption loses at most this much work."""
    grace_ms: int = DAY_MS
    """Where the store has no lock: how long a condemned pack stays at least."""
    remove_delay_ms: int = 0
    """How long after this host first saw a REMOVE its snapshot is still needed (append-only set-ups: 14 days)."""
    last: bool = False
    """The last whole snapshot of a volume may be removed, too, and does not come back (REMOVE_LAST)."""
    retire: tuple[WriterId, ...] = ()
    """Writers whose silence no longer holds deletions up."""


@dataclass(slots=True)
class PruneResult:
    """What became of it. Sizes in bytes of whole packs."""

    removed: list[Ref] = field(default_factory=list)
    """Snapshots that this run removed."""
    freed_bytes: int = 0
    """Deleted from the store, less what was written instead."""
    condemned_bytes: int = 0
    """To be deleted by a later run, once nobody can need it any more."""
    condemned_until_ms: int = 0
    """The earliest moment at which that can be; 0 if nothing is condemned."""
    repacked_bytes: int = 0
    """Needed bytes that were rewritten."""
    deleted_packs: int = 0
    deleted_commits: int = 0
    """Commits that an audited checkpoint repeats."""
    live_bytes: int = 0
    """Needed bytes left."""
    dead_bytes: int = 0
    """Unneeded bytes left in packs that were not worth rewriting."""
    waiting: list[str] = field(default_factory=list)
    """Why condemned packs could not be deleted yet."""
    blocked: list[IntegrityError] = field(default_factory=list)
    """Why nothing was deleted in a part of the repository. The exit code is the largest of theirs."""
    damaged: list[IntegrityError] = field(default_factory=list)
    """Snapshots that stay and are not whole. The exit code is at least theirs."""
    revived: list[str] = field(default_factory=list)
    """Names of removed snapshots that are back, because their volume had no whole one left."""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
