"""The qubesd that a command talks to."""

from __future__ import annotations

from pathlib import Path

from lamella.cli.context import Context
from lamella.qubes.admin import INTERNAL_SOCKET, SOCKET, Admin, require_qubesd


def admin_of(context: Context) -> Admin:
    """qubesd. Raises UsageError where there is none."""
    place = Path(context.env.get("LAMELLA_QUBESD_SOCKET") or SOCKET)
    require_qubesd(place)
    internal = place.with_name("qubesd.internal.sock") if place != SOCKET else INTERNAL_SOCKET
    return Admin(place, internal)
