"""`lamella list`: volumes and snapshots."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from lamella.cli.answers import answered
from lamella.cli.arguments import SECRETS
from lamella.cli.context import Context
from lamella.cli.local_time import shown_time
from lamella.cli.shown import shown_bytes
from lamella.operations.look import listing
from lamella.operations.look.listing import Row
from lamella.repository.repository import Repository

Rows = tuple[list[Row], list[Row]]
"""Volumes and snapshots."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = SECRETS
    parser.add_argument("volume", nargs="?", metavar="VOLUME", help="only this volume and its snapshots")


def run(context: Context) -> int:
    """Print them."""
    with _found(context, context.args.volume) as ((volumes, snapshots), repository):
        code = context.warn_of_problems(repository)
        problems = [problem.message for problem in repository.problems]
    _print(context, volumes, snapshots)
    if context.out.to_terminal and context.args.volume is None:
        from lamella.cli.known_names import remember  # for people who complete words

        remember(context.host.cache_dir, context.place, snapshots)
    context.out.document({"volumes": volumes, "snapshots": snapshots, "problems": problems})
    return code


@contextmanager
def _found(context: Context, volume: str | None) -> Iterator[tuple[Rows, Repository]]:
    if volume is None:
        with answered(context, "list", lambda repo: (listing.volumes(repo), listing.snapshots(repo))) as found:
            yield found
    else:
        with context.repository() as repository:
            yield _of_volume(repository, volume), repository


def _of_volume(repository: Repository, text: str) -> Rows:
    from lamella.operations.shared.selection import find_volume

    volume = find_volume(repository, text)
    volumes = [row for row in listing.volumes(repository) if row["id"] == volume.volume_id.hex()]
    return volumes, listing.snapshots(repository, volume)


def _print(context: Context, volumes: list[Row], snapshots: list[Row]) -> None:
    out = context.out
    if not snapshots:
        out.say("there are no snapshots yet")
        return
    rows = [
        (row["volume"], shown_bytes(row["size"]), row["snapshots"], row["latest"], row["consistency"], _verified(row))
        for row in volumes
    ]
    out.table([("VOLUME", "SIZE", "SNAPSHOTS", "LATEST", "CONSISTENT", "VERIFIED"), *rows])
    out.line()
    for row in [one for one in volumes if one["as_late"]]:
        out.say(f"possibly as recent as the latest of {row['volume']}: {', '.join(row['as_late'])}")
    shots = [
        (row["snapshot"], shown_time(row["time"]), shown_bytes(row["size"]), row["consistency"], _contents(row))
        for row in snapshots
    ]
    out.table([("SNAPSHOT", "LOCAL TIME", "SIZE", "CONSISTENT", "VOLUMES"), *shots])


def _verified(row: Row) -> str:
    """The last verdict of this host: day, level, result, and whether there is a newer snapshot by now."""
    verdict, drill = row["verified"], row["drilled"]
    drilled = f"; {drill['verdict']} {shown_time(drill['time'])[:10]}" if drill else ""
    if verdict is None:
        return f"never here{drilled}"
    newer = "" if verdict["snapshot"] == row["latest"] else ", before the latest"
    day, result = shown_time(verdict["time"])[:10], verdict["result"].replace("damaged", "DAMAGED")
    return f"{day} {verdict['level']}: {result}{newer}{drilled}"


def _contents(row: Row) -> str:
    """The volumes, and what is special about the run."""
    lost = f" (failed: {', '.join(one['volume'] for one in row['failed'])})" if row["failed"] else ""
    gone = f" (parts are lost: {', '.join(row['lost'])})" if row["lost"] else ""
    rebuilt = " (rebuilt by a repair)" if row["rebuilt"] else ""
    refuted = " (a change map was wrong: everything was compared)" if row["map_refuted"] else ""
    labels = [f"^{tag}" for tag in row["tags"]] + ["marked as removed"] * row["marked_removed"]
    labels += [f"of {shown_time(row['claimed_time'])}, as the user stated"] if row["claimed_time"] else []
    labels += [f"pinned: {reason}" if reason else "pinned" for reason in row["pinned"]]
    marks = f" ({', '.join(labels)})" if labels else ""
    word = "published by the expelled" if row["expelled"] else "a claim of"
    claim = f" ({word} writer {row['claimant'][:8]})" if row["claimant"] else ""
    result = "INCOMPLETE: " if row["result"] == "incomplete" else ""
    return result + ", ".join(row["volumes"]) + claim + marks + lost + gone + rebuilt + refuted
