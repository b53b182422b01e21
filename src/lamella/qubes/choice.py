"""Which qubes a command is about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lamella.base.errors import NothingMatched, UsageError
from lamella.qubes.admin import Admin
from lamella.qubes.inventory import ADMIN_CLASS, Inventory, Qube, property_of


@dataclass(frozen=True, slots=True)
class Choice:
    """What the user said. Without names, tags and labels: the qubes that are marked for backups."""

    names: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    everything: bool = False
    tags: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


def chosen(admin: Admin, inventory: Inventory, choice: Choice) -> list[Qube]:
    """The qubes, by name; dom0 among them where it is named or marked. Raises NothingMatched, UsageError."""
    if choice.everything and choice.names:
        raise UsageError("--all and names of qubes contradict each other")
    for name in (*choice.names, *choice.excluded):
        inventory.qube(name)
    names = {qube.name for qube in _wanted(admin, inventory, choice)} - set(choice.excluded)
    if not names:
        raise NothingMatched("no qube is selected", hint="name one, or say --all")
    return [inventory.qubes[name] for name in sorted(names)]


def _wanted(admin: Admin, inventory: Inventory, choice: Choice) -> Iterable[Qube]:
    if choice.names:
        return [inventory.qube(name) for name in choice.names]
    qubes = list(inventory.qubes.values())
    if choice.everything:
        return qubes
    if choice.tags or choice.labels:
        return [qube for qube in qubes if _labelled(admin, qube, choice)]
    return [qube for qube in qubes if _is_marked(admin, qube)]


def _labelled(admin: Admin, qube: Qube, choice: Choice) -> bool:
    if choice.labels and property_of(admin, qube.name, "label") in choice.labels:
        return True
    return bool(choice.tags) and not set(choice.tags).isdisjoint(admin.lines("admin.vm.tag.List", qube.name))


def _is_marked(admin: Admin, qube: Qube) -> bool:
    return property_of(admin, qube.name, "include_in_backups") == "True" and qube.klass != ADMIN_CLASS
