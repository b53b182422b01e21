"""Everything about one qube but the bytes of its volumes: read from qubesd and written down.

Texts are kept as qubesd gives and takes them: what a client library makes of them (False for an empty text) would not
come back as it was.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Final

from lamella.base.errors import SourceError
from lamella.qubes.admin import NO_ANSWER, Admin, Refused
from lamella.qubes.inventory import ADMIN_CLASS, Inventory, Qube

SETTINGS: Final = "settings"
"""Name of the volume without bytes that carries a qube's settings."""
DOCUMENT: Final = "settings.json"
"""Name of the document in a snapshot of a qube's settings."""

SCHEMA: Final = "lamella-qube/1"
_UNKNOWN_CALL: Final = frozenset({"ProtocolError", "PermissionDenied", NO_ANSWER})


@dataclass(frozen=True, slots=True)
class Property:
    """A property that is not at its default: its type in qubesd's words, and its value as text."""

    type: str
    value: str


@dataclass(frozen=True, slots=True)
class QubeSettings:
    """The settings of one qube, or the global ones of the system (`klass` AdminVM)."""

    name: str
    uuid: str
    klass: str
    label: str = ""
    label_color: str = ""
    """Empty if qubesd did not say: releases were seen that break off when they are asked for a new label's."""
    properties: dict[str, Property] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)
    """The values of the other properties; information, never restored."""
    tags: tuple[str, ...] = ()
    features: dict[str, str] = field(default_factory=dict)
    firewall: str = ""
    notes: str = ""
    devices: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By call and class, such as `Assigned.pci`: lines of device and options."""
    volumes: dict[str, dict[str, str]] = field(default_factory=dict)
    """By volume, as qubesd describes it."""

    @property
    def template(self) -> str:
        """The template's name; empty for qubes without one."""
        found = self.properties.get("template")
        return found.value if found is not None else ""

    def encode(self) -> bytes:
        """The document."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, sort_keys=True).encode("utf-8")


def read_settings(admin: Admin, inventory: Inventory, qube: Qube) -> QubeSettings:
    """All settings of a qube as they are now. Raises Refused, SourceError."""
    properties, defaults = _properties(admin.lines("admin.vm.property.GetAll", qube.name))
    is_admin = qube.klass == ADMIN_CLASS
    label = properties["label"].value if "label" in properties else defaults.get("label", "")
    return QubeSettings(
        name=qube.name,
        uuid=qube.uuid,
        klass=qube.klass,
        label=label,
        label_color=_if_known(admin, "admin.label.Get", arg=label) or "" if label else "",
        properties=properties,
        defaults=defaults,
        tags=tuple(admin.lines("admin.vm.tag.List", qube.name)),
        features=_features(admin, qube.name),
        firewall="" if is_admin else admin.text("admin.vm.firewall.Get", qube.name),
        notes="" if is_admin else _if_known(admin, "admin.vm.notes.Get", qube.name) or "",
        devices=_devices(admin, qube.name),
        volumes={volume.name: volume.facts for volume in inventory.volumes(qube)},
    )


def read_globals(admin: Admin) -> QubeSettings:
    """The system's own properties that are not at their defaults."""
    properties, defaults = _properties(admin.lines("admin.property.GetAll"))
    return QubeSettings("dom0", "", ADMIN_CLASS, properties=properties, defaults=defaults)


def _properties(lines: list[str]) -> tuple[dict[str, Property], dict[str, str]]:
    """(those that are set, values of the others), from `NAME default=BOOL type=TYPE VALUE` lines."""
    chosen: dict[str, Property] = {}
    others: dict[str, str] = {}
    for line in lines:
        try:
            name, default, type_, value = line.split(" ", 3)
        except ValueError as error:
            raise SourceError(f"qubesd describes a property in an unknown way: {line[:80]!r}") from error
        text = _unescaped(value)
        if default == "default=True":
            others[name] = text
        else:
            chosen[name] = Property(type_.removeprefix("type="), text)
    return chosen, others


def _unescaped(value: str) -> str:
    return "\\".join(part.replace("\\n", "\n") for part in value.split("\\\\"))


def _features(admin: Admin, name: str) -> dict[str, str]:
    listed = admin.lines("admin.vm.feature.List", name)
    return {feature: admin.text("admin.vm.feature.Get", name, feature) for feature in listed}


def _devices(admin: Admin, name: str) -> dict[str, tuple[str, ...]]:
    """Persistent assignments, by the call that told them: releases differ in its name and in the form of options."""
    found: dict[str, tuple[str, ...]] = {}
    for class_ in admin.lines("admin.deviceclass.List"):
        for call in ("Assigned", "List"):
            answer = _if_known(admin, f"admin.vm.device.{class_}.{call}", name)
            if answer is not None:
                rows = tuple(line for line in answer.split("\n") if line)
                if rows:
                    found[f"{call}.{class_}"] = rows
                break
    return found


def _if_known(admin: Admin, method: str, name: str = "dom0", arg: str = "") -> str | None:
    """The answer to a call that not every release has, or answers; None where it is unknown."""
    try:
        return admin.text(method, name, arg)
    except Refused as error:
        if error.type in _UNKNOWN_CALL:
            return None
        raise
