"""Backing up and restoring through the real operations, and what must be equal afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lamella.memory.host import Host
from lamella.operations.backup.story import BackupOptions, BackupResult
from lamella.qubes.admin import Admin
from lamella.qubes.archive import read_snapshot
from lamella.qubes.backup import QubesOptions, plan_qubes
from lamella.qubes.inventory import Inventory, QubeChoice, chosen
from lamella.qubes.names import FEATURE, owner_of
from lamella.qubes.restore import QubeResult, QubesRestore
from lamella.qubes.restore_plan import QubeRestore, RestorePlanner, RestoreWishes
from lamella.repository.repository import Repository
from lamella.stores.base import Store
from lamella_kit.fake_qubesd import FakeQube, FakeQubesd
from tests.fault.world import SECRET

FEW_WORKERS = QubesOptions(backup=BackupOptions(workers=1, chunk_log2=16))


def content(system: FakeQubesd, name: str, volume: str = "private") -> bytes:
    return system.live(name, volume).read_bytes()


def back_up(
    store: Store, host: Host, admin: Admin, *names: str, options: QubesOptions = FEW_WORKERS, root: Path | None = None
) -> BackupResult:
    with Repository.open(store, SECRET, host) as repo:
        inventory = Inventory(admin)
        qubes = chosen(admin, inventory, QubeChoice(names))
        options = options if root is None else replace(options, dom0_root=root)
        return plan_qubes(repo, admin, inventory, qubes, options).execute()


def planner(repo: Repository, admin: Admin, names: Iterable[str], wishes: RestoreWishes) -> RestorePlanner:
    saved = [read_snapshot(repo, name) for name in names]
    return RestorePlanner(Inventory(admin), saved, wishes, partial(owner_of, admin, machine=repo.host.machine))


def planned(store: Store, host: Host, admin: Admin, names: Iterable[str], wishes: RestoreWishes) -> list[QubeRestore]:
    with Repository.open(store, SECRET, host) as repo:
        return planner(repo, admin, names, wishes).rows()


def restore(
    store: Store, host: Host, admin: Admin, names: Sequence[str], wishes: RestoreWishes | None = None
) -> dict[str, QubeResult]:
    wishes = wishes or RestoreWishes()
    with Repository.open(store, SECRET, host) as repo:
        rows = planner(repo, admin, names, wishes).rows()
        results = QubesRestore(repo, admin, rows, wishes).execute(workers=1)
    return {result.qube: result for result in results}


def essence(qube: FakeQube) -> dict[str, object]:
    """What a restore brings back of a qube, volumes' bytes and identity apart."""
    ours = {"backup_timestamp"}
    return {
        "class": qube.klass,
        "label": qube.label,
        "template": qube.template,
        "properties": {name: value for name, value in qube.properties.items() if name not in ours},
        "tags": qube.tags - {"created-by-dom0"},
        "features": {name: value for name, value in qube.features.items() if name != FEATURE},
        "firewall": qube.firewall,
        "notes": qube.notes,
        "devices": {class_: dict(rows) for class_, rows in qube.devices.items() if rows},
        "volumes": {one.name: (one.size, one.revisions_to_keep, one.rw) for one in qube.volumes.values()},
    }
