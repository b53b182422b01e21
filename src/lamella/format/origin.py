"""ORIGIN, an inner record of ADD_SNAP (FORMAT 8): of which snapshot, of which repository, this one is a copy."""

from __future__ import annotations

from typing import NamedTuple, Self

from lamella.base.errors import IntegrityError
from lamella.base.ids import RepoId
from lamella.format.cursor import Cursor
from lamella.format.records import AddSnap, RawRecord, Ref

ORIGIN = 0x8010


class Place(NamedTuple):
    """A snapshot of a repository."""

    repo_id: RepoId
    ref: Ref

    def encode(self) -> bytes:
        """56 bytes."""
        return self.repo_id + self.ref.encode()

    @classmethod
    def decode(cls, cursor: Cursor) -> Self:
        """The next 56 bytes."""
        return cls(RepoId(cursor.take(16)), Ref.decode(cursor))


class Origin(NamedTuple):
    """Where a snapshot was first published, and what this copy was made from: the same, unless that was a copy too."""

    first: Place
    copied: Place

    def encode(self) -> RawRecord:
        """The inner record."""
        return RawRecord(ORIGIN, self.first.encode() + self.copied.encode())

    @classmethod
    def of(cls, added: AddSnap) -> Self | None:
        """What a snapshot says; None if it is no copy, or says nothing that can be read: the record is optional."""
        value = next((record.value for record in added.inner if record.type == ORIGIN), None)
        if value is None:
            return None
        cursor = Cursor(value, "ADD_SNAP")
        try:
            found = cls(Place.decode(cursor), Place.decode(cursor))
            cursor.end()
        except IntegrityError:
            return None
        return found


def first_place(repo_id: RepoId, ref: Ref, added: AddSnap) -> Place:
    """By what a snapshot of a repository is known everywhere: what it is a copy of, else itself."""
    origin = Origin.of(added)
    return Place(repo_id, ref) if origin is None else origin.first
