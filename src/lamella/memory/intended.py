"""Ids this host gave to volumes whose first backup is not finished, so that the next attempt finds what is stored.

Without them each attempt would have a new domain, and what the broken-off one sent could not be found again. Losing the
file costs sending it twice.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from lamella.base.errors import RepositoryError
from lamella.base.ids import CATALOGUE, DomainId, VolumeId
from lamella.memory.host import HostMemory

_FILE = "intended.json"


@dataclass(frozen=True, slots=True)
class NewVolume:
    """The ids of a volume that is not in the repository yet."""

    volume_id: VolumeId
    domain_id: DomainId


def new_volume(memory: HostMemory, identity: bytes, domain_label: str) -> NewVolume:
    """The ids given to this source before, else fresh random ones. A domain counts only for the same label."""
    fresh = NewVolume(VolumeId(os.urandom(16)), DomainId(os.urandom(16)))
    try:
        row = memory.read(_FILE)[identity.hex()]
        volume_id, domain_id = bytes.fromhex(row["volume_id"]), bytes.fromhex(row["domain_id"])
        if (
            row["domain_label"] != domain_label
            or (len(volume_id), len(domain_id)) != (16, 16)
            or domain_id == CATALOGUE
        ):
            return fresh
    except (KeyError, TypeError, ValueError):
        return fresh
    return NewVolume(VolumeId(volume_id), DomainId(domain_id))


def remember(memory: HostMemory, identity: bytes, domain_label: str, ids: NewVolume) -> str:
    """Keep the ids until the volume is published; returns why that failed, empty if it did not."""
    row = {"volume_id": ids.volume_id.hex(), "domain_id": ids.domain_id.hex(), "domain_label": domain_label}
    try:
        with memory.lock():
            memory.write(_FILE, {**memory.read(_FILE), identity.hex(): row})
    except RepositoryError as error:
        return error.message
    return ""


def forget(memory: HostMemory, identity: bytes) -> None:
    """The volume is in the repository now. Raises RepositoryError."""
    with memory.lock():
        rows = memory.read(_FILE)
        if rows.pop(identity.hex(), None) is not None:
            memory.write(_FILE, rows)
