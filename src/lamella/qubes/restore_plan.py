"""The plan of a restore of qubes, qube by qube, before anything is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from lamella.base.errors import UsageError
from lamella.qubes.archive import QubeSnapshot
from lamella.qubes.inventory import ADMIN_CLASS, Inventory, Qube
from lamella.qubes.names import MAX_NAME, check_qube, check_volume
from lamella.qubes.powers import Policies, Power, powers_of
from lamella.qubes.settings import QubeSettings


class Action(StrEnum):
    """The action for one qube."""

    CREATE = "create"
    OVERWRITE = "overwrite"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class RestoreWishes:
    """The consents of the user. Without them a conflict or a missing template ends the plan."""

    overwrite: bool = False
    rename_conflicting: bool = False
    skip_conflicting: bool = False
    ignore_missing: bool = False
    skip_broken: bool = False
    data: bool = True
    settings: bool = True
    exact: bool = False
    """Also take away settings that the backup does not have."""
    powers: bool = False
    """Also give what policies of this system name."""
    trust_local: bool = False
    """Compare only what differs from a checkpoint, and a sample (decision 0083)."""


@dataclass(slots=True)
class QubeRestore:
    """One qube's part of the plan."""

    saved: QubeSnapshot
    name: str
    """The name it will have."""
    action: Action
    template: str = ""
    notes: list[str] = field(default_factory=list)
    powers: list[Power] = field(default_factory=list)
    """Powers that its settings give to it, or to others."""
    withheld: list[Power] = field(default_factory=list)
    """Those that need consent and do not have it: they are not set."""

    @property
    def settings(self) -> QubeSettings:
        """As they were saved."""
        return self.saved.settings

    def line(self) -> str:
        """The plan in one line."""
        renamed = f" as {self.name}" if self.name != self.saved.name else ""
        volumes = ", ".join(self.saved.volumes) or "no volumes"
        why = f": {'; '.join(self.notes)}" if self.notes else ""
        what = f"{self.saved.name}{renamed} ({self.settings.klass}, {volumes})"
        return f"{self.action} {what} from {self.saved.snapshot}{why}"


class RestorePlanner:
    """Decides for all qubes together: they may need each other. `owner` tells under which UUID a qube is saved."""

    def __init__(
        self,
        inventory: Inventory,
        saved: Sequence[QubeSnapshot],
        wishes: RestoreWishes,
        owner: Callable[[Qube], str],
        policies: Policies | None = None,
    ) -> None:
        self._policies = policies or Policies()
        self._inventory = inventory
        self._owner = owner
        self._wishes = wishes
        self._saved = {one.name: one for one in saved}
        if len(self._saved) != len(saved):
            raise UsageError("the same qube is named twice")
        self.renamed: dict[str, str] = {}
        """Saved name -> new name, of all that are restored."""

    def rows(self) -> list[QubeRestore]:
        """The plan, in an order in which templates come before what needs them. Raises UsageError."""
        rows = [self._row(one) for one in self._saved.values()]
        self.renamed = {row.saved.name: row.name for row in rows if row.action != Action.SKIP}
        for row in rows:
            self._find_template(row)
        alive = {row.saved.name: row for row in rows if row.action != Action.SKIP}
        self.renamed = {name: row.name for name, row in alive.items()}
        order = sorted(alive.values(), key=lambda row: (self._depth(row, alive), row.name))
        for row in order if self._wishes.settings else ():
            self._show_powers(row)
        return [*order, *(row for row in rows if row.action == Action.SKIP)]

    def _show_powers(self, row: QubeRestore) -> None:
        row.powers = powers_of(row.settings, self._policies, self.renamed)
        row.withheld = [] if self._wishes.powers else [one for one in row.powers if one.named]
        named = self._policies.naming(row.name) if row.action == Action.CREATE else ""
        row.notes += [f"{named} names a qube {row.name}, and means this one then"] if named else []

    def _row(self, saved: QubeSnapshot) -> QubeRestore:
        if saved.settings.klass == ADMIN_CLASS:
            raise UsageError("dom0 is not restored with qubes: use --dom0-to FOLDER", obj=saved.name)
        name = check_qube(saved.name)
        for volume in saved.volumes:
            check_volume(volume)
        there = self._inventory.qubes.get(name)
        notes = [f"{lost} is not in this snapshot" for lost in saved.failed]
        if there is None:
            if not self._wishes.settings:
                raise UsageError(f"{name} does not exist, and only data are to be restored", obj=name)
            return QubeRestore(saved, name, Action.CREATE, notes=notes)
        return self._conflict(saved, there, notes)

    def _conflict(self, saved: QubeSnapshot, there: Qube, notes: list[str]) -> QubeRestore:
        wishes = self._wishes
        if wishes.skip_conflicting:
            return QubeRestore(saved, there.name, Action.SKIP, notes=["a qube of this name exists"])
        if wishes.rename_conflicting:
            return QubeRestore(saved, self._free_name(there.name), Action.CREATE, notes=notes)
        if not wishes.overwrite:
            hint = "add --overwrite, --rename-conflicting or --skip-conflicting"
            raise UsageError(f"a qube called {there.name} exists", obj=there.name, hint=hint)
        if there.klass != saved.settings.klass:
            kinds = f"is a {there.klass}, the backup is of a {saved.settings.klass}"
            raise UsageError(f"{there.name} {kinds}", obj=there.name, hint="add --rename-conflicting")
        if there.running:
            raise UsageError(f"{there.name} is not halted: a running qube is never touched", obj=there.name)
        if self._owner(there) != saved.owner:
            notes.append("another qube of the same name is overwritten")
        kept = {one.name: one.facts.get("revisions_to_keep", "") for one in self._inventory.volumes(there)}
        lost = [name for name in saved.volumes if wishes.data and kept.get(name) in ("0", "-1")]
        notes += [
            f"{name} keeps no revisions (revisions_to_keep is {kept[name]}): its old state will be lost"
            for name in lost
        ]
        return QubeRestore(saved, there.name, Action.OVERWRITE, notes=notes)

    def _free_name(self, name: str) -> str:
        taken = {*self._inventory.qubes, *self._saved}
        for number in range(1, 1000):
            tail = str(number)
            candidate = name[: MAX_NAME - len(tail)] + tail
            if candidate not in taken:
                taken.add(candidate)
                return check_qube(candidate)
        raise UsageError(f"there is no free name like {name}", obj=name)

    def _find_template(self, row: QubeRestore) -> None:
        wanted = row.settings.template
        if row.action == Action.SKIP or not wanted:
            return
        row.template = self.renamed.get(wanted, wanted)
        if wanted in self.renamed or wanted in self._inventory.qubes:
            return
        if row.action == Action.OVERWRITE:
            row.notes.append(f"its template {wanted} is missing: the present one stays")
            row.template = ""
        elif self._wishes.skip_broken:
            row.action = Action.SKIP
            row.notes.append(f"its template {wanted} is missing")
        elif self._wishes.ignore_missing and row.settings.klass != "DispVM":
            row.template = ""
            row.notes.append(f"its template {wanted} is missing: the default one is used")
        else:
            hint = f"restore {wanted} too, or add --ignore-missing or --skip-broken"
            raise UsageError(f"the template {wanted} of {row.saved.name} does not exist", obj=row.saved.name, hint=hint)

    def _depth(self, row: QubeRestore, alive: dict[str, QubeRestore]) -> int:
        """The number of other restored qubes it is based on, one upon the other."""
        depth, seen = 0, {row.saved.name}
        above = alive.get(row.settings.template)
        while above is not None and above.saved.name not in seen:
            depth += 1
            seen.add(above.saved.name)
            above = alive.get(above.settings.template)
        return depth
