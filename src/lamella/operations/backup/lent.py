"""The one volume of a store that a lent key opens: the other repository chose its id and its domain."""

from __future__ import annotations

from dataclasses import replace

from lamella.base.errors import UsageError
from lamella.format.records import Volume
from lamella.repository.repository import Repository


def lent_volume(repo: Repository, record: Volume) -> Volume:
    """The record of a new volume under the ids that the key brings; the prune key signs it, as its id does not follow.

    Raises UsageError if the volume is there already, from another source, or if this secret cannot sign.
    """
    lent = repo.keys.lent
    if lent is None:
        return record
    known = repo.catalogue.volumes.get(lent.volume_id)
    if known is not None:
        hint = f"to go on with it from this directory: --name {known.name} --adopt"
        raise UsageError(f"the key of this store is for one volume, and {known.name} is that one", hint=hint)
    return replace(record, volume_id=lent.volume_id, domain_id=lent.keys.domain_id, nonce=bytes(16))
