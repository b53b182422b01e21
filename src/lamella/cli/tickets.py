"""`lamella files backup --ticket FILE`: what a qube hands to the host that publishes its files."""

from __future__ import annotations

from collections.abc import Sequence

from lamella.base.errors import UsageError
from lamella.cli.context import Context
from lamella.cli.destination import named_destinations
from lamella.cli.new_files import write_file
from lamella.crypto.derive import Lent
from lamella.format.ticket import Ticket
from lamella.operations.shared.lending import sealed
from lamella.operations.shared.newest import newest
from lamella.repository.repository import Repository

_LEND = "on the host: lamella key export-domain NAME --inside --to FILE; here: lamella init --keyfile FILE"


def require_one_store(context: Context, requests: Sequence[object]) -> None:
    """Raises UsageError unless one directory goes to one store that a lent key opens."""
    if len(requests) != 1:
        raise UsageError("--ticket is for one directory")
    if len(named_destinations(context)) > 1:
        raise UsageError("--ticket is for one store")
    with context.repository() as repository:
        _require_lent(repository)


def _require_lent(repository: Repository) -> Lent:
    if repository.keys.lent is None:
        raise UsageError("--ticket is for a store that a lent key opens", hint=_LEND)
    return repository.keys.lent


def write_ticket(context: Context, identity: bytes) -> None:
    """Write the ticket of the snapshot that was just made. Raises UsageError, LamellaError."""
    with context.repository() as repository:
        lent = _require_lent(repository)
        volume = next(one for one in repository.catalogue.own_volumes() if one.identity == identity)
        added = newest(repository, volume).added
        if (added.domain_id, added.volume_id) != (lent.keys.domain_id, lent.volume_id):
            raise UsageError(f"{volume.name} is not the volume that the key of this store is for", hint=_LEND)
        ticket = Ticket(
            lent.keys.root,
            added.domain_id,
            added.volume_id,
            added.chunk_log2,
            added.consistency,
            added.size,
            added.root,
            added.time_ms,
        )
    write_file(context.args.ticket, sealed(ticket, lent.keys), overwrite=True)
    context.out.say(f"hand {context.args.ticket} to the host that lent the key: lamella files publish")
