"""Writing an image as a file that gets its name when all of it is durable."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path

from lamella.base.durable import sync_directory
from lamella.base.errors import LamellaError, Locked, UsageError
from lamella.base.events import Reporter, Warned
from lamella.operations.access import images
from lamella.run.spawn import signals_later
from lamella.sources.local_target import open_partial, rename_to_free_name

_PARTIAL = ".lamella-export"
"""Not that of a restore, which continues what an earlier attempt left."""


class CannotWrite(LamellaError):
    """The target takes no more: other images would fare no better."""


def require_new(path: Path) -> None:
    """Raises UsageError."""
    if path.exists() or path.is_symlink():
        hint = "name another file; restore can replace one, or write to a device"
        raise UsageError(f"{path} exists already", obj=str(path), hint=hint)


def write_image(
    path: Path, image: images.Image, volume: str, reporter: Reporter, before_name: Callable[[], None] = lambda: None
) -> None:
    """Write a new file. `before_name` runs when the bytes are durable and the file has no name yet.

    Raises CannotWrite, UsageError if it exists, Locked, and what reading the image raises.
    """
    partial = path.with_name(path.name + _PARTIAL)
    notes: list[str] = []
    held: FileIO | None = None
    try:
        with signals_later():  # an interrupted export knows that the file is its own, and removes it
            # As its only writer until it has its name: whoever else wants that waits for neither, and harms neither.
            held = FileIO(open_partial(partial, notes), "r+")
        held.truncate(0)
        images.pour(image, held, volume, reporter, sparse=True)
        os.fsync(held.fileno())
        require_new(path)
        before_name()
        rename_to_free_name(partial, path)
        sync_directory(path.absolute().parent)
    except Locked as error:
        raise Locked(f"another export is writing {partial}", obj=str(path)) from error
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror}", obj=str(path)) from error
    finally:
        if held is not None:
            with suppress(OSError):
                if os.path.samestat(os.fstat(held.fileno()), partial.lstat()):
                    partial.unlink()
            with suppress(OSError):
                held.close()
    for note in notes:
        reporter(Warned(note, str(path)))
