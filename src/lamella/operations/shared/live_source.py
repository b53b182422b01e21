"""The source that a volume was made from, where it is still on this machine."""

from __future__ import annotations

from lamella.base.errors import SourceError
from lamella.operations.shared.selection import Selected
from lamella.repository.repository import Repository
from lamella.sources.base import Keeping, Source
from lamella.sources.places import place_of
from lamella.sources.registry import open_kept_source, open_source


def live_source(repo: Repository, one: Selected) -> Source:
    """The source a volume was made from, if it is on this machine. Raises SourceError."""
    host = repo.host
    place = place_of(one.volume.identity, host.machine)
    if place is None:
        raise SourceError(f"the source of {one.volume_name} is not on this machine", obj=one.volume_name)
    if one.volume.identity.startswith(b"file:"):
        return open_source(place, machine=host.machine, driver="file")
    return open_kept_source(place, host.machine, Keeping(host.owner, records=host.source_records))
