"""The common part of `lamella import borg` and `restic`: which files of an archive are wanted."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from fnmatch import fnmatchcase

from lamella.base.errors import UsageError
from lamella.cli import imports
from lamella.cli.arguments import SECRETS
from lamella.cli.context import Context
from lamella.imports.history import ForeignHistory, volume_sources
from lamella.imports.programs import Wanted
from lamella.sources.names import split_name

_UNASKED_MOST = 100
"""Volumes that are imported though nobody chose them."""

History = Callable[[str, Wanted, str], ForeignHistory]


def add_arguments(parser: argparse.ArgumentParser, kind: str, secrets: str) -> None:
    """The arguments of a kind that its own program opens."""
    note = (
        "A volume is a file in an archive: choose images of disks by their paths, such as '*.img'.\n"
        f"{kind} itself opens its repository, with settings and secrets from the environment as usual\n({secrets})."
    )
    parser.epilog = f"{imports.NOTE}\n\n{note}\n\n{SECRETS}"
    parser.add_argument("archive", metavar="REPOSITORY", help=f"the repository, as {kind} takes it")
    imports.add_arguments(parser)
    parser.add_argument("--program", metavar="FILE", default=kind, help=f"the {kind} to run (default: {kind})")


def run(context: Context, history: History) -> int:
    """List or import. Raises UsageError for a whole tree of files that nobody chose."""
    args = context.args
    chosen = [split_name(word) for word in args.volume]
    patterns = [pattern.lstrip("/") for _, pattern in chosen]
    args.volume = [
        pattern if name is None else f"{name}={pattern}" for (name, _), pattern in zip(chosen, patterns, strict=True)
    ]

    def wanted(path: str) -> bool:
        return not patterns or any(path == one or _fits(path, one) for one in patterns)

    found = history(args.archive, wanted, args.program)
    names = {volume.name for _, volume in volume_sources(found)}
    if not (args.volume or args.list) and len(names) > _UNASKED_MOST:
        hint = "choose images by a pattern, such as '*.img'; for files use: lamella files backup"
        raise UsageError(f"the archive holds {len(names)} files", obj=args.archive, hint=hint)
    return imports.run_import(context, found)


def _fits(path: str, pattern: str) -> bool:
    """With or without the name of the machine before the path."""
    return fnmatchcase(path, pattern) or (":" in pattern and fnmatchcase(path, pattern.partition(":")[2]))
