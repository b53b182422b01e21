"""Which snapshots of a volume are the latest (FORMAT 8, Latest)."""

from __future__ import annotations

from collections.abc import Iterable

from lamella.base.ids import WriterId
from lamella.format.inner import Origin
from lamella.history.catalogue import Snapshot


def before(one: Snapshot, other: Snapshot) -> bool | None:
    """Whether `one` comes before `other` in the order of chains and `seen`; None if that cannot be told."""
    if one.ref.writer == other.ref.writer:
        return one.ref.seq < other.ref.seq
    if other.added.parent == one.ref:
        return True
    if other.clock is None:
        return None
    return other.clock.get(one.ref.writer, 0) >= one.ref.seq


def latest(snapshots: Iterable[Snapshot]) -> list[Snapshot]:
    """The snapshots that are before no other one: usually one, and none only if there is no snapshot.

    The place of a copy in its chain says when it was copied, and of a revived one when it came back: with such a one
    among them, and where each is before another one because a writer lied about what it had seen, the newest moment is
    the latest.
    """
    rows = list(snapshots)
    if any(one.revived or Origin.of(one.added) is not None for one in rows):
        return [_newest_moment(rows)]
    newest: dict[WriterId, int] = {}
    for row in rows:
        newest[row.ref.writer] = max(row.ref.seq, newest.get(row.ref.writer, 0))
    ends = [row for row in rows if row.ref.seq == newest[row.ref.writer]]
    found = [one for one in ends if not any(before(one, other) for other in rows if other is not one)]
    return found or [_newest_moment(ends)] if rows else []


def _newest_moment(snapshots: Iterable[Snapshot]) -> Snapshot:
    return max(snapshots, key=lambda one: (one.added.time_ms, one.name, one.ref))
