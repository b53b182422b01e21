"""Everything about one qube but the bytes of its volumes: read from qubesd, written down, and read again with care.

Texts are kept as qubesd gives and takes them: what a client library makes of them (False for an empty text) would not
come back as it was.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from lamella.base.errors import IntegrityError, SourceError, UsageError
from lamella.qubes import names
from lamella.qubes.admin import NO_ANSWER, Admin, Refused
from lamella.qubes.inventory import ADMIN_CLASS, Inventory, Qube, facts_of

SETTINGS: Final = "settings"
"""Name of the volume without bytes that carries a qube's settings."""
DOCUMENT: Final = "settings.json"
"""Name of the document in a snapshot of a qube's settings."""

_SCHEMA: Final = "lamella-qube/1"
_MAX_NOTES: Final = 256_000
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
    """What the other properties were; information, never restored."""
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
        return json.dumps({"schema": _SCHEMA, **asdict(self)}, indent=1, sort_keys=True).encode("utf-8")


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


def decode_settings(content: bytes, what: str) -> QubeSettings:
    """Read a document of `encode` again. Raises IntegrityError for anything that qubesd could not have said."""
    try:
        found = json.loads(content)
        if not isinstance(found, dict) or found.pop("schema", None) != _SCHEMA:
            raise ValueError("another kind of document")
        return _checked(_built(found))
    except (ValueError, TypeError, KeyError, RecursionError, UsageError) as error:
        raise IntegrityError(f"the settings in {what} cannot be used: {error}", obj=what) from error


def _built(found: dict[str, Any]) -> QubeSettings:
    wanted = {one.name for one in fields(QubeSettings)}
    if set(found) != wanted:
        raise ValueError(f"fields {sorted(set(found) ^ wanted)}")
    properties = {name: Property(**row) for name, row in _table(found.pop("properties")).items()}
    devices = {name: tuple(_texts(rows)) for name, rows in _table(found.pop("devices")).items()}
    volumes = {name: _words(_table(row)) for name, row in _table(found.pop("volumes")).items()}
    defaults, features = _words(_table(found.pop("defaults"))), _words(_table(found.pop("features")))
    tags = tuple(_texts(found.pop("tags")))
    return QubeSettings(
        **_words(found),
        properties=properties,
        devices=devices,
        volumes=volumes,
        defaults=defaults,
        features=features,
        tags=tags,
    )


def _checked(settings: QubeSettings) -> QubeSettings:
    if settings.klass != ADMIN_CLASS:
        names.check_qube(settings.name)
        names.check_uuid(settings.uuid)
        names.check_label(settings.label)
    names.check_word(settings.klass)
    for name in [*settings.properties, *settings.features, *settings.tags, *settings.devices]:
        names.check_word(name)
    for name in settings.volumes:
        names.check_volume(name)
    _words({name: row.value for name, row in settings.properties.items()})
    _words({name: row.type for name, row in settings.properties.items()})
    if len(settings.notes.encode("utf-8", "surrogatepass")) > _MAX_NOTES:
        raise ValueError("notes beyond 256,000 bytes")
    return settings


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("not a table")
    return value


def _texts(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TypeError("not a list of texts")
    return value


def _words(value: dict[str, Any]) -> dict[str, str]:
    if not all(isinstance(one, str) for one in value.values()):
        raise TypeError("not all of it is text")
    return value


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


def assigned_device(line: str) -> tuple[str, str, dict[str, str]]:
    """(device as a call's argument, its backend, options) of a line of `devices`."""
    device, _, options = line.partition(" ")
    return device, device.partition("+")[0], facts_of(options.split(" ")) if options else {}
