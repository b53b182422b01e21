"""Inner records of ADD_SNAP (FORMAT 8): change tracking, where a copy comes from, and whether a repair made it."""

from __future__ import annotations

from typing import NamedTuple

from lamella.base.ids import RepoId
from lamella.format.layout import ID, U64, row
from lamella.format.records import REF, AddSnap, RawRecord, Ref

SAMPLED, REFUTED, ORIGIN, CLAIMED, REBUILT = 0x8002, 0x8003, 0x8010, 0x8011, 0x8020


class Sampled(NamedTuple):
    """SAMPLED: the chunk at which the next run's slice begins, and how much was re-read in this run."""

    cursor: int
    sampled_bytes: int

    def encode(self) -> RawRecord:
        """The inner record."""
        return RawRecord(SAMPLED, _SAMPLED.encode(self))

    @classmethod
    def of(cls, added: AddSnap) -> Sampled | None:
        """What a snapshot says; None if nothing."""
        return added.inner_value(SAMPLED, _SAMPLED)


class Refuted(NamedTuple):
    """REFUTED: the change map called the chunk at `offset` unchanged, but it had changed; the run then compared
    everything.
    """

    offset: int
    length: int

    def encode(self) -> RawRecord:
        """The inner record."""
        return RawRecord(REFUTED, _REFUTED.encode(self))

    @classmethod
    def of(cls, added: AddSnap) -> Refuted | None:
        """What a snapshot says; None if nothing."""
        return added.inner_value(REFUTED, _REFUTED)


class OriginPlace(NamedTuple):
    """A snapshot of a repository."""

    repo_id: RepoId
    ref: Ref


class Origin(NamedTuple):
    """ORIGIN: where a snapshot was first published, and what this copy was made from: the same, unless that was a copy
    too.
    """

    first: OriginPlace
    copied: OriginPlace

    def encode(self) -> RawRecord:
        """The inner record."""
        return RawRecord(ORIGIN, _ORIGIN.encode(self))

    @classmethod
    def of(cls, added: AddSnap) -> Origin | None:
        """What a snapshot says; None if it is no copy."""
        return added.inner_value(ORIGIN, _ORIGIN)


_SAMPLED, _REFUTED = row(Sampled, U64, U64), row(Refuted, U64, U64)
_PLACE = row(OriginPlace, ID, REF)
_ORIGIN = row(Origin, _PLACE, _PLACE)


def first_place(repo_id: RepoId, ref: Ref, added: AddSnap) -> OriginPlace:
    """By what a snapshot of a repository is known everywhere: what it is a copy of, else itself."""
    origin = Origin.of(added)
    return OriginPlace(repo_id, ref) if origin is None else origin.first


def rebuilt_mark() -> RawRecord:
    """REBUILT: the snapshot was made again from a tree note after its commit was lost."""
    return RawRecord(REBUILT, b"\x01" + bytes(7))


def was_rebuilt(added: AddSnap) -> bool:
    """Whether a snapshot says that a repair made it again."""
    return any(record.type == REBUILT for record in added.inner)


def claim_of_time(time_ms: int) -> RawRecord:
    """CLAIMED: the user said that a stream shows the state of this moment, in UTC milliseconds."""
    return RawRecord(CLAIMED, U64.encode(time_ms))


def claimed_ms(added: AddSnap) -> int | None:
    """The moment whose state a snapshot shows, as far as its user said so; None if nothing was said."""
    return added.inner_value(CLAIMED, U64)
