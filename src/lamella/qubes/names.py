"""Names that come out of a backup are checked here before anything is done with them.

Rules are those of qubesd (section on names of its developer documentation): a restored document is the user's own, but
whoever could write into the qube's key domain could have put any text there.
"""

from __future__ import annotations

import re
from typing import Final

from lamella.base.errors import UsageError

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
    if not _VOLUME.fullmatch(name):
        raise UsageError("not a name for a qube's volume", obj=ascii(name[:60]))
    return name


def check_word(name: str) -> str:
    """Return the name of a property, feature or tag. Raises UsageError."""
    if not _WORD.fullmatch(name):
        raise UsageError("not a name for a property, feature or tag", obj=ascii(name[:60]))
    return name


def check_label(name: str) -> str:
    """Return the name of a label. Raises UsageError."""
    if not _LABEL.fullmatch(name):
        raise UsageError("not a name for a label", obj=ascii(name[:60]))
    return name


def check_uuid(text: str) -> str:
    """Return a UUID in its lower-case form with dashes. Raises UsageError."""
    if not _UUID.fullmatch(text):
        raise UsageError("not a UUID", obj=ascii(text[:60]))
    return text
