"""`lamella export --to` and `--all`: snapshots written as images."""

from __future__ import annotations

import os
import sys
from io import FileIO
from pathlib import Path

from lamella.base.errors import LamellaError, UsageError
from lamella.base.events import Reporter
from lamella.cli.chosen import chosen, shown_snapshot, thaw_first, warn_of_no_moment
from lamella.cli.context import Context
from lamella.cli.shown import shown_bytes
from lamella.operations.access import images
from lamella.operations.access.image_file import require_new, write_image
from lamella.operations.access.view import Reading
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.streaming import read_document

_SUFFIXES = {".qcow2": "qcow2", ".tar": "tar"}


def run(context: Context) -> int:
    """Write one image, or all."""
    args = context.args
    if args.to == "-" and args.json:
        raise UsageError("--json and --to - both want standard output")
    if args.format is None and args.to is not None:
        args.format = _SUFFIXES.get(Path(args.to).suffix.lower(), "raw")
    if args.to not in (None, "-"):
        require_new(Path(args.to))
    with context.repository() as repository:
        code = context.warn_of_problems(repository)
        reading = Reading(repository)
        try:
            if args.all is not None:
                from lamella.cli.commands._all_images import run as write_all

                return write_all(context, reading) or code
            _one(context, reading, chosen(repository, args.volume))
        finally:
            reading.close()
    return code


def _one(context: Context, reading: Reading, selected: Selected) -> None:
    context.out.say(f"exporting {shown_snapshot(reading.repo, selected)}")
    thaw_first(context, reading.repo, [selected])
    image = image_of(context, reading, selected)
    if context.args.to == "-":
        _stream(image, selected.volume_name, context.out.report)
        return
    path = Path(context.args.to)
    write_image(path, image, selected.volume_name, context.out.report)
    row = {"target": str(path), "bytes": image.length}
    context.out.line(f"exported {selected.text} to {path}: {shown_bytes(image.length)}")
    context.out.document({"exports": [{"volume": selected.volume_name, "snapshot": selected.snapshot.name, **row}]})


def image_of(context: Context, reading: Reading, selected: Selected) -> images.Image:
    """The image of a snapshot in the format that was asked for. Raises LamellaError."""
    warn_of_no_moment(context, selected)
    view, workers = reading.view(selected), context.config.backup.workers
    if context.args.format == "qcow2":
        return images.qcow2(view, workers)
    if context.args.format == "tar":
        added = selected.snapshot.added
        documents = [(row.name, read_document(reading.repo, selected, row.name)) for row in added.documents]
        return images.tar(view, selected.volume_name, added.time_ms, documents)
    return images.raw(view, workers)


def _stream(image: images.Image, volume: str, reporter: Reporter) -> None:
    """To standard output. Raises LamellaError."""
    if sys.stdout.isatty():
        raise UsageError("standard output is a terminal", hint="send it to a file or a program")
    sys.stdout.flush()
    try:
        with FileIO(os.dup(sys.stdout.fileno()), "w") as file:
            images.pour(image, file, volume, reporter, sparse=False)
    except OSError as error:
        raise LamellaError(f"cannot write the image: {error.strerror}") from error
