"""Keys that are lent to a qube for its own files: whose they are, and the tickets that come back (docs/decisions/0107).

Each has a domain and a volume of its own, which this host made. No other volume ever joins that domain: whoever holds
the key may put anything there.
"""

from __future__ import annotations

import hmac
from typing import NamedTuple

from lamella.base.errors import IntegrityError, RepositoryError, UsageError
from lamella.crypto.derive import DomainKeys, prf
from lamella.format.ticket import Ticket, split
from lamella.history.catalogue import VolumeState
from lamella.memory.ledger import NewVolume, new_volume, remember
from lamella.repository.repository import Repository
from lamella.sources.names import check_name

LENT_IDENTITY = b"inside:"
"""How the identities of volumes begin whose key was lent."""


class Borrower(NamedTuple):
    """Who has the key: the volume's name and identity, the ids that go with it, and the volume once it is there."""

    name: str
    identity: bytes
    ids: NewVolume
    volume: VolumeState | None


def borrower(repo: Repository, name: str) -> Borrower:
    """The volume of files that is called `name`, or will be. Raises UsageError if another volume has the name."""
    identity = LENT_IDENTITY + check_name(name).encode()
    for one in repo.catalogue.own_volumes():
        lent = one.identity == identity or (one.name == name and one.identity.startswith(LENT_IDENTITY))
        if lent and one.record is not None:
            record = one.record
            ids = NewVolume(record.creator, record.nonce, record.domain_id, "")
            return Borrower(one.name, one.identity, ids, one)
        if one.name == name:
            raise UsageError(f"the name {name} belongs to another source", obj=name, hint="choose another name")
    return Borrower(name, identity, new_volume(repo.memory, identity, ""), None)


def lend(repo: Repository, name: str) -> Borrower:
    """The same; its ids are remembered until the first snapshot. Raises UsageError, RepositoryError."""
    repo.memory.creator()
    found = borrower(repo, name)
    if found.volume is None and (trouble := remember(repo.memory, found.identity, found.ids)):
        raise RepositoryError(f"the key cannot be lent: {trouble}", obj=name)
    return found


def sealed(ticket: Ticket, keys: DomainKeys) -> bytes:
    """The file of a ticket, with the code that only holders of the domain's keys can make."""
    return ticket.body + _code(ticket, keys)


def opened(content: bytes, keys: DomainKeys) -> Ticket:
    """The ticket in a file, made with these keys. Raises IntegrityError."""
    ticket, code = split(content)
    if not hmac.compare_digest(code, _code(ticket, keys)):
        raise IntegrityError("the ticket was altered, or made with another key", obj="ticket")
    if (ticket.r, ticket.domain_id) != (keys.root, keys.domain_id):
        raise IntegrityError("the ticket is for another repository or domain", obj="ticket")
    return ticket


def _code(ticket: Ticket, keys: DomainKeys) -> bytes:
    return prf(keys.enc, b"ticket" + ticket.body)
