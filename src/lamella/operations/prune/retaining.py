"""Applying a retention policy to a repository: what would stay, what would go, and why (docs/decisions/0022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, tzinfo

from lamella.base.errors import IntegrityError, UnknownFormat, UsageError
from lamella.base.ids import DomainId
from lamella.format import node
from lamella.format.container import Kind
from lamella.format.node import Shape
from lamella.format.records import AddSnap, Ref
from lamella.history.catalogue import Snapshot, by_series
from lamella.history.latest import latest
from lamella.memory.proven import ProvenSnapshots
from lamella.operations.prune.health import Flaw, Health, Tracer
from lamella.operations.prune.retention import DatedSnapshot, Retention, Ruling, judge, judge_until_stable
from lamella.operations.shared.selection import Selected, find_volume
from lamella.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of every volume, and the zone whose calendar they follow."""

    rules: Retention = field(default_factory=Retention)
    volumes: Mapping[str, Retention] = field(default_factory=dict)
    """Rules of volumes, by the name that their owners gave them, instead of the general ones."""
    zone: tzinfo = UTC

    @property
    def empty(self) -> bool:
        """Whether no volume has a rule."""
        return self.rules.empty and all(rules.empty for rules in self.volumes.values())

    def rules_of(self, volume: str) -> Retention:
        """The rules of a volume."""
        return self.volumes.get(volume, self.rules)


@dataclass(frozen=True, slots=True)
class JudgedSnapshot:
    """A snapshot with its verdict."""

    selected: Selected
    verdict: Ruling
    flaw: Flaw | None = None
    """Why it is not whole, of those that stay and were looked into."""


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """The verdicts of a policy on the snapshots of a repository."""

    rows: tuple[JudgedSnapshot, ...]
    unproven: tuple[str, ...] = ()
    """Volumes of which no snapshot passed a full verification on this host: rot may be in all of them."""

    @property
    def removed(self) -> tuple[JudgedSnapshot, ...]:
        """The snapshots that would go, by volume and newest first."""
        return tuple(row for row in self.rows if not row.verdict.keep)

    @property
    def kept(self) -> tuple[JudgedSnapshot, ...]:
        """The snapshots that would stay."""
        return tuple(row for row in self.rows if row.verdict.keep)

    @property
    def damaged(self) -> tuple[JudgedSnapshot, ...]:
        """The snapshots that would stay and are not whole, unless a LOST that counts says so."""
        rows = (row for row in self.kept if row.flaw is not None and not row.flaw.never)
        return tuple(row for row in rows if not row.selected.snapshot.given_up)

    @property
    def strange(self) -> tuple[JudgedSnapshot, ...]:
        """The snapshots that no rule looked at, because their time makes no sense."""
        return tuple(row for row in self.rows if not row.verdict.judged)

    @property
    def refs(self) -> tuple[Ref, ...]:
        """The snapshots to be removed."""
        return tuple(row.selected.snapshot.ref for row in self.removed)


def require_rules(policy: Policy) -> None:
    """Raises UsageError for a policy without any rule."""
    if policy.empty:
        hint = "give a rule, for example --keep-daily 7, or write [prune] into the configuration"
        hint += "; the rules of a profile are those of lamella run"
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
    shown = repo.catalogue.shown_names()
    selected: dict[tuple[str, int], Selected] = {}
    dated: list[DatedSnapshot] = []
    rules: dict[str, Retention] = {}
    unproven: list[str] = []
    known = ProvenSnapshots(repo.proofs)
    for volume in [find_volume(repo, name) for name in volumes] or repo.catalogue.volumes.values():
        name = shown[volume.volume_id]
        proven = known.of(volume.volume_id)
        if proven is None or all(snapshot.ref != proven for snapshot in volume.snapshots):
            unproven.append(name)
        for series, snapshots in by_series(one for one in volume.snapshots if not one.expelled).items():
            row = name if series.claimant is None else f"{name}, claimed by writer {series.claimant.hex()[:8]}"
            rules[row] = policy.rules_of(volume.name)
            ends = {snapshot.ref for snapshot in latest(snapshots, repo.log.believed_ms)[:1]}
            for snapshot in snapshots:
                number = len(dated)
                dated.append(_dated(repo, row, number, snapshot, snapshot.ref in ends, proven))
                selected[row, number] = Selected(name, volume, snapshot)
    flaws: dict[Ref, Flaw] = {}

    with ExitStack() as held:
        judged = health or held.enter_context(Health(repo))

        def not_whole(rows: Sequence[DatedSnapshot]) -> list[DatedSnapshot]:
            asked = {row: selected[row.volume, row.number].snapshot for row in rows}
            flaws.update(judged.flaws(asked.values()))
            return [row for row, snapshot in asked.items() if snapshot.ref in flaws]

        how = rules.__getitem__, repo.clock(), policy.zone
        going = {row.moment.volume for row in judge(dated, *how, spare_last=spare_last) if not row.keep}
        data = _data_of(repo, {place: one for place, one in selected.items() if place[0] in going})
        dated = [replace(row, data=data.get((row.volume, row.number))) for row in dated]
        rulings = judge_until_stable(dated, *how, not_whole, spare_last=spare_last)
    found = [(selected[ruling.moment.volume, ruling.moment.number], ruling) for ruling in rulings]
    rows = tuple(JudgedSnapshot(one, ruling, flaws.get(one.snapshot.ref)) for one, ruling in found)
    return RetentionPlan(rows, tuple(unproven))


_Place = tuple[str, int]


def _data_of(repo: Repository, selected: Mapping[_Place, Selected]) -> dict[_Place, int]:
    """The number of chunks with data of each snapshot whose root can be read; no other node is. Raises StoreError."""
    domains: dict[DomainId, list[_Place]] = {}
    for place, one in selected.items():
        domains.setdefault(one.snapshot.added.domain_id, []).append(place)
    found: dict[_Place, int] = {}
    for domain_id, places in domains.items():
        tracer = Tracer(repo, domain_id)
        for start in range(0, len(places), 256):
            found |= _data_in(tracer, {place: selected[place].snapshot.added for place in places[start : start + 256]})
    return found


def _data_in(tracer: Tracer, some: Mapping[_Place, AddSnap]) -> dict[_Place, int]:
    shapes = {place: Shape(added.volume_id, added.size, added.chunk_log2) for place, added in some.items()}
    found: dict[_Place, int] = {}
    for kind in (Kind.LEAF, Kind.INNER):
        of_kind = [place for place in some if (shapes[place].depth == 1) == (kind == Kind.LEAF)]
        contents = tracer.opened(kind, list({some[place].root for place in of_kind}))
        for place in of_kind:
            content, shape = contents.get(some[place].root), shapes[place]
            with suppress(IntegrityError, UnknownFormat):
                if isinstance(content, bytes):
                    found[place] = node.decode(content, shape, shape.depth - 1, 0).data_below
    return found


def _dated(
    repo: Repository, name: str, number: int, snapshot: Snapshot, newest: bool, proven: Ref | None
) -> DatedSnapshot:
    trusted = snapshot.revived or snapshot.ref.writer == repo.own_writer
    sight = None if trusted else repo.log.sightings.of(snapshot.ref.writer, snapshot.ref.seq)
    time_ms = repo.log.believed_ms(snapshot)
    return DatedSnapshot(
        name,
        snapshot.name,
        time_ms,
        number=number,
        arrived_ms=None if sight is None else sight.first_ms,
        doubtful=time_ms != snapshot.added.time_ms,
        tags=frozenset(snapshot.tags),
        pinned=snapshot.pinned,
        latest=newest,
        proven=snapshot.ref == proven,
    )
