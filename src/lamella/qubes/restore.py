"""Executing a plan: create, mark, write, set, link, and only then let the qubes start.

A volume is replaced by qubesd's import: written beside, compared to the last byte, then taken or thrown away. The old
state stays as a revision of the volume. An import that was left open by a killed restore is closed first: some pools
refuse to start the qube until then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from lamella.base.errors import IntegrityError, LamellaError, SourceError, UsageError, shown_bytes
from lamella.base.events import Reporter, Warned, silent
from lamella.memory.host import Host, HostMemory, Table
from lamella.operations.restore.restore import RestoreOptions, RestoreResult, data_bytes, plan_restore
from lamella.operations.shared.selection import Selected
from lamella.qubes.admin import Admin, Refused
from lamella.qubes.inventory import Inventory, QubeVolume, power_state
from lamella.qubes.names import FEATURE, check_label, check_qube, check_volume, lineage, owner_of
from lamella.qubes.restore_plan import Action, QubeRestore, RestoreWishes
from lamella.qubes.settings_apply import IN_PROGRESS, Applier
from lamella.repository.repository import Repository


@dataclass(slots=True)
class QubeResult:
    """The outcome for one qube."""

    qube: str
    action: str
    snapshot: str
    result: str = "failed"
    bytes_written: int = 0
    volumes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str = ""


Step = Callable[[QubeRestore, QubeResult], None]


class QubesRestore:
    """One restore of planned qubes."""

    def __init__(self, repo: Repository, admin: Admin, rows: Sequence[QubeRestore], wishes: RestoreWishes) -> None:
        self._repo = repo
        self._admin = admin
        self._rows = [row for row in rows if row.action != Action.SKIP]
        self._skipped = [row for row in rows if row.action == Action.SKIP]
        self._wishes = wishes
        self._inventory = Inventory(admin)
        self._imports = Imports(admin, repo.host)
        self._renamed = {row.saved.name: row.name for row in self._rows}
        self._broken: dict[str, str] = {}
        self._touched: set[str] = set()
        """Qubes of which a volume was replaced."""

    def execute(self, reporter: Reporter = silent, workers: int | None = None) -> list[QubeResult]:
        """Do it. A qube that fails does not stop the others; until its data are right its old state is untouched."""
        for left in self._imports.close_left_open():
            reporter(Warned("an import that an earlier restore left open was given up", left))
        try:
            return self._execute(reporter, workers)
        except BaseException:
            # Broken off: whatever still holds its old data may start again.
            for row in self._rows:
                if row.action == Action.OVERWRITE and row.name not in self._touched:
                    self._unmark(row)
            raise

    def _execute(self, reporter: Reporter, workers: int | None) -> list[QubeResult]:
        results = {row.name: QubeResult(row.name, str(row.action), row.saved.snapshot) for row in self._rows}
        self._labels(results)
        for row in self._rows:
            self._guarded(row, results[row.name], self._mark)
        self._inventory = Inventory(self._admin)
        for row in self._rows:
            result = results[row.name]
            self._guarded(row, result, lambda one, its: self._data(one, its, reporter, workers))
        for row in self._rows:
            self._guarded(row, results[row.name], self._plain)
        for row in self._rows:
            self._guarded(row, results[row.name], self._references)
        for row in self._rows:
            self._guarded(row, results[row.name], self._release)
        skipped = [
            QubeResult(row.saved.name, str(row.action), row.saved.snapshot, "skipped", notes=row.notes)
            for row in self._skipped
        ]
        return [*results.values(), *skipped]

    def _guarded(self, row: QubeRestore, result: QubeResult, step: Step) -> None:
        if row.name in self._broken:
            return
        try:
            step(row, result)
        except (SourceError, IntegrityError, UsageError) as error:
            self._broken[row.name] = result.error = error.message
            self._give_up(row, result)

    def _give_up(self, row: QubeRestore, result: QubeResult) -> None:
        """An overwritten qube is as it was and may start; a new one without its data must not."""
        if row.action == Action.CREATE:
            result.notes.append(f"it exists, is not whole, and does not start while it has the tag {IN_PROGRESS}")
        elif row.name in self._touched:
            result.notes.append(f"some volumes are new, their old state is a revision; it has the tag {IN_PROGRESS}")
        else:
            self._unmark(row)

    def _unmark(self, row: QubeRestore) -> None:
        try:
            self._admin.call("admin.vm.tag.Remove", row.name, IN_PROGRESS)
        except SourceError:
            return  # it was not there, or qubesd is gone: the next restore of this qube takes it away

    def _labels(self, results: dict[str, QubeResult]) -> None:
        known = set(self._admin.lines("admin.label.List"))
        for row in self._rows:
            label, color = check_label(row.settings.label), row.settings.label_color
            if label in known or not color or not self._wishes.settings:
                continue
            try:
                self._admin.call("admin.label.Create", arg=label, payload=color.encode("utf-8"))
                known.add(label)
            except Refused as error:
                results[row.name].notes.append(f"label {label}: {error.message}")

    def _mark(self, row: QubeRestore, result: QubeResult) -> None:
        """Create the qube if need be, and keep it from starting before anything else is done to it."""
        if row.action == Action.CREATE:
            self._create(row, result)
        self._admin.call("admin.vm.tag.Set", row.name, IN_PROGRESS)
        if power_state(self._admin, row.name) != "Halted":
            self._admin.call("admin.vm.tag.Remove", row.name, IN_PROGRESS)
            raise SourceError(f"{row.name} was started meanwhile, and is not touched", obj=row.name)
        if self._wishes.settings:
            self._applier(row, result).early()

    def _create(self, row: QubeRestore, result: QubeResult) -> None:
        label = row.settings.label
        if label not in self._admin.lines("admin.label.List"):
            label = "red"
            result.notes.append(f"it got the label red instead of {row.settings.label}")
        payload = f"name={row.name} label={label}".encode("ascii")
        self._admin.call(f"admin.vm.Create.{row.settings.klass}", arg=row.template, payload=payload)

    def _data(self, row: QubeRestore, result: QubeResult, reporter: Reporter, workers: int | None) -> None:
        if not self._wishes.data:
            return
        qube = self._inventory.qube(row.name)
        there = {volume.name: volume for volume in self._inventory.volumes(qube)}
        for name, why in self._inventory.undescribed(qube).items():
            if name in row.saved.volumes:
                raise SourceError(why, obj=row.name)
        self._check_space(row, there)
        for name, selected in row.saved.volumes.items():
            if name not in there or not there[name].save_on_stop:
                result.notes.append(f"volume {name}: the qube has no such persistent volume")
                continue
            options = RestoreOptions(workers, trust_local=self._wishes.trust_local)
            done, use = self._imports.restore(self._repo, selected, row.name, name, reporter, options)
            result.bytes_written += done.bytes_written
            result.notes += [f"volume {name}: {use}"] if use else []
            result.volumes.append(name)
            self._touched.add(row.name)
        self._continue_history(row)

    def _check_space(self, row: QubeRestore, there: Mapping[str, QubeVolume]) -> None:
        """Raises SourceError if a pool says that it cannot hold what is to be written into it."""
        needed: dict[str, int] = defaultdict(int)
        for name, selected in row.saved.volumes.items():
            if name in there:
                needed[there[name].pool] += data_bytes(self._repo, selected)
        for pool, size in needed.items():
            free = self._inventory.free_bytes(pool)
            if free is not None and size > free:
                text = f"pool {pool} has {shown_bytes(size - free)} too few: {row.name} needs {shown_bytes(size)}"
                raise SourceError(text, obj=pool, hint="free some space, or add to the pool")

    def _continue_history(self, row: QubeRestore) -> None:
        """Let the next backup continue where the saved one ended, unless the saved qube itself is still here."""
        qube, owner = self._inventory.qube(row.name), row.saved.owner
        owners = {owner_of(self._admin, other, "") for other in self._inventory.qubes.values() if other is not qube}
        if owner not in {qube.uuid, *owners}:
            self._admin.call("admin.vm.feature.Set", row.name, FEATURE, lineage(owner, qube.uuid).encode("ascii"))

    def _plain(self, row: QubeRestore, result: QubeResult) -> None:
        if self._wishes.settings:
            applier = self._applier(row, result)
            applier.template(row.template)
            applier.plain(exact=self._wishes.exact)

    def _references(self, row: QubeRestore, result: QubeResult) -> None:
        if self._wishes.settings:
            self._applier(row, result).references()

    def _release(self, row: QubeRestore, result: QubeResult) -> None:
        self._admin.call("admin.vm.tag.Remove", row.name, IN_PROGRESS)
        result.notes = [*row.notes, *result.notes]
        result.result = "restored"

    def _applier(self, row: QubeRestore, result: QubeResult) -> Applier:
        return Applier(self._admin, self._inventory, row, self._renamed, result.notes)


class OpenImport(NamedTuple):
    """An import that was begun and not ended."""

    qube: str
    volume: str


class Imports:
    """The imports of this host. What is open is written down before it is opened."""

    def __init__(self, admin: Admin, host: Host) -> None:
        self._admin = admin
        self._open = Table(HostMemory(host, host.state_dir), "qubes-imports.json", tuple[OpenImport, ...])

    def close_left_open(self) -> list[str]:
        """Close what a killed restore left open; returns `QUBE:VOLUME` of each."""
        left = self._open.read()
        for qube, volume in left:
            try:
                check_qube(qube), check_volume(volume)
            except LamellaError:
                continue  # no such name was written by us
            self._end(qube, volume, b"fail\nthe restore was broken off")
        if left:
            self._open.change(lambda _: ())
        return [f"{qube}:{volume}" for qube, volume in left]

    def restore(
        self, repo: Repository, selected: Selected, qube: str, volume: str, reporter: Reporter, options: RestoreOptions
    ) -> tuple[RestoreResult, str]:
        """Write one volume; returns also how a checkpoint was used. Until it was compared, nothing of the old state
        changes. Raises LamellaError.
        """
        plan_size = selected.snapshot.added.size
        with self._opened(qube, volume, plan_size) as path:
            device = path.is_block_device()
            options = replace(options, overwrite=device, in_place=not device, made_empty=True)
            plan = plan_restore(repo, selected, path, options)
            return plan.execute(reporter), plan.said_of_kept

    @contextmanager
    def _opened(self, qube: str, volume: str, size: int) -> Iterator[Path]:
        self._open.change(lambda rows: (*rows, OpenImport(qube, volume)))
        try:
            answer = self._admin.internal("internal.vm.volume.ImportBegin", qube, volume, str(size).encode("ascii"))
            yield _path(answer, qube)
        except BaseException:
            self._end(qube, volume, b"fail\nthe restore failed")
            self._forget(qube, volume)
            raise
        self._admin.internal("internal.vm.volume.ImportEnd", qube, volume, b"ok")
        self._forget(qube, volume)

    def _end(self, qube: str, volume: str, how: bytes) -> None:
        try:
            self._admin.internal("internal.vm.volume.ImportEnd", qube, volume, how)
        except (Refused, SourceError):
            return  # that the import failed is reported as an error: it is what was asked for

    def _forget(self, qube: str, volume: str) -> None:
        self._open.change(lambda rows: tuple(row for row in rows if row != (qube, volume)))


def _path(answer: bytes, qube: str) -> Path:
    size, _, path = answer.decode("utf-8", "backslashreplace").partition(" ")
    if not size.isdecimal() or not path.startswith("/"):
        raise SourceError("qubesd did not say where to write", obj=qube)
    return Path(path)
