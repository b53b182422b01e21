"""`lamella restore V --to DIR/` where V is a tree of files: DIR/V with every file in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lamella.base.errors import IntegrityError, Interrupted, LamellaError, UsageError
from lamella.base.events import Progress
from lamella.cli.context import Context
from lamella.cli.output import INCOMPLETE
from lamella.cli.shown import shown_bytes
from lamella.operations.access.shown import safe_name
from lamella.operations.access.trees import opened
from lamella.operations.access.view import Reading
from lamella.operations.shared.selection import Selected
from lamella.repository.repository import Repository
from lamella.run.limits import allow_files
from lamella.sources.tree.extracting import Extracted, Extraction, ExtractOptions
from lamella.sources.tree.folders import FOLDER_FLAGS

Row = dict[str, object]


def restore_trees(context: Context, repository: Repository, wanted: Sequence[Selected]) -> tuple[list[Row], int]:
    """Restore them. Returns a row of the document for each, and the exit code. Raises LamellaError."""
    args, rows, codes = context.args, list[Row](), [0]
    if args.in_place:
        raise UsageError("--in-place is for disks", hint="--overwrite replaces files that are there")
    for one in wanted:
        _require_room(args.to / safe_name(one.volume_name), overwrite=args.overwrite or args.dry_run)
    allow_files()
    reading = Reading(repository)
    try:
        for one in wanted:
            row, code = _restored(context, reading, one)
            rows.append(row)
            codes.append(code)
    finally:
        reading.close()
    return rows, max(codes)


def _restored(context: Context, reading: Reading, one: Selected) -> tuple[Row, int]:
    args, out, target = context.args, context.out, context.args.to / safe_name(one.volume_name)
    tree = opened(reading, one)
    first = tree.superblock()
    row: Row = {"volume": one.volume_name, "snapshot": one.snapshot.name, "target": str(target)}
    amount = f"{first.files} files, {shown_bytes(first.file_bytes)}"
    if args.dry_run:
        out.line(f"would restore {one.text} to {target}: {amount}")
        return {**row, "files": first.files, "bytes": first.file_bytes}, 0
    out.say(f"restoring {one.text} to {target}: {amount}")
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        out.report(Progress("restore", one.volume_name, min(done, first.file_bytes), first.file_bytes))

    options = ExtractOptions(args.overwrite, args.devices, args.numeric_ids, is_root=os.geteuid() == 0)
    folder = _made(target)
    try:
        extraction = Extraction(tree, folder, options, tell)
        extraction.extract(tree.top())
        os.sync()  # a power cut after this command must not take files away again
    except KeyboardInterrupt:
        hint = f"the files in {target} are whole; to go on, add --overwrite"
        raise Interrupted("interrupted", hint=hint) from None
    finally:
        os.close(folder)
    return {**row, **_said(context, one, target, extraction.result)}, _code(extraction.result)


def _said(context: Context, one: Selected, target: Path, result: Extracted) -> Row:
    """Say what became of a tree."""
    out = context.out
    out.line(f"restored {one.text} to {target}: {result.files} files, {shown_bytes(result.bytes)}")
    for what, told in (("damaged", result.damaged), ("not restored", result.left_out), ("mixed", result.mixed)):
        for line in told.all_lines():
            out.warn(f"{what}: {line}")
    return {
        "files": result.files,
        "bytes": result.bytes,
        "left_out": result.left_out.lines,
        "damaged": result.damaged.lines,
        "mixed": result.mixed.lines,
        "result": "incomplete" if _code(result) else "complete",
    }


def _code(result: Extracted) -> int:
    if result.damaged.count:
        return IntegrityError.exit_code
    return INCOMPLETE if result.left_out.count else 0


def _require_room(target: Path, *, overwrite: bool) -> None:
    """Raises UsageError for a directory with something in it, unless that may be replaced."""
    try:
        full = next(target.iterdir(), None) is not None
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot restore to {target}: {error.strerror}", obj=str(target)) from error
    if full and not overwrite:
        hint = "add --overwrite to replace the files of the snapshot in it"
        raise UsageError(f"{target} is not empty", obj=str(target), hint=hint)


def _made(target: Path) -> int:
    """The directory, open. Raises LamellaError."""
    try:
        target.mkdir(mode=0o700, exist_ok=True)
        return os.open(target, FOLDER_FLAGS)
    except OSError as error:
        raise LamellaError(f"cannot make {target}: {error.strerror}", obj=str(target)) from error
