"""Applying a retention policy to a repository: what would stay, what would go, and why (docs/decisions/0022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, tzinfo

from lamella.base.errors import UsageError
from lamella.format.records import Ref
from lamella.history.catalogue import Snapshot, latest
from lamella.operations.prune.health import Health
from lamella.operations.prune.retention import Moment, Retention, Verdict, believed_time, judge_until_stable
from lamella.operations.prune.tracing import Flaw
from lamella.operations.shared.selection import Selected, find_volume
from lamella.repository.repository import Repository


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
    flaw: Flaw | None = None
    """Why it is not whole, of those that stay and were looked into."""


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
    def damaged(self) -> tuple[Judged, ...]:
        """What would stay and is not whole, unless a LOST that counts says so."""
        return tuple(row for row in self.kept if row.flaw is not None and not row.selected.snapshot.given_up)

    @property
    def strange(self) -> tuple[Judged, ...]:
        """What no rule looked at, because its time makes no sense."""
        return tuple(row for row in self.rows if not row.verdict.judged)

    @property
    def refs(self) -> tuple[Ref, ...]:
        """What is to be removed."""
        return tuple(row.selected.snapshot.ref for row in self.removed)


def require_rules(policy: Policy) -> None:
    """Raises UsageError for a policy without any rule."""
    if policy.empty:
        hint = "give a rule, for example --keep-daily 7, or write [prune] into the configuration"
        raise UsageError("there is no rule for what to keep, so nothing is removed", hint=hint)


def plan_retention(
    repo: Repository,
    policy: Policy,
    volumes: Sequence[str] = (),
    *,
    spare_last: bool = True,
    health: Health | None = None,
) -> RetentionPlan:
    """Judge the snapshots of all volumes, or of those named; what would stay is read as far as its manifests go.

    `health` takes what is read over to the prune that follows. Raises UsageError for a policy without any rule,
    NothingMatched for an unknown volume, StoreError.
    """
    require_rules(policy)
    with ExitStack() as held:
        return _Judging(repo, policy, health or held.enter_context(Health(repo))).plan(volumes, spare_last)


class _Judging:
    """One judgement."""

    def __init__(self, repo: Repository, policy: Policy, health: Health) -> None:
        self._repo = repo
        self._policy = policy
        self._health = health
        self._selected: dict[tuple[str, int], Selected] = {}
        self._flaws: dict[Ref, Flaw] = {}

    def plan(self, volumes: Sequence[str], spare_last: bool) -> RetentionPlan:
        repo, rules = self._repo, self._policy
        shown = repo.catalogue.shown_names()
        chosen = [find_volume(repo, name) for name in volumes] or list(repo.catalogue.volumes.values())
        moments: list[Moment] = []
        for volume in chosen:
            name = shown[volume.volume_id]
            ends = {snapshot.ref for snapshot in latest(volume.snapshots)}
            for number, snapshot in enumerate(volume.snapshots):
                moments.append(_moment(repo, name, number, snapshot, snapshot.ref in ends))
                self._selected[name, number] = Selected(name, volume, snapshot)
        verdicts = judge_until_stable(
            moments, rules.rules_of, repo.clock(), rules.zone, self._not_whole, spare_last=spare_last
        )
        return RetentionPlan(tuple(self._row(verdict) for verdict in verdicts))

    def _not_whole(self, moments: Sequence[Moment]) -> list[Moment]:
        asked = {moment: self._of(moment).snapshot for moment in moments}
        self._flaws |= self._health.flaws(asked.values())
        return [moment for moment, snapshot in asked.items() if snapshot.ref in self._flaws]

    def _of(self, moment: Moment) -> Selected:
        return self._selected[moment.volume, moment.number]

    def _row(self, verdict: Verdict) -> Judged:
        selected = self._of(verdict.moment)
        return Judged(selected, verdict, self._flaws.get(selected.snapshot.ref))


def _moment(repo: Repository, name: str, number: int, snapshot: Snapshot, newest: bool) -> Moment:
    trusted = snapshot.revived or snapshot.ref.writer == repo.own_writer
    sight = None if trusted else repo.log.sightings.of(snapshot.ref.writer, snapshot.ref.seq)
    said = snapshot.added.time_ms
    time_ms = said if sight is None else believed_time(said, sight.first_ms, sight.before_ms)
    return Moment(
        name,
        snapshot.name,
        time_ms,
        number=number,
        arrived_ms=None if sight is None else sight.first_ms,
        doubtful=time_ms != said,
        tags=frozenset(snapshot.tags),
        pinned=snapshot.pinned,
        latest=newest,
    )
