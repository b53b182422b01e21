"""Which history a qube continues. Its UUID says so, until it is restored: a new qube gets a new UUID.

A restored qube carries a feature that names the UUID it was saved under and the one it has. A clone takes the feature
along but has another UUID: there it means nothing.
"""

from __future__ import annotations

from typing import Final

from lamella.base.errors import UsageError
from lamella.qubes.admin import Admin
from lamella.qubes.inventory import ADMIN_CLASS, Qube, feature_of
from lamella.qubes.names import check_uuid

FEATURE: Final = "lamella.continues"
DOM0: Final = "dom0-"
"""How an owner begins that is a system's dom0."""


def lineage(saved: str, uuid: str) -> str:
    """The feature's value for a qube `uuid` that was restored from what `saved` had."""
    return f"{saved} {uuid}"


def claimed_owner(uuid: str, value: str | None) -> str:
    """The UUID under which the qube `uuid` with this feature is saved."""
    saved, _, own = (value or "").partition(" ")
    try:
        return check_uuid(saved) if own == uuid else uuid
    except UsageError:
        return uuid


def owner_of(admin: Admin, qube: Qube, machine: str) -> str:
    """What names a qube in repositories for ever. dom0 has one UUID everywhere, so there it is the machine's hash."""
    if qube.klass == ADMIN_CLASS:
        return DOM0 + machine
    return claimed_owner(qube.uuid, feature_of(admin, qube.name, FEATURE))
