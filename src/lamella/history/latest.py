"""Which snapshot of a volume is the latest (FORMAT 8, Latest)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lamella.base.ids import RepoId, WriterId
from lamella.format.records import Ref
from lamella.history.catalogue import Snapshot


def before(one: Snapshot, other: Snapshot) -> bool | None:
    """Whether `one` comes before `other` in the order of chains and `seen`; None if that cannot be told.

    The place of a copy in its chain says when it was copied, and of a revived one when it came back: such a one is
    placed by the chain where it was first published, and beside snapshots of other writers by its moment.
    """
    a, b = one.place, other.place
    if (a.repo_id, a.ref.writer) == (b.repo_id, b.ref.writer):
        return a.ref.seq < b.ref.seq
    if one.ref != a.ref or other.ref != b.ref:
        return moment(one) < moment(other)
    if other.added.parent == one.ref:
        return True
    if other.clock is None:
        return None
    return other.clock.get(one.ref.writer, 0) >= one.ref.seq


def moment(snapshot: Snapshot) -> tuple[int, str, Ref]:
    """Orders snapshots by what they say of their time."""
    return snapshot.added.time_ms, snapshot.name, snapshot.ref


def latest(
    snapshots: Iterable[Snapshot], time_of: Callable[[Snapshot], int] = lambda one: one.added.time_ms
) -> list[Snapshot]:
    """The latest one, and after it those that nobody knows to be earlier (FORMAT 8, Latest); empty without snapshots.

    Several are left where writers knew nothing of each other, or where each is before another one because a writer lied
    about what it had seen: the one with the greatest believed time is the latest.
    """
    rows = list(snapshots)
    newest: dict[tuple[RepoId, WriterId], int] = {}
    for repo_id, ref in (row.place for row in rows):
        newest[repo_id, ref.writer] = max(ref.seq, newest.get((repo_id, ref.writer), 0))
    ends = [row for row in rows if row.place.ref.seq == newest[row.place.repo_id, row.place.ref.writer]]
    found = [one for one in ends if not any(before(one, other) for other in ends if other is not one)]
    return sorted(found or ends, key=lambda one: (time_of(one), one.name, one.ref), reverse=True)
