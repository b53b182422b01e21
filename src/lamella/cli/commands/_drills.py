"""`lamella drill --every`: the drills that are due, the longest undrilled volume first, as long as the budget lasts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from lamella.base.clock import now_ms
from lamella.base.errors import LamellaError, NothingMatched, StoreError
from lamella.cli.chosen import chosen
from lamella.cli.context import Context
from lamella.memory.drills import Drills
from lamella.operations.shared.selection import Selected
from lamella.repository.repository import Repository

Drill = Callable[[Selected], tuple[dict[str, object], int]]
"""Drills one snapshot and tells of it: its fields for a document, and the exit code."""


def run_due(context: Context, repository: Repository, drill: Drill) -> int:
    """Drill what is due. Returns 0 if all of it passed, or nothing was due; else 1. Raises StoreError."""
    args, began = context.args, time.monotonic()
    rows, wanted = _named(context, repository, args.volume)
    left: list[str] = []
    for selected in _by_age(repository, wanted):
        if not _is_due(repository, selected, args.every):
            continue  # also where it was drilled just now, as a disk of the same domain
        if time.monotonic() - began >= args.budget:
            left.append(selected.volume_name)
            continue
        try:
            rows.append(drill(selected)[0])
        except StoreError:
            raise
        except NothingMatched as error:  # no disk: there is nothing to fail
            context.out.say(error.message)
            rows.append({"volume": selected.volume_name, "result": "skipped", "sign": error.message})
        except LamellaError as error:
            rows.append(_failed(context, selected.volume_name, error))
    if left:
        context.out.say(f"the budget is used up: left for the next run: {', '.join(left)}")
    if not rows and not left:
        context.out.line("no drill is due")
    failed = [f"{row['volume']} ({row['sign']})" for row in rows if row["result"] == "failed"]
    result = "failed" if failed else "passed" if rows else "nothing due"
    context.out.document({"result": result, "drills": rows, "left": left, "failed": failed})
    return 1 if failed else 0


def _named(
    context: Context, repository: Repository, texts: Sequence[str]
) -> tuple[list[dict[str, object]], list[Selected]]:
    """What was named; a volume that is not there fails, and keeps no other back."""
    rows: list[dict[str, object]] = []
    found: list[Selected] = []
    for text in dict.fromkeys(texts):
        try:
            found.append(chosen(repository, text))
        except LamellaError as error:
            rows.append(_failed(context, text, error))
    return rows, found


def _failed(context: Context, volume: str, error: LamellaError) -> dict[str, object]:
    context.out.warn(f"{volume}: {error.message}" + (f"; {error.hint}" if error.hint else ""))
    return {"volume": volume, "result": "failed", "sign": error.message}


def _by_age(repository: Repository, wanted: Sequence[Selected]) -> list[Selected]:
    """The volume first whose last drill is the longest ago, or that never had any."""
    drills = Drills(repository.proofs).all()

    def last_ms(one: Selected) -> int:
        verdict = drills.get(one.volume.volume_id)
        return 0 if verdict is None else verdict.time_ms

    return sorted(wanted, key=last_ms)


def _is_due(repository: Repository, selected: Selected, every_ms: int) -> bool:
    """A failed drill is also due as soon as there is another snapshot: somebody may have mended it."""
    verdict = Drills(repository.proofs).all().get(selected.volume.volume_id)
    if verdict is None or not 0 <= now_ms() - verdict.time_ms < every_ms:
        return True
    return verdict.verdict == "failed" and verdict.snapshot != selected.snapshot.name
