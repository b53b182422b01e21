"""Pages that are files: only a page of this program is replaced."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from lamella.base.errors import UsageError
from lamella.cli.new_files import write_file
from lamella.cli.output import Output

_BEGINNING = 512


def require_page(target: str, *, as_json: bool) -> None:
    """Raises UsageError for a file that is no report: nothing else is replaced. `-` is standard output."""
    from lamella.cli.pages.report import GENERATOR

    if target == "-":
        if as_json:
            raise UsageError("--html - and --json contradict each other")
        return
    path = Path(target)
    with suppress(FileNotFoundError):
        try:
            with path.open("rb") as file:
                ours = GENERATOR.encode() in file.read(_BEGINNING)
        except (IsADirectoryError, PermissionError, NotADirectoryError, ValueError) as error:
            raise UsageError(f"cannot write a report to {path}: {error}", obj=str(path)) from error
        if not ours:
            raise UsageError(f"{path} exists and is no report of lamella: it stays as it is", obj=str(path))


def write_page(out: Output, page: str, target: str) -> None:
    """Write a page to a file that only its owner can read, or to standard output. Raises LamellaError."""
    if target == "-":
        sys.stdout.write(page)
        return
    write_file(Path(target), page.encode(), overwrite=True)
    out.line(f"the report is in {target}")
