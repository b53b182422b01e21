"""The qubes that qubesd knows, and the qubes that a command is about. Read again for every command."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from lamella.base.errors import NothingMatched, SourceError, UsageError
from lamella.qubes.admin import Admin, Refused

HALTED = "Halted"
PAUSED = "Paused"
ADMIN_CLASS = "AdminVM"
_GONE = "QubesVMNotFoundError"
_NO_UUID = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True)
class Pool:
    """A storage pool: its driver's name and configuration."""

    name: str
    driver: str
    config: dict[str, str]


@dataclass(frozen=True, slots=True)
class QubeVolume:
    """A volume of a qube, as qubesd describes it. `vid` is its name within the pool; `size` in bytes."""

    name: str
    pool: str
    vid: str
    size: int
    save_on_stop: bool
    """Its state outlives a shutdown: this is what backups are made of."""
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Qube:
    """A qube at the moment the inventory was read. `uuid` stays the same for its life; the name does not."""

    name: str
    klass: str
    state: str
    uuid: str

    @property
    def running(self) -> bool:
        """Whether anything of it may be in use: everything but halted counts."""
        return self.state != HALTED


class Inventory:
    """The qubes of this system. Volumes and pools are asked for when they are needed, once."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._pools: dict[str, Pool] = {}
        self._volumes: dict[str, tuple[list[QubeVolume], dict[str, str]]] = {}
        self.qubes: dict[str, Qube] = {
            qube.name: qube for qube in (_qube(admin, line) for line in admin.lines("admin.vm.List"))
        }

    def qube(self, name: str) -> Qube:
        """The qube of this name. Raises NothingMatched."""
        found = self.qubes.get(name)
        if found is None:
            near = ", ".join(sorted(self.qubes)[:10])
            raise NothingMatched(f"there is no qube called {name}", obj=name, hint=f"qubes: {near}")
        return found

    def volumes(self, qube: Qube) -> list[QubeVolume]:
        """All volumes of a qube that qubesd can describe, by name; none for dom0."""
        return self._described(qube)[0]

    def undescribed(self, qube: Qube) -> dict[str, str]:
        """By name, why qubesd cannot describe the other volumes of a qube."""
        return self._described(qube)[1]

    def _described(self, qube: Qube) -> tuple[list[QubeVolume], dict[str, str]]:
        if qube.name not in self._volumes:
            found: list[QubeVolume] = []
            missing: dict[str, str] = {}
            names = self._admin.lines("admin.vm.volume.List", qube.name) if qube.klass != ADMIN_CLASS else []
            for name in sorted(names):
                try:
                    found.append(_volume(name, self._admin.lines("admin.vm.volume.Info", qube.name, name)))
                except SourceError as error:
                    missing[name] = error.message
            self._volumes[qube.name] = found, missing
        return self._volumes[qube.name]

    def pool(self, name: str) -> Pool:
        """A pool by its name. Raises Refused."""
        if name not in self._pools:
            config = facts_of(self._admin.lines("admin.pool.Info", arg=name))
            self._pools[name] = Pool(name, config.get("driver", ""), config)
        return self._pools[name]

    def free_bytes(self, name: str) -> int | None:
        """The free space of a pool, by its own word; None if it does not say."""
        facts = facts_of(self._admin.lines("admin.pool.Info", arg=name))
        size, usage = facts.get("size", ""), facts.get("usage", "")
        return max(0, int(size) - int(usage)) if size.isdecimal() and usage.isdecimal() else None


def is_preloaded(admin: Admin, qube: Qube) -> bool:
    """Whether qubesd keeps this disposable ready for its next use (from 4.3 on): touching it would use it up."""
    return qube.klass == "DispVM" and property_of(admin, qube.name, "is_preload") == "True"


def power_state(admin: Admin, name: str) -> str:
    """Whether a qube is halted, running, paused or on its way, in qubesd's words."""
    words = dict(word.partition("=")[::2] for word in admin.text("admin.vm.CurrentState", name).split())
    return words.get("power_state", "NA")


def property_of(admin: Admin, name: str, prop: str) -> str | None:
    """The value of a property as text, None where the qube has no such property, or is gone meanwhile."""
    try:
        answer = admin.text("admin.vm.property.Get", name, prop)
    except Refused as error:
        if error.type in ("QubesNoSuchPropertyError", _GONE):
            return None
        raise
    return answer.split(" ", 2)[2]


def feature_of(admin: Admin, name: str, feature: str) -> str | None:
    """The value of a feature as text, None where it is not set, or the qube is gone."""
    try:
        return admin.text("admin.vm.feature.Get", name, feature)
    except Refused as error:
        if error.type in ("QubesFeatureNotFoundError", _GONE):
            return None
        raise


def facts_of(lines: list[str]) -> dict[str, str]:
    """`key=value` lines."""
    return dict(line.partition("=")[::2] for line in lines)


def _qube(admin: Admin, line: str) -> Qube:
    name, _, rest = line.partition(" ")
    facts = facts_of(rest.split(" "))
    try:
        # Release 4.2 does not list it. dom0 has none that tells one system from another.
        uuid = facts["uuid"] if "uuid" in facts else property_of(admin, name, "uuid") or _NO_UUID
        return Qube(name, facts["class"], facts["state"], uuid)
    except KeyError as error:
        raise SourceError(f"qubesd lists a qube without {error.args[0]}: {line[:80]!r}", obj=name) from error


def _volume(name: str, lines: list[str]) -> QubeVolume:
    facts = facts_of(lines)
    try:
        size, saved = int(facts["size"] or 0), facts["save_on_stop"] == "True"
        return QubeVolume(name, facts["pool"], facts["vid"], size, saved, facts)
    except (KeyError, ValueError) as error:
        raise SourceError(f"qubesd describes volume {name} in an unknown way", obj=name) from error


@dataclass(frozen=True, slots=True)
class QubeChoice:
    """The user's selection. Without names, tags and labels: the qubes that are marked for backups."""

    names: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    everything: bool = False
    tags: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


def chosen(admin: Admin, inventory: Inventory, choice: QubeChoice) -> list[Qube]:
    """The qubes, by name; dom0 among them where it is named or marked, preloaded disposables never.

    Raises NothingMatched, UsageError.
    """
    if choice.everything and choice.names:
        raise UsageError("--all and names of qubes contradict each other")
    for name in (*choice.names, *choice.excluded):
        inventory.qube(name)
    wanted = {qube.name: qube for qube in _wanted(admin, inventory, choice) if qube.name not in choice.excluded}
    preloaded = {name for name, qube in wanted.items() if is_preloaded(admin, qube)}
    if preloaded & set(choice.names):
        name = min(preloaded)
        raise UsageError(f"{name} is a preloaded disposable: it is left alone until it is used", obj=name)
    names = set(wanted) - preloaded
    if not names:
        raise NothingMatched("no qube is selected", hint="name one, or say --all")
    return [inventory.qubes[name] for name in sorted(names)]


def _wanted(admin: Admin, inventory: Inventory, choice: QubeChoice) -> Iterable[Qube]:
    if choice.names:
        return [inventory.qube(name) for name in choice.names]
    qubes = list(inventory.qubes.values())
    if choice.everything:
        return qubes
    if choice.tags or choice.labels:
        return [qube for qube in qubes if _labelled(admin, qube, choice)]
    return [qube for qube in qubes if _is_marked(admin, qube)]


def _labelled(admin: Admin, qube: Qube, choice: QubeChoice) -> bool:
    if choice.labels and property_of(admin, qube.name, "label") in choice.labels:
        return True
    return bool(choice.tags) and not set(choice.tags).isdisjoint(admin.lines("admin.vm.tag.List", qube.name))


def _is_marked(admin: Admin, qube: Qube) -> bool:
    return property_of(admin, qube.name, "include_in_backups") == "True" and qube.klass != ADMIN_CLASS
