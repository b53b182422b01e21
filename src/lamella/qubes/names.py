"""Checks of names that come out of a backup, and which history a qube continues.

Rules are those of qubesd (section on names of its developer documentation): a restored document is the user's own, but
whoever could write into the qube's key domain could have put any text there. The UUID of a qube says which history it
continues, until it is restored: a new qube gets a new UUID. A restored qube carries a feature that names the UUID it
was saved under and the one it has. A clone takes the feature along but has another UUID: there it means nothing.
"""

from __future__ import annotations

import re
from typing import Final

from lamella.base.errors import UsageError
from lamella.qubes.admin import Admin
from lamella.qubes.inventory import ADMIN_CLASS, Qube, feature_of

MAX_NAME: Final = 31
_QUBE = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]*")
_RESERVED = frozenset({"none", "default", "Domain-0", "dom0"})
_VOLUME = re.compile(r"[a-z][a-z0-9-]{0,30}")
_WORD = re.compile(r"[a-zA-Z0-9_.-]{1,255}")
_LABEL = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,31}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def check_qube(name: str) -> str:
    """Return the name of a qube other than dom0. Raises UsageError."""
    if len(name) > MAX_NAME or not _QUBE.fullmatch(name) or name in _RESERVED or name.endswith("-dm"):
        raise UsageError("not a name for a qube", obj=ascii(name[:60]))
    return name


def check_volume(name: str) -> str:
    """Return the name of a qube's volume. Raises UsageError."""
    return _checked(name, _VOLUME, "a name for a qube's volume")


def check_word(name: str) -> str:
    """Return the name of a property, feature or tag. Raises UsageError."""
    return _checked(name, _WORD, "a name for a property, feature or tag")


def check_label(name: str) -> str:
    """Return the name of a label. Raises UsageError."""
    return _checked(name, _LABEL, "a name for a label")


def check_uuid(text: str) -> str:
    """Return a UUID in its lower-case form with dashes. Raises UsageError."""
    return _checked(text, _UUID, "a UUID")


def _checked(text: str, pattern: re.Pattern[str], what: str) -> str:
    if not pattern.fullmatch(text):
        raise UsageError(f"not {what}", obj=ascii(text[:60]))
    return text


FEATURE: Final = "lamella.continues"
DOM0: Final = "dom0-"
"""The prefix of an owner that is a system's dom0."""


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
    """The name of a qube in repositories for ever. dom0 has one UUID everywhere, so there it is the machine's hash."""
    if qube.klass == ADMIN_CLASS:
        return DOM0 + machine
    return claimed_owner(qube.uuid, feature_of(admin, qube.name, FEATURE))
