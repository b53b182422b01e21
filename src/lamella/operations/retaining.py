"""Applying a retention policy to a repository: what would stay, what would go, and why (docs/decisions/0022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, tzinfo

from lamella.errors import UsageError
from lamella.format.records import Ref
from lamella.operations.confirmations import Confirmations
from lamella.operations.selection import Selected, find_volume
from lamella.repository.catalogue import Snapshot, latest
from lamella.repository.repository import Repository
from lamella.retention import Moment, Retention, Verdict, believed_time, judge


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of every volume, and the zone whose calendar they follow."""

    rules: Retention = field(default_factory=Retention)
    volumes: Mapping[str, Retention] = field(default_factory=dict)
    """Rules of volumes, by the name they are shown under, instead of the general ones."""
    zone: tzinfo = UTC

    @property
    def empty(self) -> bool:
        """Whether no volume has a rule."""
        return self.rules.empty and all(rules.empty for rules in self.volumes.values())

    def rules_of(self, volume: str) -> Retention:
        """The rules of a volume."""
        return self.volumes.get(volume, self.rules)


@dataclass(frozen=True, slots=True)
class Judged:
    """A snapshot with its verdict."""

    selected: Selected
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """What a policy says about the snapshots of a repository."""

    rows: tuple[Judged, ...]

    @property
    def removed(self) -> tuple[Judged, ...]:
        """What would go, by volume and newest first."""
        return tuple(row for row in self.rows if not row.verdict.keep)

    @property
    def kept(self) -> tuple[Judged, ...]:
        """What would stay."""
        return tuple(row for row in self.rows if row.verdict.keep)

    @property
    def strange(self) -> tuple[Judged, ...]:
        """What no rule looked at, because its time makes no sense."""
        return tuple(row for row in self.rows if not row.verdict.judged)

    @property
    def refs(self) -> tuple[Ref, ...]:
        """What is to be removed."""
        return tuple(row.selected.snapshot.ref for row in self.removed)


def plan_retention(
    repo: Repository, policy: Policy, volumes: Sequence[str] = (), *, spare_last: bool = True
) -> RetentionPlan:
    """Judge the snapshots of all volumes, or of those named.

    Raises UsageError for a policy without any rule, NothingMatched for an unknown volume.
    """
    if policy.empty:
        hint = "give a rule, for example --keep-daily 7, or write [prune] into the configuration"
        raise UsageError("there is no rule for what to keep, so nothing is removed", hint=hint)
    shown = repo.catalogue.shown_names()
    chosen = [find_volume(repo, name) for name in volumes] or list(repo.catalogue.volumes.values())
    good = good_snapshots(repo)
    by_name = {shown[volume.volume_id]: volume for volume in chosen}
    moments: list[Moment] = []
    snapshots: dict[tuple[str, int], Selected] = {}
    for name, volume in by_name.items():
        ends = {snapshot.ref for snapshot in latest(volume.snapshots)}
        for number, snapshot in enumerate(volume.snapshots):
            moments.append(_moment(repo, name, number, snapshot, good(snapshot), snapshot.ref in ends))
            snapshots[name, number] = Selected(name, volume, snapshot)
    verdicts = judge(moments, policy.rules_of, repo.clock(), policy.zone, spare_last=spare_last)
    return RetentionPlan(tuple(Judged(snapshots[row.moment.volume, row.moment.number], row) for row in verdicts))


def good_snapshots(repo: Repository) -> Callable[[Snapshot], bool]:
    """Says of a snapshot whether it is known to be whole and of use."""
    waiting = set(Confirmations(repo).waiting())

    def good(snapshot: Snapshot) -> bool:
        whole = snapshot.confirmed or snapshot.ref in waiting
        return whole and snapshot.added.usable and not snapshot.conflict

    return good


def _moment(repo: Repository, name: str, number: int, snapshot: Snapshot, good: bool, newest: bool) -> Moment:
    own = snapshot.ref.writer == repo.own_writer
    sight = None if own else repo.sightings.of(snapshot.ref.writer, snapshot.ref.seq)
    said = snapshot.added.time_ms
    time_ms = said if sight is None else believed_time(said, sight.first_ms, sight.before_ms)
    return Moment(
        name,
        snapshot.name,
        time_ms,
        number=number,
        good=good,
        arrived_ms=None if sight is None else sight.first_ms,
        doubtful=time_ms != said,
        tags=frozenset(snapshot.tags),
        pinned=snapshot.pinned,
        latest=newest,
    )
