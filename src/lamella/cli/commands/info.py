"""`lamella info`: the repository, a volume or a snapshot, and how much room they take."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from lamella.base.errors import UsageError
from lamella.cli.arguments import SECRETS
from lamella.cli.context import Context
from lamella.cli.local_time import shown_time
from lamella.cli.shown import shown_bytes
from lamella.operations.look import listing
from lamella.operations.look.description import describe
from lamella.operations.look.sizes import as_row, sizes_of, totals_of
from lamella.operations.shared.selection import Selected, find_volume, select
from lamella.repository.repository import Repository


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = SECRETS
    parser.add_argument(
        "volume",
        nargs="*",
        metavar="VOLUME[@SNAPSHOT]",
        help="describe this snapshot (default: the volume's latest); without VOLUME, describe the repository",
    )
    parser.add_argument(
        "--sizes",
        action="store_true",
        help="show the space that the snapshots take together, and the space that removing them would free",
    )
    parser.add_argument("--all", action="store_true", help="with --sizes: all snapshots of the volumes named")


def run(context: Context) -> int:
    """Print it."""
    out, args = context.out, context.args
    if (len(args.volume) > 1 or args.all) and not args.sizes:
        raise UsageError("several snapshots, and --all, need --sizes")
    with context.repository() as repository:
        selected = _selected(repository, args.volume, args.all)
        if len(selected) > 1:
            facts: listing.Row = {"snapshots": [one.text for one in selected]}
        else:
            facts = describe(repository, selected[0] if selected else None)
        if args.sizes:
            facts["sizes"] = as_row(sizes_of(repository, selected) if args.volume else totals_of(repository))
        code = context.warn_of_problems(repository)
        problems = [problem.message for problem in repository.problems]
    lines = [row for key, value in facts.items() for row in _named(key, value)]
    width = max(len(name) for name, _ in lines)
    for name, line in lines:
        out.line(f"{name.replace('_', ' '):<{width}}  {line}")
    out.document({**facts, "problems": problems})
    return code


_SIZES: Mapping[str, str] = {
    "apparent_bytes": "size of the volumes",
    "allocated_bytes": "without holes",
    "stored_bytes": "space they need",
    "unique_bytes": "needed by nothing else",
    "shared_bytes": "shared with others",
    "freed_bytes": "free at once without them",
}
"""Names of sizes, beside the figures of the run that made the snapshot."""


_BYTES = frozenset({"size", "data_bytes", "chunk_size", "read_bytes", "stored_bytes", "sampled_bytes"})
_MOMENTS = frozenset({"time", "claimed_time"})


def _selected(repository: Repository, texts: list[str], everything: bool) -> list[Selected]:
    if not texts or not everything:
        return select(repository, texts) if texts else []
    volumes = [find_volume(repository, text) for text in texts]
    shown = repository.catalogue.shown_names()
    return [Selected(shown[volume.volume_id], volume, one) for volume in volumes for one in volume.snapshots]


def _named(key: str, value: object) -> list[tuple[str, str]]:
    """The lines of one fact; of the sizes each under its own name."""
    if key == "sizes" and isinstance(value, dict):
        return [
            (_SIZES.get(str(name), str(name)), shown_bytes(one) if name.endswith("_bytes") else str(one))
            for name, one in value.items()
        ]
    if key in _MOMENTS and value:
        return [(key, shown_time(str(value)))]
    if key in _BYTES and isinstance(value, int):
        return [(key, shown_bytes(value))]
    return [(key, line) for line in _lines(value)]


def _lines(value: object) -> list[str]:
    """The lines that show a value: a list line by line, a row as its fields."""
    if isinstance(value, list):
        return [line for one in value for line in _lines(one)]
    if isinstance(value, dict):
        return ["  ".join(f"{key}={_field(one)}" for key, one in value.items() if one is not False and one != "")]
    if value == "":
        return []
    if value is None:
        return ["no"]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    return [str(value)]


def _field(value: object) -> str:
    if value is True:
        return "yes"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
