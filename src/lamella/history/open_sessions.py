"""Runs that were begun and neither published nor given up: what SESSION and ABANDON add up to (FORMAT 8)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lamella.base.ids import WriterId
from lamella.format.commit import ChainEntry
from lamella.format.sessions import Abandon, PartialRoot, Session, SessionVolume
from lamella.history.history import Chain
from lamella.history.records import of_kinds


@dataclass(frozen=True, slots=True)
class OpenSession:
    """All SESSION records of one session_id as one: the union of the packs, everything else as the last one says."""

    writer: WriterId
    seq: int
    """The commit with its last SESSION."""
    time_ms: int
    """When that commit says it was made: information only."""
    session_id: bytes
    name: str
    volumes: tuple[SessionVolume, ...]
    packs: tuple[bytes, ...]
    partial_roots: tuple[PartialRoot, ...]

    @property
    def key(self) -> bytes:
        """Names this session as far as it has come: another SESSION of it makes another key."""
        return self.writer + self.session_id + self.seq.to_bytes(8, "big")


def open_sessions(chains: Iterable[Chain]) -> list[OpenSession]:
    """The open sessions of all chains, by writer, each writer's in the order of their last SESSION.

    Malformed records are left out; the catalogue notes them. On the branches of a fork nothing is closed: one branch
    does not speak for the other.
    """
    found: list[OpenSession] = []
    for chain in chains:
        sessions: dict[bytes, OpenSession] = {}
        rows: Iterator[tuple[ChainEntry, Session | Abandon]] = of_kinds(chain.entries, Session, Abandon)
        for entry, known in rows:
            if isinstance(known, Session):
                sessions[known.session_id] = _merged(chain.writer, sessions.pop(known.session_id, None), entry, known)
            elif not chain.forked_at or entry.seq < chain.forked_at:
                sessions.pop(known.session_id, None)
        found += sessions.values()
    return found


def _merged(writer: WriterId, before: OpenSession | None, entry: ChainEntry, last: Session) -> OpenSession:
    packs = tuple(dict.fromkeys((*(before.packs if before is not None else ()), *last.packs)))
    return OpenSession(
        writer, entry.seq, entry.time_ms, last.session_id, last.name, last.volumes, packs, last.partial_roots
    )
