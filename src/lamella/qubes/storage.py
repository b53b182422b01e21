"""The storage qube: how long it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from lamella.base.errors import SourceError
from lamella.base.events import Reporter, Warned
from lamella.qubes.admin import Admin
from lamella.qubes.inventory import HALTED, Inventory, feature_of, power_state

_IDLE: Final = "service.shutdown-idle"
_SCHEMES: Final = ("qubes:", "qubes-ssh:")


@contextmanager
def kept_running(admin: Admin, place: str, reporter: Reporter) -> Iterator[None]:
    """While a repository in a qube is used: start that qube if it is halted, and only then shut it down afterwards."""
    name = _qube_of(place)
    if not name or name not in Inventory(admin).qubes:
        yield
        return
    warn_of_idle(admin, name, reporter)
    started = power_state(admin, name) == HALTED
    if started:
        admin.call("admin.vm.Start", name)
    try:
        yield
    finally:
        if started:
            _shut_down(admin, name, reporter)


def _shut_down(admin: Admin, name: str, reporter: Reporter) -> None:
    try:
        admin.call("admin.vm.Shutdown", name)
    except SourceError as error:
        reporter(Warned(f"it was started for this and could not be shut down: {error.message}", name))


def warn_of_idle(admin: Admin, name: str, reporter: Reporter) -> None:
    """Say so if the qube shuts down by itself, which may be in the middle of a backup."""
    if feature_of(admin, name, _IDLE) == "1":
        hint = f"switch that off: qvm-service --disable {name} shutdown-idle"
        reporter(Warned(f"{name} shuts down when it seems idle, also in the middle of a backup; {hint}", name))


def _qube_of(place: str) -> str:
    scheme = next((scheme for scheme in _SCHEMES if place.startswith(f"{scheme}//")), "")
    rest = place.removeprefix(f"{scheme}//")
    return rest.partition(":" if scheme == "qubes-ssh:" else "/")[0].partition("/")[0] if scheme else ""
