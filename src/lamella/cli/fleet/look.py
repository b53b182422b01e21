"""One look at one host's repository: what it says with a key, and the little that shows without.

The answer is a JSON value that `FleetCatalogue.take_in` reads; it comes from a process of its own.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from lamella.base.names import COMMITS, PACKS, commit_of
from lamella.cli.answers import answered
from lamella.cli.context import Context
from lamella.cli.pages.past import with_past
from lamella.repository.repository import Repository
from lamella.repository.slots import read_marker
from lamella.stores.base import Store

Row = dict[str, Any]


def opened(context: Context) -> Row:
    """What the repository says of its volumes. Nothing but the list of commits is asked for where they are as before.

    Raises as `Context.repository`.
    """
    with answered(context, "fleet", _facts) as (found, repository):
        problems = [f"{problem.message}; {problem.remedy}" for problem in repository.problems]
        return {"keys": True, **found, "problems": problems}


def unopened(context: Context) -> Row:
    """What shows without a key: how many objects, how many bytes, how far each writer's chain of commits goes.

    Raises NoRepository, StoreError.
    """
    with context.store(read_only=True) as store:
        read_marker(store)
        chains: dict[str, int] = defaultdict(int)
        for entry in store.list(COMMITS):
            name = commit_of(entry.name)
            if name is not None:
                chains[name.writer.hex()] = max(chains[name.writer.hex()], name.seq)
        packs, stored = _packs(store)
    return {"keys": False, "chains": dict(sorted(chains.items())), "packs": packs, "stored_bytes": stored}


def _packs(store: Store) -> tuple[int, int]:
    sizes = [entry.size for entry in store.list(PACKS)]
    return len(sizes), sum(sizes)


def _facts(repository: Repository) -> Row:
    """Everything about volumes, snapshots, and the space of packs."""
    found = with_past(repository, 0)
    packs, stored = _packs(repository.store)
    rows = [_volume(row, found["past"][row["volume"]]) for row in found["volumes"]]
    return {"volumes": rows, "never": found["never"], "packs": packs, "stored_bytes": stored}


def _volume(row: Row, past: Row) -> Row:
    result, level, verified_ms = row["verdict"] or ("", "", 0)
    drilled = row["drilled"]
    trouble = row["missed"]
    if row["broken"]:
        trouble = trouble or f"the latest snapshot, {row['broken']}, is not whole"
    return {
        "name": row["volume"],
        **{key: row[key] for key in ("consistency", "size", "snapshots")},
        "trouble": trouble,
        "verdict": result,
        "level": level,
        "verified_ms": verified_ms,
        "drill": "" if drilled is None else drilled["result"],
        "drilled_ms": 0 if drilled is None else _ms(drilled["time"]),
        **past,
    }


def _ms(text: str) -> int:
    from lamella.cli.fleet.catalogue import ms_of  # few hosts were drilled

    return ms_of(text)
