"""What qubes.xml of a backup says of each qube, as settings that `lamella qubes restore` takes.

The file describes the whole system; only qubes that are in the backup are returned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from lamella.base.errors import SourceError, UsageError
from lamella.qubes.archive import decode_settings
from lamella.qubes.inventory import ADMIN_CLASS
from lamella.qubes.names import check_uuid, check_volume, check_word
from lamella.qubes.settings import Property, QubeSettings

_REFERENCES: Final = frozenset({"netvm", "template", "default_dispvm", "guivm", "audiovm", "management_dispvm"})
_FIREWALL_MOST: Final = 1000
_BACKUP: Final = "backup-"
"""The beginning of features that the backup itself wrote."""


@dataclass(frozen=True, slots=True)
class BackedUpQube:
    """A qube in the backup. `folder` is where its files are in it."""

    settings: QubeSettings
    folder: str
    volumes: dict[str, int | None]
    """By name, the bytes of each volume that persists, where that is said."""
    notes: tuple[str, ...]
    """What of its settings could not be taken over."""


def parsed(content: bytes, what: str) -> Element:
    """A document of Qubes. Raises SourceError."""
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise SourceError(f"{what} declares what no document of Qubes does", obj=what)
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise SourceError(f"{what} cannot be understood: {error}", obj=what) from error


def qubes_of(content: bytes, what: str) -> list[BackedUpQube]:
    """The qubes in the backup, by their names; dom0 is none of them. Raises SourceError."""
    root = parsed(content, what)
    labels: dict[str, tuple[str, str]] = {}
    for one in root.iterfind("labels/label"):  # releases name a label by its id, or by its name
        labels[one.get("id", "")] = labels[one.text or ""] = one.text or "", one.get("color", "")
    found = []
    for domain in root.iterfind("domains/domain"):
        features = _texts(domain, "features/feature")
        if features.get("backup-content") in ("1", "True") and domain.get("class") != ADMIN_CLASS:
            try:
                found.append(_qube(domain, features, labels))
            except (UsageError, ValueError) as error:
                name = _texts(domain, "properties/property").get("name", "?")
                raise SourceError(f"{what}: {name[:40]!a} cannot be understood: {error}", obj=what) from error
    uuids = [one.settings.uuid for one in found]
    folders = [one.folder for one in found]
    if len(set(uuids)) != len(uuids) or len(set(folders)) != len(folders):
        raise SourceError(f"{what} has a qube twice", obj=what)
    return sorted(found, key=lambda one: one.settings.name)


def _qube(domain: Element, features: dict[str, str], labels: dict[str, tuple[str, str]]) -> BackedUpQube:
    properties = _texts(domain, "properties/property")
    name, color = labels.get(properties.get("label", ""), ("", ""))
    folder = _folder(features.get("backup-path", ""))
    devices = sum(1 for _ in domain.iterfind("devices/device"))
    settings = QubeSettings(
        name=properties.get("name", ""),
        uuid=check_uuid(properties.get("uuid", "").lower()),
        klass=domain.get("class", ""),
        label=name,
        label_color=color,
        properties={
            key: Property("label", name) if key == "label" else Property(_type(key, value), value)
            for key, value in properties.items()
        },
        tags=tuple(sorted(_names(domain, "tags/tag"))),
        features={key: value for key, value in features.items() if not key.startswith(_BACKUP)},
        volumes={
            check_volume(one.get("name", "")): dict(one.items()) for one in domain.iterfind("volume-config/volume")
        },
    )
    decode_settings(settings.encode(), settings.name)  # as a restore will
    kept = {key: row for key, row in settings.volumes.items() if row.get("save_on_stop") == "True"}
    sizes = {key: _size(row.get("size", "")) for key, row in kept.items()}
    notes = (f"{devices} assigned devices are not taken over",) if devices else ()
    return BackedUpQube(settings, folder, sizes, notes)


def _folder(text: str) -> str:
    """Where the files of a qube are in the backup: a name, or several with slashes between. Raises UsageError."""
    return "/".join(map(check_word, text.removesuffix("/").split("/")))


def _texts(domain: Element, path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in domain.iterfind(path):
        key = one.get("name", "")
        if key in found:
            raise SourceError(f"qubes.xml says {key[:40]!a} twice of one qube")
        found[key] = one.text or ""
    return found


def _names(domain: Element, path: str) -> set[str]:
    return {one.get("name", "") for one in domain.iterfind(path)}


def _type(key: str, value: str) -> str:
    """The type of a property in qubesd's words: qubes.xml does not say."""
    if key in _REFERENCES:
        return "vm"
    if value in ("True", "False"):
        return "bool"
    return "int" if value.isascii() and value.isdigit() else "str"


def _size(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def firewall_of(content: bytes, what: str) -> str:
    """The rules in firewall.xml, a line each, as qubesd takes them. Raises SourceError."""
    lines: list[str] = []
    for rule in parsed(content, what).iterfind("rules/rule"):
        words = {one.get("name", ""): one.text or "" for one in rule.iterfind("properties/property")}
        if any(not key.isidentifier() or set(value) & set("\n\0") for key, value in words.items()):
            raise SourceError(f"{what} has a rule that cannot be", obj=what)
        comment = words.pop("comment", "")
        if any(" " in value for value in words.values()) or len(lines) >= _FIREWALL_MOST:
            raise SourceError(f"{what} has a rule that cannot be, or too many", obj=what)
        shown = [f"{key}={value}" for key, value in words.items()]
        lines.append(" ".join([*shown, f"comment={comment}"] if comment else shown))  # it may hold spaces, to the end
    return "".join(f"{line}\n" for line in lines)
