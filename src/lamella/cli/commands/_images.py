"""`lamella export --to` and `--all`: snapshots written as images."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from io import FileIO
from pathlib import Path

from lamella.base.durable import sync_directory
from lamella.base.errors import LamellaError, Locked, UsageError
from lamella.base.events import Reporter, Warned
from lamella.cli.chosen import chosen, shown_snapshot, warn_of_no_moment
from lamella.cli.context import Context
from lamella.cli.files import exists
from lamella.cli.output import INCOMPLETE
from lamella.cli.shown import shown_bytes
from lamella.operations.access import images
from lamella.operations.access.view import Reading
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.streaming import read_document
from lamella.repository.repository import Repository
from lamella.sources.local_target import open_partial, rename_to_free_name

_SUFFIXES = {".qcow2": "qcow2", ".tar": "tar"}
_PARTIAL = ".lamella-export"
"""Not that of a restore, which goes on with what an earlier attempt left."""


def run(context: Context) -> int:
    """Write one image, or all."""
    args = context.args
    if args.to == "-" and args.json:
        raise UsageError("--json and --to - both want standard output")
    if args.format is None and args.to is not None:
        args.format = _SUFFIXES.get(Path(args.to).suffix.lower(), "raw")
    if args.to not in (None, "-"):
        _require_new(Path(args.to))
    with context.repository() as repository:
        code = context.warn_of_problems(repository)
        reading = Reading(repository)
        try:
            if args.all is not None:
                return _all(context, reading) or code
            _one(context, reading, chosen(repository, args.volume))
        finally:
            reading.close()
    return code


def _one(context: Context, reading: Reading, selected: Selected) -> None:
    context.out.say(f"exporting {shown_snapshot(reading.repo, selected)}")
    image = _image(context, reading, selected)
    if context.args.to == "-":
        _stream(image, selected.volume_name, context.out.report)
        return
    path = Path(context.args.to)
    _write(path, image, selected.volume_name, context.out.report)
    _done(context, [_row(selected, path, image)])


def _all(context: Context, reading: Reading) -> int:
    """Every volume's latest snapshot; one that cannot be read does not stop the others."""
    folder, repository = context.args.all, reading.repo
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a directory", obj=str(folder), hint="make it first")
    names = sorted(repository.catalogue.shown_names().values())
    ending = {"qcow2": "qcow2", "tar": "tar"}.get(context.args.format, "img")
    targets = [(name, folder / f"{name}.{ending}") for name in names if _has_snapshots(repository, name)]
    for _, path in targets:
        _require_new(path)
    rows: list[dict[str, object]] = []
    failed = 0
    for name, path in targets:
        try:
            selected = chosen(repository, name)
            image = _image(context, reading, selected)
            _write(path, image, name, context.out.report)
            rows.append(_row(selected, path, image))
        except LamellaError as error:
            failed += 1
            context.out.warn(f"{name}: {error.message}")
            rows.append({"volume": name, "target": str(path), "error": error.message})
    _done(context, rows)
    return INCOMPLETE if failed else 0


def _has_snapshots(repository: Repository, name: str) -> bool:
    shown = repository.catalogue.shown_names()
    return any(volume.snapshots for id_, volume in repository.catalogue.volumes.items() if shown[id_] == name)


def _image(context: Context, reading: Reading, selected: Selected) -> images.Image:
    warn_of_no_moment(context, selected)
    view, workers = reading.view(selected), context.config.backup.workers
    if context.args.format == "qcow2":
        return images.qcow2(view, workers)
    if context.args.format == "tar":
        added = selected.snapshot.added
        documents = [(row.name, read_document(reading.repo, selected, row.name)) for row in added.documents]
        return images.tar(view, selected.volume_name, added.time_ms, documents)
    return images.raw(view, workers)


def _row(selected: Selected, path: Path, image: images.Image) -> dict[str, object]:
    snapshot = selected.snapshot.name
    return {"volume": selected.volume_name, "snapshot": snapshot, "target": str(path), "bytes": image.length}


def _done(context: Context, rows: list[dict[str, object]]) -> None:
    for row in rows:
        if "error" not in row:
            size = row["bytes"]
            shown = shown_bytes(size) if isinstance(size, int) else ""
            context.out.line(f"exported {row['volume']}@{row['snapshot']} to {row['target']}: {shown}")
    context.out.document({"exports": rows})


def _require_new(path: Path) -> None:
    if path.exists() or path.is_symlink():
        error = exists(path)
        error.hint = "name another file; restore can replace one, or write to a device"
        raise error


def _write(path: Path, image: images.Image, volume: str, reporter: Reporter) -> None:
    """A new file, which gets its name when all of it is durable. Raises LamellaError."""
    partial = path.with_name(path.name + _PARTIAL)
    notes: list[str] = []
    try:
        # As its only writer until it has its name: whoever else wants that waits for neither, and harms neither.
        with FileIO(open_partial(partial, notes), "r+") as file:
            try:
                file.truncate(0)
                images.pour(image, file, volume, reporter, sparse=True)
                os.fsync(file.fileno())
                _require_new(path)
                rename_to_free_name(partial, path)
            except BaseException:
                with suppress(OSError):
                    partial.unlink()
                raise
        sync_directory(path.absolute().parent)
    except Locked as error:
        raise Locked(f"another export is writing {partial}", obj=str(path)) from error
    except OSError as error:
        raise LamellaError(f"cannot write {path}: {error.strerror}", obj=str(path)) from error
    for note in notes:
        reporter(Warned(note, str(path)))


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
