"""Which writers count once enrolment is closed (FORMAT 8, ADMIT): those that an admin admitted, and nobody else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lamella.base.errors import RepositoryError
from lamella.base.ids import WriterId
from lamella.base.signed import enrolled_by, trailer_of, writer_of
from lamella.crypto.derive import Keys
from lamella.crypto.sign import verified
from lamella.format.commit import ChainEntry, writer_id
from lamella.format.owners import Admit
from lamella.history.history import Chain, History
from lamella.history.records import of_kinds, prune_signed

if TYPE_CHECKING:
    from lamella.history.log import Log


def admit(keys: Keys, history: History, said: Iterable[tuple[WriterId, ChainEntry]], chains: Iterable[Chain]) -> None:
    """Take over what ADMIT records say, each with the writer of its chain; `history` has the unreadable objects."""
    found = [
        known
        for writer, entry in said
        for entry, known in of_kinds([entry], Admit)
        if prune_signed(keys, writer, entry)
    ]
    history.enrolments = {writer_id(public): enrolment for one in found for public, enrolment in one.writers}
    if any(one.closes for one in found):
        shown = {one.head.writer for one in history.unreadable if one.admitted}
        shown |= {
            chain.writer
            for chain in chains
            if any(is_admitted(keys, one.public, one.enrolment) for one in reversed(chain.commits))
        }
        history.admitted = frozenset(history.enrolments.keys() | shown)


def is_admitted(keys: Keys, public: bytes, enrolment: bytes) -> bool:
    """Whether the prune key enrolled this writer."""
    signers = keys.marker.signers
    return enrolled_by(signers, public, enrolment, verified) == signers.prune


def shows_admission(keys: Keys, writer: WriterId, content: bytes) -> bool:
    """Whether an object under a commit's name, sound or not, holds the writer's key with the prune key's enrolment."""
    trailer = trailer_of(content)
    return writer_of(trailer.public) == writer and is_admitted(keys, trailer.public, trailer.enrolment)


def require_admitted(log: Log) -> None:
    """Raises RepositoryError where this host is not admitted, and its secret is no admin's."""
    key = log.memory.creator()
    if not log.history.counts(key.id) and not is_admitted(log.keys, key.public, key.enrolment):
        raise not_admitted(key.public, log.store.url)


def not_admitted(public: bytes, place: str) -> RepositoryError:
    """What a host is told that may not write before an admin says so."""
    hint = f"an admin admits it with: lamella check --admit {public.hex()}"
    return RepositoryError(
        "enrolment is closed, and this host is not admitted: nothing was written", obj=place, hint=hint
    )
