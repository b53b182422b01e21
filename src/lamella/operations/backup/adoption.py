"""Going on with a volume that had another source, or another writer: `backup --adopt`."""

from __future__ import annotations

from dataclasses import replace

from lamella.base.errors import UsageError
from lamella.base.ids import WriterId
from lamella.format.owners import Give, Join
from lamella.format.records import UNSIGNED, Signed, Volume
from lamella.history.catalogue import VolumeState
from lamella.operations.backup.plan import Request
from lamella.operations.shared.lending import LENT_IDENTITY
from lamella.repository.repository import Repository


def adopted(request: Request, name: str, holders: list[VolumeState], *, adopt: bool) -> tuple[VolumeState, Volume]:
    """This host's volume of that name, and the record that gives it this source. Raises UsageError."""
    _require_not_lent(holders, name)
    if not adopt or len(holders) > 1:
        hint = "continue its history with --adopt, or choose another name: NAME=SOURCE"
        raise UsageError(f"the name {name} belongs to another source", obj=name, hint=hint)
    return holders[0], _record(holders[0], request, name)


def taken_over(
    repo: Repository, request: Request, name: str, others: list[VolumeState]
) -> tuple[VolumeState, Volume | None, Signed | None]:
    """Another writer's volume, the record that gives it this source, and the record that makes it this host's.

    Without an admin's secret there is neither: what is saved is a claim. Raises UsageError.
    """
    _require_not_lent(others, name)
    if len(others) > 1:
        shown = repo.catalogue.shown_names()
        names = ", ".join(sorted(shown[volume.volume_id] for volume in others))
        raise UsageError(f"several volumes could be meant: {names}", obj=name, hint="rename all but one first")
    known = others[0]
    if repo.keys.prune_seed is None:
        return known, None, None
    record = _record(known, request, name)
    key = repo.memory.writer_key()
    own = WriterId(bytes(16)) if key is None else key.id
    if not known.owners:
        return known, record, Give(known.volume_id, own)
    return known, record, Join(own, record.creator if record.creator in known.owners else min(known.owners))


def _require_not_lent(volumes: list[VolumeState], name: str) -> None:
    if any(volume.identity.startswith(LENT_IDENTITY) for volume in volumes):
        text = f"{name} holds what a qube saves itself: whoever has the key that was lent would read this source, too"
        raise UsageError(text, obj=name, hint="choose another name: NAME=SOURCE")


def _record(known: VolumeState, request: Request, name: str) -> Volume:
    if known.record is None:
        raise UsageError(f"the volume {name} cannot be adopted: its record is lost", obj=name)
    return replace(known.record, name=name, identity=request.source.identity, signature=UNSIGNED)
