"""Giving a qube its settings back. What qubesd or this system cannot take is noted and left; nothing is guessed.

Order: first what others depend on, then plain values, and references between qubes last. A reference to a qube that
is missing stays empty: a qube without its firewall qube must not find another way to the network by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from lamella.qubes.admin import Admin, Refused
from lamella.qubes.inventory import Inventory, facts_of, property_of
from lamella.qubes.names import FEATURE
from lamella.qubes.powers import is_own_tag
from lamella.qubes.restore_plan import QubeRestore
from lamella.qubes.settings import Property, QubeSettings, read_settings

IN_PROGRESS: Final = "backup-restore-in-progress"
"""While a qube has this tag, qubesd does not start it."""

_EARLY: Final = ("template_for_dispvms", "provides_network")
_NEVER: Final = frozenset({"name", "qid", "uuid", "klass", "dispid", "installed_by_rpm", "template", "label"})
_QUBESDS_OWN: Final = frozenset({FEATURE, "preload-dispvm", "preload-dispvm-in-progress", "preload-dispvm-completed"})
"""Features that are no settings: which history this is, and which disposables are kept ready at this moment."""
_UNIQUE: Final = ("ip", "ip6", "mac")


class Applier:
    """Applies the settings of a row of the plan. `notes` grows with everything that could not be done."""

    def __init__(
        self, admin: Admin, inventory: Inventory, row: QubeRestore, renamed: Mapping[str, str], notes: list[str]
    ) -> None:
        self._admin = admin
        self._inventory = inventory
        self._name = row.name
        self._settings = row.settings
        self._renamed = renamed
        self._waiting = {(one.kind, one.value): one.named for one in row.withheld}
        self.notes = notes

    def early(self) -> None:
        """Properties that other qubes' creation and references need."""
        for prop in _EARLY:
            if prop in self._settings.properties:
                self._set(prop, self._settings.properties[prop].value)

    def plain(self, *, exact: bool) -> None:
        """Everything that refers to no other qube."""
        present = read_settings(self._admin, self._inventory, self._inventory.qube(self._name))
        if self._settings.label != present.label:
            self._set("label", self._settings.label)
        for prop, row in sorted(self._settings.properties.items(), key=_maximum_first):
            if prop in _NEVER or row.type == "vm" or prop in _EARLY:
                continue
            if prop in _UNIQUE and self._taken(prop, row.value):
                self.notes.append(f"{prop} {row.value} belongs to another qube now: not set")
            elif not (prop == "memory" and self._beyond_maximum(row)):
                self._set(prop, row.value)
        self._features(present, exact=exact)
        self._tags(present, exact=exact)
        if self._settings.firewall:  # a qube always has rules; none were read from one that has no firewall
            self._call("firewall", "admin.vm.firewall.Set", payload=self._settings.firewall.encode("utf-8"))
        if self._settings.notes or present.notes:
            self._call("notes", "admin.vm.notes.Set", payload=self._settings.notes.encode("utf-8"))
        self._volumes()
        self._devices()
        if exact:
            for prop in sorted(set(present.properties) - set(self._settings.properties) - _NEVER):
                self._call(f"property {prop}", "admin.vm.property.Reset", prop)

    def references(self) -> None:
        """Properties that name qubes: the template, then all others, netvm among them."""
        references = {name: row for name, row in self._settings.properties.items() if row.type == "vm"}
        for prop, row in sorted(references.items()):
            if prop in _NEVER:
                continue
            target = self._renamed.get(row.value, row.value)
            if target and target not in self._inventory.qubes:
                self._missing(prop, row.value)
            elif target and self._withheld(prop, target):
                self._leave(prop, target)
            elif prop == "default_dispvm" and target and not self._makes_disposables(target):
                self.notes.append(f"{prop}: {target} is no template for disposables: not set")
            else:
                self._set(prop, target)

    def template(self, template: str) -> None:
        """The template of a qube that existed before."""
        if template and property_of(self._admin, self._name, "template") != template:
            self._set("template", template)

    def _makes_disposables(self, name: str) -> bool:
        """qubesd takes any qube here, and disposables would then fail one by one."""
        return property_of(self._admin, name, "template_for_dispvms") == "True"

    def _withheld(self, kind: str, value: str) -> bool:
        """Whether this power waits for consent; a note says so."""
        named = self._waiting.get((kind, value), "")
        if named:
            self.notes.append(f"{kind} {value}: not given, because {named} names it; --grant-powers gives it")
        return bool(named)

    def _leave(self, prop: str, target: str) -> None:
        """Without consent no network: the default one could be another way to it."""
        if prop == "netvm" and property_of(self._admin, self._name, prop) != target:
            self._set(prop, "")
            self.notes.append("netvm: it has no network now")

    def _missing(self, prop: str, wanted: str) -> None:
        if prop == "netvm":
            self._set(prop, "")
            self.notes.append(f"netvm: there is no qube {wanted}; it has no network now")
        else:
            self.notes.append(f"{prop}: there is no qube {wanted}; the default stays")

    def _features(self, present: QubeSettings, *, exact: bool) -> None:
        for feature, value in sorted(self._settings.features.items()):
            if feature not in _QUBESDS_OWN and present.features.get(feature) != value:
                self._call(f"feature {feature}", "admin.vm.feature.Set", feature, value.encode("utf-8"))
        for feature in sorted(set(present.features) - {*self._settings.features, *_QUBESDS_OWN}) if exact else ():
            self._call(f"feature {feature}", "admin.vm.feature.Remove", feature)

    def _tags(self, present: QubeSettings, *, exact: bool) -> None:
        for tag in sorted(set(self._settings.tags) - set(present.tags)):
            if not (is_own_tag(tag) or self._withheld("tag", tag)):
                self._call(f"tag {tag}", "admin.vm.tag.Set", tag)
        for tag in sorted(set(present.tags) - set(self._settings.tags)) if exact else ():
            if not is_own_tag(tag):
                self._call(f"tag {tag}", "admin.vm.tag.Remove", tag)

    def _volumes(self) -> None:
        there = {volume.name: volume.facts for volume in self._inventory.volumes(self._inventory.qube(self._name))}
        for volume, facts in sorted(self._settings.volumes.items()):
            for fact in ("revisions_to_keep", "rw", "ephemeral"):
                value = facts.get(fact, "")
                if volume in there and value and there[volume].get(fact) not in (None, value):
                    what = f"{fact} of volume {volume}"
                    self._call(what, f"admin.vm.volume.Set.{fact}", volume, value.encode("utf-8"))

    def _devices(self) -> None:
        for call, lines in sorted(self._settings.devices.items()):
            told_by, _, class_ = call.partition(".")
            for line in lines:
                device, backend, options = _assigned_device(line)
                if self._withheld(f"device {class_}", device):
                    continue
                if told_by != "Assigned":
                    self.notes.append(f"device {class_} {device}: assigned by an older release: assign it by hand")
                    continue
                if backend not in self._inventory.qubes and options.get("mode") == "'required'":
                    # Required and absent would keep the qube from starting.
                    options["mode"] = "'auto-attach'"
                payload = " ".join(f"{name}={value}" for name, value in options.items())
                method = f"admin.vm.device.{class_}.Assign"
                self._call(f"device {class_} {device}", method, device, payload.encode("utf-8"))

    def _taken(self, prop: str, value: str) -> bool:
        others = (name for name in self._inventory.qubes if name not in (self._name, "dom0"))
        return any(property_of(self._admin, other, prop) == value for other in others)

    def _beyond_maximum(self, memory: Property) -> bool:
        maximum = self._settings.properties.get("maxmem")
        limit = maximum.value if maximum is not None else property_of(self._admin, self._name, "maxmem") or "0"
        if limit.isdecimal() and memory.value.isdecimal() and 0 < int(limit) < int(memory.value):
            self.notes.append(f"memory {memory.value} is more than maxmem {limit}: not set")
            return True
        return False

    def _set(self, prop: str, value: str) -> None:
        self._call(f"property {prop}", "admin.vm.property.Set", prop, value.encode("utf-8"))

    def _call(self, what: str, method: str, arg: str = "", payload: bytes = b"") -> None:
        try:
            self._admin.call(method, self._name, arg, payload)
        except Refused as error:
            self.notes.append(f"{what}: {error.message}")


def _maximum_first(item: tuple[str, Property]) -> tuple[bool, str]:
    return item[0] != "maxmem", item[0]


def _assigned_device(line: str) -> tuple[str, str, dict[str, str]]:
    """(device as a call's argument, its backend, options) of a line of `devices`."""
    device, _, options = line.partition(" ")
    return device, device.partition("+")[0], facts_of(options.split(" ")) if options else {}
