"""The state of a repository as plain values: volumes, snapshots, runs, sessions, expected files (FORMAT 8, State)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lamella.base.ids import RepoId, VolumeId, WriterId
from lamella.format.commit import Head
from lamella.format.inner import OriginPlace
from lamella.format.records import NO_REF, AddSnap, File, Ref, Run, Volume, Writer
from lamella.history.order import Clock
from lamella.history.owners import Owners

if TYPE_CHECKING:
    from lamella.format.lost import Address, Lost
    from lamella.format.owners import Expel
    from lamella.history.open_sessions import OpenSession

HERE = RepoId(b"")


class Series(NamedTuple):
    """The snapshots of a volume that are judged together: its owners', or those that one other writer claims."""

    volume_id: VolumeId
    claimant: WriterId | None = None


NO_SERIES = Series(VolumeId(bytes(16)))


@dataclass(slots=True)
class Snapshot:
    """One volume's committed moment, with what is known about its place in history."""

    ref: Ref
    added: AddSnap
    clock: Clock | None
    """What its commit had seen; None where only an old checkpoint still carries the snapshot."""
    confirmed: bool = False
    conflict: bool = False
    marked_removed: bool = False
    """A REMOVE without the prune key's signature names it: it stays, and whoever holds the key may remove it."""
    tags: tuple[str, ...] = ()
    pinned: str | None = None
    """Why no rule may remove it; None if it is not pinned."""
    lost: Lost | None = None
    """The parts that a repair could not restore; None if nothing is known to be lost."""
    revived: bool = False
    """A signed REVIVE published it: its time is that of the moment, whoever saw it when."""
    given_up: bool = False
    """Its author, an owner, or somebody with the prune key, said what of it is lost: nobody expects that back."""
    first: Ref = NO_REF
    """The snapshot that was revived as this one; of any other snapshot, itself."""
    origin: OriginPlace | None = None
    """Of a copy, where it was first published; of this repository's own snapshots the repository id is empty."""
    series: Series = NO_SERIES
    expelled: bool = False
    """Its writer was expelled before it was published: needed until `delete --expelled`, and nothing else."""
    counts: bool = True
    """It is an owner's or this host's own: others are listed and restored, and never taken for the volume's latest."""

    @property
    def name(self) -> str:
        """The name it shares with the other volumes of its run."""
        return self.added.name

    @property
    def claim(self) -> bool:
        """Whether somebody added it to a volume of others."""
        return self.series.claimant is not None

    @property
    def place(self) -> OriginPlace:
        """Where it was first published; a revived one counts as what it was before."""
        return self.origin or OriginPlace(HERE, self.ref if self.first == NO_REF else self.first)


@dataclass(slots=True)
class VolumeState:
    """A volume with all its snapshots, oldest first."""

    volume_id: VolumeId
    name: str
    identity: bytes
    domain_label: str
    owners: frozenset[WriterId]
    """The writers that may name, order, tag and pin: the creator, and those who received the volume."""
    record: Volume | None
    own: bool = False
    """This host is an owner; of a volume without owners, this host alone says what it is."""
    snapshots: list[Snapshot] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Removal:
    """A snapshot that validly signed records removed."""

    ref: Ref
    added: AddSnap | None
    """The removed snapshot's record; None once its author's checkpoints have dropped that."""
    commits: tuple[tuple[WriterId, int], ...]
    """The commits that say so, ascending."""
    time_ms: int = 0
    """When the newest of them was published, by its own word (UTC)."""
    last: bool = False
    """By somebody who said that no whole snapshot need be left (REMOVE_LAST)."""
    revived: bool = False
    """A signed REVIVE published it anew."""
    series: Series = NO_SERIES


@dataclass(slots=True)
class Catalogue:
    """The state of the repository: the union over all chains."""

    volumes: dict[VolumeId, VolumeState] = field(default_factory=dict)
    removed: dict[Ref, Removal] = field(default_factory=dict)
    """Snapshots that are no more."""
    runs: dict[str, Run] = field(default_factory=dict)
    """Of those snapshots that are there."""
    sessions: list[OpenSession] = field(default_factory=list)
    """Runs that were begun and neither published nor given up."""
    bad: frozenset[Address] = frozenset()
    """Addresses at which a verification could not open a blob: places to look at again, no verdicts."""
    files: dict[str, File] = field(default_factory=dict)
    writers: dict[WriterId, Writer] = field(default_factory=dict)
    retired: dict[WriterId, Head] = field(default_factory=dict)
    """Writers that are gone, with the commits their chains end with."""
    expulsions: list[Expel] = field(default_factory=list)
    """Those that were not undone."""
    expelled: dict[WriterId, Head] = field(default_factory=dict)
    """Writers whose word counts up to this commit only."""
    owners: Owners = field(default_factory=Owners)
    """The writers that act for other writers."""
    own_line: frozenset[WriterId] = frozenset()
    """This host's writer, and all writers it acts for."""
    notes: list[str] = field(default_factory=list)
    """Oddities worth telling: records that were not applied, conflicts, unknown records."""
    malformed: list[str] = field(default_factory=list)
    """Records that cannot be read although they must be understood: a snapshot may be meant by any of them."""
    read_only: bool = False
    """A required record of a later version was met that the prune key signed: nobody may publish."""
    unread: dict[WriterId, str] = field(default_factory=dict)
    """Writers of which a required record of a later version is known, with the text that says where: from that commit
    on their records are not read."""

    @property
    def snapshots(self) -> list[Snapshot]:
        """All snapshots of all volumes."""
        return [snapshot for volume in self.volumes.values() for snapshot in volume.snapshots]

    def shown_names(self) -> dict[VolumeId, str]:
        """The name of each volume as users see it: `NAME~<4 hex>` where the name alone would not tell which is meant.

        A name means this host's own volume; without one, the only volume of that name that has an owner.
        """
        by_name: dict[str, list[VolumeState]] = defaultdict(list)
        for volume in self.volumes.values():
            by_name[volume.name].append(volume)
        names: dict[VolumeId, str] = {}
        for name, group in by_name.items():
            meant = [one for one in group if one.own] or [one for one in group if one.owners]
            plain = meant[0] if len(meant) == 1 else None
            for one in group:
                alone = one is plain or one.record is None  # a name made of its id
                names[one.volume_id] = name if alone else f"{name}~{one.volume_id.hex()[:4]}"
        return names

    def own_volumes(self) -> list[VolumeState]:
        """The volumes whose names, identities and domain labels this host uses."""
        return [volume for volume in self.volumes.values() if volume.own]


def by_series(snapshots: Iterable[Snapshot]) -> dict[Series, list[Snapshot]]:
    """Snapshots by series; within each, those of owners come first."""
    found: dict[Series, list[Snapshot]] = defaultdict(list)
    for snapshot in sorted(snapshots, key=lambda one: one.claim):
        found[snapshot.series].append(snapshot)
    return found
