"""`lamella qubes list`: the qubes of this system and of the repository."""

from __future__ import annotations

import argparse
from typing import Any

from lamella.cli.commands.qubes.qubesd import admin_of
from lamella.cli.context import Context
from lamella.qubes.archive import saved_qubes
from lamella.qubes.inventory import Inventory
from lamella.qubes.names import owner_of
from lamella.qubes.settings import SETTINGS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none of its own."""


def run(context: Context) -> int:
    """Do it."""
    admin = admin_of(context)
    present = Inventory(admin).qubes
    by_owner = {owner_of(admin, qube, context.host.machine): qube for qube in present.values()}
    with context.repository() as repository:
        rows: list[dict[str, Any]] = []
        for qube in saved_qubes(repository):
            settings = qube.volumes.get(SETTINGS)
            newest = settings.snapshots[-1].name if settings is not None and settings.snapshots else ""
            here = by_owner.pop(qube.owner, None)
            rows.append(
                {
                    "qube": qube.name,
                    "uuid": qube.owner,
                    "latest": newest,
                    "volumes": sorted(qube.volumes),
                    "here": "" if here is None else here.name,
                    "state": "" if here is None else here.state,
                }
            )
        code = context.warn_of_problems(repository)
    rows += [
        {"qube": one.name, "uuid": one.uuid, "latest": "", "volumes": [], "here": one.name, "state": one.state}
        for one in sorted(by_owner.values(), key=lambda qube: qube.name)
        if one.name != "dom0"
    ]
    heading = ("QUBE", "LAST SAVED", "VOLUMES", "HERE AS", "STATE")
    cells = [
        (row["qube"], row["latest"] or "never", ", ".join(row["volumes"]), row["here"] or "not here", row["state"])
        for row in rows
    ]
    context.out.table([heading, *cells])
    context.out.document({"qubes": rows})
    return code
