"""What the commits add up to, as plain values: volumes, snapshots, runs, sessions, expected files (FORMAT 8, State)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from lamella.base.ids import VolumeId, WriterId
from lamella.format.commit import Head
from lamella.format.lost import Address, Lost
from lamella.format.records import AddSnap, File, Ref, Run, Volume, Writer
from lamella.history.open_sessions import OpenSession
from lamella.history.order import Clock


@dataclass(slots=True)
class Snapshot:
    """One volume's committed moment, with what is known about its place in history."""

    ref: Ref
    added: AddSnap
    clock: Clock | None
    """What its commit knew of; None where only an old checkpoint still carries it."""
    confirmed: bool = False
    conflict: bool = False
    marked_removed: bool = False
    """A REMOVE without the prune key's signature names it: it stays, and whoever holds the key may remove it."""
    tags: tuple[str, ...] = ()
    pinned: str | None = None
    """Why no rule may remove it; None if it is not pinned."""
    lost: Lost | None = None
    """What a repair could not bring back; None if nothing is known to be lost."""
    revived: bool = False
    """A signed REVIVE published it: its time is that of the moment, whoever saw it when."""
    given_up: bool = False
    """Its author, or somebody with the prune key, said what of it is lost: nobody expects that back."""

    @property
    def name(self) -> str:
        """The name it shares with the other volumes of its run."""
        return self.added.name


@dataclass(slots=True)
class VolumeState:
    """A volume with all its snapshots, oldest first."""

    volume_id: VolumeId
    name: str
    identity: bytes
    domain_label: str
    author: WriterId
    record: Volume | None
    snapshots: list[Snapshot] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Removal:
    """A snapshot that validly signed records removed."""

    ref: Ref
    added: AddSnap | None
    """What it was; None once its author's checkpoints have dropped it."""
    commits: tuple[tuple[WriterId, int], ...]
    """The commits that say so, ascending."""
    time_ms: int = 0
    """When the newest of them was published, by its own word (UTC)."""
    last: bool = False
    """By somebody who said that no whole snapshot need be left (REMOVE_LAST)."""
    revived: bool = False
    """A signed REVIVE published it anew."""


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
        """The name of each volume as users see it: `NAME~<4 hex>` where several volumes share a name."""
        by_name: dict[str, list[VolumeState]] = defaultdict(list)
        for volume in self.volumes.values():
            by_name[volume.name].append(volume)
        return {
            volume.volume_id: name if len(group) == 1 else f"{name}~{volume.volume_id.hex()[:4]}"
            for name, group in by_name.items()
            for volume in group
        }
